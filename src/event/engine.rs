//! The engine: transactions in, effects out. It moves the mirror and applies the rules of SEMANTICS.md §5.
//!
//! For every flag value ([`Slot`]) that a change touches, the state in force before the first change is set aside; when
//! the group of changes has settled, it is compared with the state in force then. So it does not matter which of the
//! many tables changed, in which order, or how often.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::flag::Cause;
use super::group::{Group, Touch};
use super::schedule::Timers;
use super::version::version_slot;
use super::{Commit, EndpointKey, Event, Recipient, Routing, recipients};
use crate::change::{Key, Lsn, Micros, Op, Row, RowChange, Transaction};
use crate::mirror::{Mirror, Persist, Slot, Target};
use crate::schema::{
    Table, environment, feature, feature_segment, feature_state, mv_history, mv_value, state_history,
    state_value, value_history,
};

pub use super::group::Settle;

/// A transaction that touches more flag values than this is bulk SQL, not a click: its groups close with it, so that
/// they need not be kept.
const BULK: usize = 10_000;

/// An environment is born in several transactions, whatever is settled otherwise; so much quiet ends it at the earliest.
const BIRTH_QUIET: Duration = Duration::from_millis(100);

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
    pub(super) mirror: Mirror,
    pub(super) system_id: String,
    settle: Settle,
    pub(super) routing: Routing,
    pub(super) metadata_events: bool,
    pub(super) groups: HashMap<Slot, Group>,
    deadlines: BTreeSet<(Micros, Slot)>,
    /// States of open groups that the mirror has dropped.
    gone_states: HashMap<i64, Slot>,
    /// Environments inserted a moment ago.
    pub(super) births: HashMap<i64, Birth>,
    pub(super) timers: Timers,
    /// The stream's clock: everything that was due until then has been told.
    pub(super) clock: Micros,
    /// End of the last transaction.
    pub(super) position: Lsn,
}

impl Engine {
    /// An engine over a mirror that is consistent at the position where the stream goes on. `system_id` is the
    /// database's system identifier; `metadata_events` makes a change of a feature's own metadata an event.
    pub fn new(
        mirror: Mirror,
        system_id: String,
        settle: Settle,
        routing: impl Into<Routing>,
        metadata_events: bool,
    ) -> Engine {
        Engine {
            mirror,
            system_id,
            settle,
            routing: routing.into(),
            metadata_events,
            groups: HashMap::new(),
            deadlines: BTreeSet::new(),
            gone_states: HashMap::new(),
            births: HashMap::new(),
            timers: Timers::default(),
            clock: Micros::default(),
            position: Lsn::default(),
        }
    }

    /// Goes on where a ledger left off: everything that was due until `clock` has been told, what is due later is waited for.
    pub fn resume(&mut self, clock: Micros, position: Lsn) {
        self.clock = self.clock.max(clock);
        self.position = position;
        self.arm_all(self.clock);
    }

    /// Takes an open group back from the ledger. False when the bytes are no group.
    pub fn restore_group(&mut self, bytes: &[u8]) -> bool {
        let Ok((slot, bytes)) = postcard::take_from_bytes::<Slot>(bytes) else { return false };
        if slot == birth_slot(slot.environment) {
            let birth = postcard::from_bytes(bytes).ok();
            return birth.map(|birth| self.births.insert(slot.environment, birth)).is_some();
        }
        let Ok(group) = postcard::from_bytes::<Group>(bytes) else { return false };
        self.gone_states.extend(group.gone_states().iter().map(|state| (*state, slot)));
        if let (Target::Segment(segment), Some(before)) = (slot.target, &group.before) {
            self.mirror.recall_segment(before.state_id(), segment);
        }
        self.deadlines.insert((group.deadline(self.settle), slot));
        self.groups.insert(slot, group);
        true
    }

    /// Whether a change of a feature's own metadata is an event from here on.
    pub fn set_metadata_events(&mut self, metadata_events: bool) {
        self.metadata_events = metadata_events;
    }

    /// The mirror as it is now.
    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// The stream's own clock, to be kept with the checkpoint (see [`Engine::resume`]).
    pub fn clock(&self) -> Micros {
        self.clock
    }

    /// When something is due if the stream stays silent, in stream time: a group that closes, a change that goes live.
    pub fn next_deadline(&self) -> Option<Micros> {
        self.deadlines.first().map(|(at, _)| *at).into_iter().chain(self.timers.next()).min()
    }

    /// Takes a row that the mirror lacked (see [`Mirror::lacks`]).
    pub fn supply(&mut self, table: Table, row: Row, out: Out<'_>) {
        self.mirror.supply(table, row, &mut |persist| out(Effect::Mirror(persist)));
    }

    /// Tells what is due by `now` (stream time), while the stream is silent: closes the groups that have settled, and lets go
    /// live what was scheduled.
    pub fn silence(&mut self, now: Micros, out: Out<'_>) {
        while let Some(at) = self.next_deadline().filter(|at| *at <= now) {
            match self.deadlines.first().copied() {
                // At a moment at which something goes live that comes first: what has changed before it belongs to before.
                Some((_, slot)) if self.timers.next().is_none_or(|timer| timer > at) => {
                    self.close(&slot, at.max(self.told_until()), out);
                }
                _ => self.fire(out),
            }
        }
        self.forget_births(now, out);
        self.clock = self.clock.max(now);
    }

    /// Gives events other formats from here on.
    pub fn set_routing(&mut self, routing: Routing) {
        self.routing = routing;
    }

    /// Closes all groups as they are, for what was read until here must not be mixed with what comes. The rest of a click is
    /// then an event of its own.
    pub fn close_all(&mut self, out: Out<'_>) {
        while let Some((_, slot)) = self.deadlines.first().copied() {
            self.close(&slot, self.clock, out);
        }
    }

    /// Applies one committed transaction.
    pub fn transaction(&mut self, transaction: Transaction, out: Out<'_>) {
        let commit =
            Commit { end_lsn: transaction.end_lsn, xid: transaction.xid, time: transaction.commit_time };
        self.silence(commit.time, out);
        self.position = commit.end_lsn;
        let mut work = Work { commit, touched: Vec::new(), audits: Vec::new(), births: BTreeSet::new() };
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
        self.keep_births(&work.births, out);
        // Commit times can be a little out of order: what should have gone live already goes live now.
        while self.timers.next().is_some_and(|at| at <= self.clock) {
            self.fire(out);
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
        let timers = self.timers_touched(&change);
        let mark = self.pending_mark(&change);
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
        if let Some(row) = mark {
            self.mirror.keep_mark(row, &mut |persist| out(Effect::Mirror(persist)));
        }
        self.rearm(timers, work.commit.time);
        if let Some(effect) = endpoint {
            out(effect);
        }
        if let (Some(state), Some(slot)) = (dropped_state, state_slot) {
            self.note_dropped(state, slot, work.commit.time);
        }
    }

    fn slot_of_changed_state(&self, change: &RowChange) -> Option<Slot> {
        let key = match &change.op {
            Op::Update { old_key, new } => old_key.clone().unwrap_or_else(|| crate::change::key_of(new)),
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
            Op::Insert { new } => (crate::change::key_of(new), Some(new)),
            Op::Update { old_key, new } => {
                (old_key.clone().unwrap_or_else(|| crate::change::key_of(new)), Some(new))
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
            Table::FeatureSegment => {
                let slots = self.slots(key_id(&key).map(|id| mirror.states_of_override(id)));
                let segment = new.and_then(|new| new.int(feature_segment::SEGMENT_ID));
                // Where the override is for another segment from now on, that flag value changes as well.
                let moved = segment.into_iter().flat_map(|segment| {
                    slots.iter().map(move |slot| Slot { target: Target::Segment(segment), ..*slot })
                });
                let moved: Vec<Slot> = moved.filter(|slot| !slots.contains(slot)).collect();
                own([slots, moved].concat())
            }
            Table::Identity => own(self.slots(key_id(&key).map(|id| mirror.states_of_identity(id)))),
            Table::MvOption => own(self.slots(key_id(&key).map(|id| mirror.states_of_option(id)))),
            Table::FeatureVersion => {
                let rows = [old, new].into_iter().flatten();
                own(rows.flat_map(|row| mirror.slots_of_version(row).chain([version_slot(row)])).collect())
            }
            Table::ChangeRequest => own(self.slots(key_id(&key).map(|id| mirror.states_of_request(id)))),
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
        let told_until = self.told_until();
        let group = self.groups.entry(slot).or_insert_with(|| {
            let mut group = Group::open(work.commit, self.mirror.in_force(&slot, told_until));
            if slot.target == Target::Version {
                group.set_live_before(self.mirror.live_version_id(&slot, told_until));
            }
            group
        });
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
                    self.births.insert(id, Birth { last: work.commit.time, younger_features: Vec::new() });
                    work.births.insert(id);
                }
            }
            Table::Feature => self.note_younger_feature(row, work),
            Table::FeatureState => self.note_born_state(row, work),
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

    /// A feature that comes after an environment was not born with it.
    fn note_younger_feature(&mut self, row: &Row, work: &mut Work) {
        let Some(feature) = row.int(feature::ID) else { return };
        for (environment, birth) in &mut self.births {
            birth.younger_features.push(feature);
            work.births.insert(*environment);
        }
    }

    /// The states that are born together with their environment are no events; also those of a clone, which fills the
    /// environment in one transaction after the other.
    fn note_born_state(&mut self, row: &Row, work: &mut Work) {
        let Some(environment) = row.int(feature_state::ENVIRONMENT_ID) else { return };
        let feature = row.int(feature_state::FEATURE_ID).unwrap_or(0);
        let birth = self.births.get_mut(&environment);
        if birth.as_ref().is_some_and(|birth| birth.younger_features.contains(&feature)) {
            return;
        }
        let is_born_now = birth.map(|birth| birth.last = work.commit.time).is_some();
        if is_born_now {
            work.births.insert(environment);
        }
        if (is_born_now || self.mirror.environment_is_being_created(environment))
            && let Some(group) = self.groups.get_mut(&self.mirror.slot_of_row(row))
        {
            group.silent = true;
        }
    }

    /// Births are kept as open groups are: a restart in the middle of one must not take its states for new flags.
    fn keep_births(&self, environments: &BTreeSet<i64>, out: Out<'_>) {
        for environment in environments {
            let slot = birth_slot(*environment);
            let birth = self.births.get(environment);
            if let Some(Ok(bytes)) = birth.map(|birth| postcard::to_allocvec(&(slot, birth))) {
                out(Effect::KeepGroup { slot, bytes });
            }
        }
    }

    fn forget_births(&mut self, now: Micros, out: Out<'_>) {
        let quiet = self.settle.quiet.max(BIRTH_QUIET);
        self.births.retain(|environment, birth| {
            let is_recent = birth.last.plus(quiet) >= now;
            if !is_recent {
                out(Effect::DropGroup { slot: birth_slot(*environment) });
            }
            is_recent
        });
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
                let at = group.commit().time.max(self.told_until());
                self.close(slot, at, out);
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

    /// Closes a group; `at` is the moment whose state is the state after it.
    pub(super) fn close(&mut self, slot: &Slot, at: Micros, out: Out<'_>) {
        let Some(group) = self.take_group(slot, out) else { return };
        let cause = Cause::Change { xid: group.xid, commit: group.commit() };
        if slot.target == Target::Version {
            self.version_changed(slot, group.live_before(), at, &cause, out);
            return;
        }
        let after = self.mirror.in_force(slot, at);
        if group.silent && group.before.is_none() {
            return;
        }
        let attribution = group.known_attribution().cloned().unwrap_or_default();
        let before = group.before.map(|view| *view);
        if let Some(event) = self.flag_event(slot, before, after, &attribution, &cause) {
            self.emit(event, out);
        }
    }

    /// Ends a group without telling what came of it.
    pub(super) fn take_group(&mut self, slot: &Slot, out: Out<'_>) -> Option<Group> {
        let group = self.groups.remove(slot)?;
        self.deadlines.remove(&(group.deadline(self.settle), *slot));
        for state in group.gone_states() {
            self.gone_states.remove(state);
        }
        if group.persisted {
            out(Effect::DropGroup { slot: *slot });
        }
        Some(group)
    }

    pub(super) fn emit(&self, event: Event, out: Out<'_>) {
        let to = recipients(&event, &self.mirror, &self.routing);
        out(Effect::Event(Box::new(event), to));
    }
}

/// An environment that was inserted a moment ago and gets its states.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Birth {
    /// When the environment, or the last state born with it, was committed.
    last: Micros,
    /// Features inserted since: their states are no part of the birth.
    younger_features: Vec<i64>,
}

/// What one transaction has touched so far.
struct Work {
    commit: Commit,
    touched: Vec<Slot>,
    audits: Vec<Row>,
    /// Environments that were born, or whose states were.
    births: BTreeSet<i64>,
}

/// Under which name the birth of an environment is kept; no feature has the id 0.
fn birth_slot(environment: i64) -> Slot {
    Slot { feature: 0, environment, target: Target::Version }
}

fn key_id(key: &Key) -> Option<i64> {
    match key {
        Key::Int(id) => Some(*id),
        Key::Text(_) => None,
    }
}
