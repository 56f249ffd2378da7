//! What was missed, as events: the difference between what receivers were told last and what is so now.
//!
//! Two engines stand side by side: one as the ledger has it (`told`), and a fresh one over a snapshot of the database. For every
//! flag value the state that was told last is compared with the state in force now, by the rules of [`Engine::flag_event`]. So
//! whatever happened in between, a flag value that differs is one event and one that does not is none. Of the versions that
//! went live in between only the last is told. Rows of the audit log are an event each, as ever.
//!
//! Who and when comes from the history rows since then, and so does the order. Ids are made of the moment at which the
//! difference was seen: whoever records the events records the moment with them, in one transaction.

use std::collections::HashMap;

use super::author::Attribution;
use super::flag::Cause;
use super::version::version_slot;
use super::{Commit, Engine, Event, Payload, Recipient, recipients};
use crate::change::{Key, Micros, Row};
use crate::mirror::{Mirror, Slot, StateView, Target};
use crate::schema::{Table, audit_log, feature, feature_version, mv_history, state_history, value_history};

/// A flag value that is not as it was told last.
#[derive(Debug, Clone)]
pub struct Missed {
    slot: Slot,
    before: Option<StateView>,
    after: Option<StateView>,
    /// What the history has told of it so far.
    attribution: Attribution,
}

impl Missed {
    /// The ids of the states whose history tells who changed it.
    pub fn states(&self) -> impl Iterator<Item = i64> + '_ {
        let before = self.before.iter().map(StateView::state_id);
        let after = self.after.iter().map(StateView::state_id);
        after.chain(before.filter(|id| self.after.as_ref().is_none_or(|view| view.state_id() != *id)))
    }
}

impl Engine {
    /// The flag values that are not as the receivers of `told` know them, as they are at this engine's clock.
    pub fn missed(&self, told: &Engine) -> Vec<Missed> {
        let mut slots: Vec<Slot> = told.mirror.all_slots().chain(self.mirror.all_slots()).collect();
        slots.extend(told.groups.keys().filter(|slot| slot.target != Target::Version));
        slots.sort_unstable();
        slots.dedup();
        slots.into_iter().filter_map(|slot| self.missed_of(slot, told)).collect()
    }

    fn missed_of(&self, slot: Slot, told: &Engine) -> Option<Missed> {
        let before = told.told_last(&slot);
        let after = self.mirror.in_force(&slot, self.clock);
        let is_missed = match (&before, &after) {
            (None, None) => false,
            (Some(before), Some(after)) => !self.is_same(before, after),
            (None, Some(_)) => !told.is_born_with_environment(&slot),
            (Some(_), None) => true,
        };
        let group = told.groups.get(&slot);
        let attribution = group.and_then(|group| group.known_attribution()).cloned().unwrap_or_default();
        is_missed.then_some(Missed { slot, before, after, attribution })
    }

    /// The state of a flag value that receivers were told last: that before the open group, or that in force.
    fn told_last(&self, slot: &Slot) -> Option<StateView> {
        match self.groups.get(slot) {
            Some(group) if group.before.is_some() || !group.silent => group.before.as_deref().cloned(),
            _ => self.mirror.in_force(slot, self.told_until()),
        }
    }

    /// Whether a state that this engine does not know came to be with its environment: that is no event. Features that are
    /// new as well may have come later.
    fn is_born_with_environment(&self, slot: &Slot) -> bool {
        let is_young = self.mirror.row_by_id(Table::Environment, slot.environment).is_none()
            || self.births.contains_key(&slot.environment)
            || self.mirror.environment_is_being_created(slot.environment);
        is_young && self.mirror.row_by_id(Table::Feature, slot.feature).is_some()
    }

    /// Makes the events of what was missed, in the order of the history; then one for each row of the audit log in `audits`, in
    /// the order of their ids. `history` holds the states' history since then, oldest first; `name` names the moment at which
    /// all this was seen, and is never used twice.
    pub fn reconstruct(
        &self,
        told: &Engine,
        missed: Vec<Missed>,
        history: &[(Table, Row)],
        mut audits: Vec<Row>,
        name: &str,
    ) -> Vec<(Event, Vec<Recipient>)> {
        let commit = Commit { end_lsn: self.position, xid: 0, time: self.clock };
        let flags = self.flag_events(told, noted(missed, history), commit, name);
        let versions = self.version_events(told, commit, name);
        let mut events: Vec<Event> = flags.into_iter().chain(versions).collect();
        events.sort_by_key(order);
        audits.sort_by_key(|row| row.int(audit_log::ID));
        events.extend(audits.into_iter().map(|row| self.audit_event(row, commit)));
        events
            .into_iter()
            .map(|event| Event { reconstructed: true, ..event })
            .map(|event| {
                let to = recipients(&event, &self.mirror, &self.routing);
                (event, to)
            })
            .collect()
    }

    fn flag_events(&self, told: &Engine, missed: Vec<Missed>, commit: Commit, name: &str) -> Vec<Event> {
        let event = |missed: Missed| {
            let cause = self.cause_of(&missed, told, commit, name);
            let Missed { slot, before, after, attribution } = missed;
            let mut event = self.flag_event(&slot, before, after, &attribution, &cause)?;
            self.date_by_feature(&mut event, commit.time);
            Some(event)
        };
        missed.into_iter().filter_map(event).collect()
    }

    fn cause_of(&self, missed: &Missed, told: &Engine, commit: Commit, name: &str) -> Cause {
        let name = name.to_owned();
        if self.went_live(missed).is_some_and(|at| at > told.told_until()) {
            Cause::Schedule { name, commit }
        } else {
            Cause::Missed { name, commit }
        }
    }

    /// The moment for which what is in force now was scheduled; before all times where it was in force at once.
    fn went_live(&self, missed: &Missed) -> Option<Micros> {
        let Missed { slot, before, after, .. } = missed;
        match (after, before) {
            (Some(StateView { version: Some(version), .. }), _) => Mirror::version_goes_live(version),
            (Some(after), _) => self.mirror.state_goes_live(&after.state),
            (None, Some(StateView { version: Some(_), .. })) => {
                let live = self.mirror.live_version(slot.feature, slot.environment, self.clock)?;
                Mirror::version_goes_live(live)
            }
            (None, _) => None,
        }
    }

    /// A flag that went with its feature and has no history of its own went when the feature did.
    fn date_by_feature(&self, event: &mut Event, seen: Micros) {
        let Payload::Flag(payload) = &mut event.payload else { return };
        if payload.new.is_some() || payload.at != seen {
            return;
        }
        let feature = event.feature.and_then(|id| self.mirror.row_by_id(Table::Feature, id));
        let deleted = feature.and_then(|row| row.text(feature::DELETED_AT)).and_then(Micros::parse);
        payload.at = deleted.unwrap_or(seen);
    }

    fn version_events(&self, told: &Engine, commit: Commit, name: &str) -> Vec<Event> {
        let event = |(feature, environment)| {
            let slot = Slot { feature, environment, target: Target::Version };
            let before = told.version_told_last(&slot)?;
            let live = self.mirror.live_version(feature, environment, self.clock)?;
            if live.text(feature_version::UUID) == Some(before.as_str()) {
                return None;
            }
            let is_scheduled = Mirror::version_goes_live(live).is_some_and(|at| at > told.told_until());
            let name = name.to_owned();
            let cause =
                if is_scheduled { Cause::Schedule { name, commit } } else { Cause::Missed { name, commit } };
            self.version_event(&version_slot(live), self.clock, &cause)
        };
        self.mirror.versioned_flags().into_iter().filter_map(event).collect()
    }

    fn version_told_last(&self, slot: &Slot) -> Option<String> {
        match self.groups.get(slot) {
            Some(group) => group.live_before().map(str::to_owned),
            None => self.mirror.live_version_id(slot, self.told_until()).map(str::to_owned),
        }
    }
}

/// Each with the history of its states.
fn noted(mut missed: Vec<Missed>, history: &[(Table, Row)]) -> Vec<Missed> {
    let mut by_state: HashMap<i64, Vec<usize>> = HashMap::new();
    for (index, missed) in missed.iter().enumerate() {
        for state in missed.states() {
            by_state.entry(state).or_default().push(index);
        }
    }
    for (table, row) in history {
        let column = match table {
            Table::StateHistory => state_history::ID,
            Table::ValueHistory => value_history::FEATURE_STATE_ID,
            Table::MvHistory => mv_history::FEATURE_STATE_ID,
            _ => continue,
        };
        let indices = row.int(column).and_then(|state| by_state.get(&state));
        for index in indices.into_iter().flatten() {
            if let Some(missed) = missed.get_mut(*index) {
                missed.attribution.note(*table, row);
            }
        }
    }
    missed
}

/// By the time of the last change, what is told of a version after what is told of its states; then by id.
fn order(event: &Event) -> (Micros, bool, Option<Key>) {
    match &event.payload {
        Payload::Flag(payload) => {
            let state = payload.new.as_ref().or(payload.previous.as_ref()).map(StateView::state_id);
            (payload.at, false, state.map(Key::Int))
        }
        Payload::Version(payload) => {
            let published = payload.version.text(feature_version::PUBLISHED_AT).and_then(Micros::parse);
            let uuid = payload.version.text(feature_version::UUID).map(|uuid| Key::Text(uuid.into()));
            (published.unwrap_or(event.commit.time), true, uuid)
        }
        Payload::Audit(payload) => (event.commit.time, true, payload.audit.int(audit_log::ID).map(Key::Int)),
    }
}
