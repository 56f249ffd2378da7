//! The engine: transactions in, effects out. It moves the mirror and applies the rules of SEMANTICS.md §5.
//!
//! For every flag value ([`Slot`]) that a change touches, the state in force before the first change is set aside; when
//! the group of changes has settled, it is compared with the state in force then. So it does not matter which of the
//! many tables changed, in which order, or how often.

use std::collections::{BTreeSet, HashMap};

use super::author::Mark;
use super::group::{Group, Touch};
use super::{
    Action, AuditPayload, Author, Commit, EndpointKey, Event, EventId, FlagPayload, Formats, Kind, Payload,
    Recipient, Scope, Verb, recipients,
};
use crate::change::{Key, Micros, Op, Row, RowChange, Transaction};
use crate::mirror::{Mirror, Persist, Slot, StateView, Target};
use crate::schema::{
    Table, audit_log, environment, feature, feature_state, mv_history, mv_value, project, state_history,
    state_value, value_history,
};

pub use super::group::Settle;

/// A transaction that touches more flag values than this is bulk SQL, not a click: its groups close with it, so that
/// they need not be kept.
const BULK: usize = 10_000;

/// `audit_auditlog.history_record_class_path` of an audit row about an environment.
const ENVIRONMENT_HISTORY_CLASS: &str = "environments.models.HistoricalEnvironment";

/// What a transaction (or silence) leads to, in order. All effects of one call belong into one ledger transaction.
#[derive(Debug)]
pub enum Effect {
    /// A row of the mirror changed.
    Mirror(Persist),
    /// An open group must be kept.
    KeepGroup {
        /// Its name in the ledger.
        slot: Slot,
        /// For [`Engine::restore_group`].
        bytes: Vec<u8>,
    },
    /// A group is closed.
    DropGroup {
        /// Its name in the ledger.
        slot: Slot,
    },
    /// An event for these recipients (there may be none).
    Event(Box<Event>, Vec<Recipient>),
    /// An endpoint's row changed or is new.
    EndpointChanged(EndpointKey),
    /// An endpoint's row is gone: its queue goes with it.
    EndpointGone(EndpointKey),
}

/// Takes the effects, in order.
pub type Out<'a> = &'a mut dyn FnMut(Effect);

/// See the module's documentation.
#[derive(Debug)]
pub struct Engine {
    mirror: Mirror,
    system_id: String,
    settle: Settle,
    formats: Formats,
    metadata_events: bool,
    groups: HashMap<Slot, Group>,
    deadlines: BTreeSet<(Micros, Slot)>,
    /// States of open groups that the mirror has dropped.
    gone_states: HashMap<i64, Slot>,
    /// Environments inserted a moment ago, with the time of the last state that was born with them.
    births: HashMap<i64, Micros>,
    latest: Micros,
}

impl Engine {
    /// An engine over a mirror that is consistent at the position where the stream goes on. `system_id` is the
    /// database's system identifier; `metadata_events` makes a change of a feature's own metadata an event.
    pub fn new(
        mirror: Mirror,
        system_id: String,
        settle: Settle,
        formats: Formats,
        metadata_events: bool,
    ) -> Engine {
        Engine {
            mirror,
            system_id,
            settle,
            formats,
            metadata_events,
            groups: HashMap::new(),
            deadlines: BTreeSet::new(),
            gone_states: HashMap::new(),
            births: HashMap::new(),
            latest: Micros::default(),
        }
    }

    /// Takes an open group back from the ledger. False when the bytes are no group.
    pub fn restore_group(&mut self, bytes: &[u8]) -> bool {
        let Ok((slot, group)) = postcard::from_bytes::<(Slot, Group)>(bytes) else { return false };
        self.latest = self.latest.max(group.commit().time);
        self.gone_states.extend(group.gone_states().iter().map(|state| (*state, slot)));
        self.deadlines.insert((group.deadline(self.settle), slot));
        self.groups.insert(slot, group);
        true
    }

    /// The mirror as it is now.
    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// Commit time of the latest transaction: the stream's own clock.
    pub fn latest(&self) -> Micros {
        self.latest
    }

    /// When the next group closes if the stream stays silent, in stream time.
    pub fn next_deadline(&self) -> Option<Micros> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Takes a row that the mirror lacked (see [`Mirror::lacks`]).
    pub fn supply(&mut self, table: Table, row: Row, out: Out<'_>) {
        self.mirror.supply(table, row, &mut |persist| out(Effect::Mirror(persist)));
    }

    /// Closes the groups that have settled by `now` (stream time), while the stream is silent.
    pub fn silence(&mut self, now: Micros, out: Out<'_>) {
        while let Some((at, slot)) = self.deadlines.first().copied() {
            if at > now {
                return;
            }
            self.close(&slot, out);
        }
    }

    /// Applies one committed transaction.
    pub fn transaction(&mut self, transaction: Transaction, out: Out<'_>) {
        let commit =
            Commit { end_lsn: transaction.end_lsn, xid: transaction.xid, time: transaction.commit_time };
        self.silence(commit.time, out);
        self.latest = self.latest.max(commit.time);
        let quiet = self.settle.quiet;
        self.births.retain(|_, last| last.plus(quiet) >= commit.time);

        let mut work = Work { commit, touched: Vec::new(), audits: Vec::new() };
        for change in transaction.changes {
            if matches!(change.op, Op::Truncate) {
                for key in self.mirror.keys(change.table) {
                    self.change(RowChange { table: change.table, op: Op::Delete { key } }, &mut work, out);
                }
            } else {
                self.change(change, &mut work, out);
            }
        }
        for audit in work.audits {
            self.audit(audit, commit, out);
        }
        self.settle_touched(&work.touched, out);
        self.mirror.trim(&mut |persist| out(Effect::Mirror(persist)));
    }

    fn change(&mut self, change: RowChange, work: &mut Work, out: Out<'_>) {
        for (slot, touch) in self.slots_touched(&change) {
            self.touch(slot, touch, work);
        }
        match &change.op {
            Op::Insert { new } => self.note_insert(change.table, new, work),
            Op::Update { .. } | Op::Delete { .. } | Op::Truncate => {}
        }
        let state_slot = self.slot_of_changed_state(&change);
        let mut endpoint = None;
        let mut dropped_state = None;
        self.mirror.apply(change, &mut |persist| {
            match &persist {
                Persist::Put { table, key: Key::Int(id), .. } => {
                    endpoint = EndpointKey::of(*table, *id).map(Effect::EndpointChanged);
                }
                Persist::Remove { table, key: Key::Int(id) } => {
                    endpoint = EndpointKey::of(*table, *id).map(Effect::EndpointGone);
                    dropped_state = (*table == Table::FeatureState).then_some(*id);
                }
                Persist::Put { .. } | Persist::Remove { .. } => {}
            }
            out(Effect::Mirror(persist));
        });
        if let Some(effect) = endpoint {
            out(effect);
        }
        if let (Some(state), Some(slot)) = (dropped_state, state_slot) {
            self.note_dropped(state, slot, work.commit.time);
        }
    }

    fn slot_of_changed_state(&self, change: &RowChange) -> Option<Slot> {
        let key = match &change.op {
            Op::Update { old_key, new } => old_key.clone().unwrap_or_else(|| crate::mirror::key_of(new)),
            Op::Delete { key } => key.clone(),
            Op::Insert { .. } | Op::Truncate => return None,
        };
        let row =
            self.mirror.row(Table::FeatureState, &key).filter(|_| change.table == Table::FeatureState)?;
        Some(self.mirror.slot_of_row(row))
    }

    /// The flag values whose state a change touches, as the mirror is before it.
    fn slots_touched(&self, change: &RowChange) -> Vec<(Slot, Touch)> {
        let mirror = &self.mirror;
        let (key, new) = match &change.op {
            Op::Insert { new } => (crate::mirror::key_of(new), Some(new)),
            Op::Update { old_key, new } => {
                (old_key.clone().unwrap_or_else(|| crate::mirror::key_of(new)), Some(new))
            }
            Op::Delete { key } => (key.clone(), None),
            Op::Truncate => return Vec::new(),
        };
        let old = mirror.row(change.table, &key);
        let own = |slots: Vec<Slot>| slots.into_iter().map(|slot| (slot, Touch::Own)).collect();
        let of_states = |column: usize| -> Vec<Slot> {
            [old, new].into_iter().flatten().filter_map(|row| self.slot_of(row.int(column)?)).collect()
        };
        match change.table {
            Table::FeatureState => {
                let rows = [old, new].into_iter().flatten();
                own(rows.map(|row| mirror.slot_of_row(row)).collect())
            }
            Table::StateValue => own(of_states(state_value::FEATURE_STATE_ID)),
            Table::MvValue => own(of_states(mv_value::FEATURE_STATE_ID)),
            Table::StateHistory => own(of_states(state_history::ID)),
            Table::ValueHistory => own(of_states(value_history::FEATURE_STATE_ID)),
            Table::MvHistory => own(of_states(mv_history::FEATURE_STATE_ID)),
            Table::FeatureSegment => own(self.slots(key_id(&key).map(|id| mirror.states_of_override(id)))),
            Table::Identity => own(self.slots(key_id(&key).map(|id| mirror.states_of_identity(id)))),
            Table::MvOption => own(self.slots(key_id(&key).map(|id| mirror.states_of_option(id)))),
            Table::FeatureVersion => {
                let rows = [old, new].into_iter().flatten();
                own(rows.flat_map(|row| mirror.slots_of_version(row)).collect())
            }
            Table::Feature => self.slots_of_feature(key_id(&key), old, new),
            _ => Vec::new(),
        }
    }

    fn slots(&self, states: Option<impl Iterator<Item = i64>>) -> Vec<Slot> {
        states.into_iter().flatten().filter_map(|state| self.slot_of(state)).collect()
    }

    fn slot_of(&self, state: i64) -> Option<Slot> {
        self.mirror.slot_of_state(state).or_else(|| self.gone_states.get(&state).copied())
    }

    fn slots_of_feature(&self, id: Option<i64>, old: Option<&Row>, new: Option<&Row>) -> Vec<(Slot, Touch)> {
        let (Some(id), Some(old)) = (id, old) else { return Vec::new() };
        let is_gone = new.is_none_or(|new| !new.is_null(feature::DELETED_AT));
        let touch = if is_gone && old.is_null(feature::DELETED_AT) {
            Touch::FeatureGone
        } else if new.is_some_and(|new| new != old) {
            Touch::Metadata
        } else {
            return Vec::new();
        };
        self.mirror.slots_of(id, None).map(|slot| (slot, touch)).collect()
    }

    fn touch(&mut self, slot: Slot, touch: Touch, work: &mut Work) {
        let group = self
            .groups
            .entry(slot)
            .or_insert_with(|| Group::open(work.commit, self.mirror.in_force(&slot, work.commit.time)));
        if !group.touched {
            group.touched = true;
            work.touched.push(slot);
            self.deadlines.remove(&(group.deadline(self.settle), slot));
        }
        group.touch(touch, work.commit);
    }

    fn note_insert(&mut self, table: Table, row: &Row, work: &mut Work) {
        match table {
            Table::AuditLog => work.audits.push(row.clone()),
            Table::Environment => {
                if let Some(id) = row.int(environment::ID) {
                    self.births.insert(id, work.commit.time);
                }
            }
            Table::FeatureState => self.note_born_state(row, work.commit.time),
            Table::StateHistory => self.note_history(table, row, state_history::ID, work.commit.time),
            Table::ValueHistory => {
                self.note_history(table, row, value_history::FEATURE_STATE_ID, work.commit.time);
            }
            Table::MvHistory => {
                self.note_history(table, row, mv_history::FEATURE_STATE_ID, work.commit.time);
            }
            _ => {}
        }
    }

    /// The states that are born together with their environment are no events; also those of a clone, which fills the
    /// environment in one transaction after the other.
    fn note_born_state(&mut self, row: &Row, at: Micros) {
        let Some(environment) = row.int(feature_state::ENVIRONMENT_ID) else { return };
        let is_born_now = self.births.get_mut(&environment).map(|last| *last = at).is_some();
        if (is_born_now || self.mirror.environment_is_being_created(environment))
            && let Some(group) = self.groups.get_mut(&self.mirror.slot_of_row(row))
        {
            group.silent = true;
        }
    }

    fn note_history(&mut self, table: Table, row: &Row, state: usize, at: Micros) {
        let slot = row.int(state).and_then(|state| self.slot_of(state));
        if let Some(group) = slot.and_then(|slot| self.groups.get_mut(&slot)) {
            group.attribution().note(table, row);
            if group.attribution().has_removal() {
                group.own_rows_are_gone(at);
            }
        }
    }

    /// A state's row is gone; its history rows may still come and must find their group.
    fn note_dropped(&mut self, state: i64, slot: Slot, at: Micros) {
        let Some(group) = self.groups.get_mut(&slot) else { return };
        group.note_gone_state(state);
        if group.before.as_ref().is_some_and(|view| view.state_id() == state) {
            group.own_rows_are_gone(at);
        }
        self.gone_states.insert(state, slot);
    }

    fn settle_touched(&mut self, touched: &[Slot], out: Out<'_>) {
        let is_bulk = touched.len() > BULK;
        for slot in touched {
            let Some(group) = self.groups.get_mut(slot) else { continue };
            group.touched = false;
            if !group.stays_open(self.settle, is_bulk) {
                self.close(slot, out);
                continue;
            }
            self.deadlines.insert((group.deadline(self.settle), *slot));
            group.persisted = true;
            // Encoding into memory cannot fail; were it to, a restart would only split the group.
            if let Ok(bytes) = postcard::to_allocvec(&(slot, &*group)) {
                out(Effect::KeepGroup { slot: *slot, bytes });
            }
        }
    }

    fn close(&mut self, slot: &Slot, out: Out<'_>) {
        let Some(group) = self.groups.remove(slot) else { return };
        self.deadlines.remove(&(group.deadline(self.settle), *slot));
        for state in group.gone_states() {
            self.gone_states.remove(state);
        }
        if group.persisted {
            out(Effect::DropGroup { slot: *slot });
        }
        if let Some(event) = self.flag_event(slot, group) {
            self.emit(event, out);
        }
    }

    fn flag_event(&self, slot: &Slot, group: Group) -> Option<Event> {
        let environment = slot.environment;
        if !self.mirror.environment_is_alive(environment)
            || self.mirror.environment_is_being_created(environment)
        {
            return None;
        }
        let commit = group.commit();
        let after = self.mirror.in_force(slot, commit.time);
        let verb = match (&group.before, &after) {
            (None, None) => return None,
            (None, Some(_)) if group.silent => return None,
            (None, Some(_)) => Verb::Created,
            (Some(before), Some(after)) if self.is_same(before, after) => return None,
            (Some(_), Some(_)) => Verb::Updated,
            (Some(_), None) => Verb::Removed,
        };
        let mark = match (verb, &after) {
            (Verb::Removed, _) => group.known_attribution().and_then(|a| a.of_removal()).cloned(),
            (_, Some(view)) => Mark::of_version(view)
                .or_else(|| group.known_attribution().and_then(|a| a.of_change()).cloned()),
            (_, None) => None,
        };
        let author = mark.as_ref().map_or(Author::Unknown, |mark| mark.author(&self.mirror));
        let at = mark.as_ref().map_or(commit.time, |mark| mark.at);
        let shown = after.as_ref().or(group.before.as_deref())?;
        let kind = if after.is_some() { Kind::FlagUpdated } else { Kind::FlagDeleted };
        Some(Event {
            id: EventId::new(&self.system_id, kind, &shown.state_id().to_string(), &group.xid.to_string()),
            kind,
            action: Action { verb, scope: Some(scope(slot)) },
            organisation: shown.project.int(project::ORGANISATION_ID),
            project: shown.project.int(project::ID),
            environment: Some(environment),
            feature: Some(slot.feature),
            feature_name: shown.feature.text(feature::NAME).map(str::to_owned),
            commit,
            payload: Payload::Flag(Box::new(FlagPayload {
                previous: group.before.map(|view| *view),
                new: after,
                author,
                at,
            })),
        })
    }

    fn is_same(&self, before: &StateView, after: &StateView) -> bool {
        before.looks_like(after) && (!self.metadata_events || before.same_feature_metadata(after))
    }

    fn audit(&mut self, row: Row, commit: Commit, out: Out<'_>) {
        let mirror = &self.mirror;
        let find = |table: Table, column: usize| mirror.row_by_id(table, row.int(column)?).cloned();
        let author = find(Table::User, audit_log::AUTHOR_ID);
        // Flagsmith makes an audit row from a history record; one about an environment shows that record.
        let is_about_environment =
            row.text(audit_log::HISTORY_RECORD_CLASS_PATH) == Some(ENVIRONMENT_HISTORY_CLASS);
        let environment_row = row
            .int(audit_log::HISTORY_RECORD_ID)
            .filter(|_| is_about_environment)
            .and_then(|id| mirror.environment_in_history(id))
            .or_else(|| find(Table::Environment, audit_log::ENVIRONMENT_ID));
        let project_row = find(Table::Project, audit_log::PROJECT_ID)
            .or_else(|| mirror.project_of(environment_row.as_ref()?).cloned());
        let subject = row.text(audit_log::ID).unwrap_or_default();
        let event = Event {
            id: EventId::new(&self.system_id, Kind::AuditLogCreated, subject, ""),
            kind: Kind::AuditLogCreated,
            action: Action { verb: Verb::Created, scope: None },
            organisation: project_row.as_ref().and_then(|p| p.int(project::ORGANISATION_ID)),
            project: project_row.as_ref().and_then(|p| p.int(project::ID)),
            environment: environment_row.as_ref().and_then(|e| e.int(environment::ID)),
            feature: None,
            feature_name: None,
            commit,
            payload: Payload::Audit(Box::new(AuditPayload {
                audit: row,
                author,
                project: project_row,
                environment: environment_row,
            })),
        };
        self.emit(event, out);
    }

    fn emit(&self, event: Event, out: Out<'_>) {
        let to = recipients(&event, &self.mirror, &self.formats);
        out(Effect::Event(Box::new(event), to));
    }
}

/// What one transaction has touched so far.
struct Work {
    commit: Commit,
    touched: Vec<Slot>,
    audits: Vec<Row>,
}

fn key_id(key: &Key) -> Option<i64> {
    match key {
        Key::Int(id) => Some(*id),
        Key::Text(_) => None,
    }
}

fn scope(slot: &Slot) -> Scope {
    match slot.target {
        Target::Default => Scope::Default,
        Target::Segment(_) => Scope::Segment,
        Target::Identity(_) => Scope::Identity,
    }
}
