//! Scheduled changes: what goes live at a moment at which no row changes (SEMANTICS.md §5, "Scheduled changes").
//!
//! A timer is derived from a row that the mirror keeps, so nothing of it needs to be stored: after a restart the rows whose
//! time comes after the kept clock are armed again. The moment is one of the stream's clock; whoever drives the engine asks
//! [`Engine::next_deadline`] and says when it has come.

use std::collections::{BTreeSet, HashMap};

use super::author::Attribution;
use super::flag::Cause;
use super::group::Group;
use super::{Commit, Engine, Out};
use crate::change::{Key, Micros, Op, Row, RowChange, key_of};
use crate::mirror::{Mirror, Slot};
use crate::schema::{Table, feature_state, state_history};

/// What goes live.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Timer {
    /// A state outside versions, by its id.
    State(i64),
    /// A version, by its uuid.
    Version(Box<str>),
}

impl Timer {
    /// When it goes off, as the mirror is now.
    fn due(&self, mirror: &Mirror) -> Option<Micros> {
        match self {
            Timer::State(id) => {
                let state = mirror.row_by_id(Table::FeatureState, *id)?;
                let is_versioned = !state.is_null(feature_state::ENVIRONMENT_FEATURE_VERSION_ID);
                if is_versioned { None } else { mirror.state_goes_live(state) }
            }
            Timer::Version(uuid) => {
                let version = mirror.row(Table::FeatureVersion, &Key::Text(uuid.clone()))?;
                Mirror::version_goes_live(version)
            }
        }
    }
}

/// The timers that are armed.
#[derive(Debug, Default)]
pub(super) struct Timers {
    by_time: BTreeSet<(Micros, Timer)>,
    by_timer: HashMap<Timer, Micros>,
}

impl Timers {
    /// When the first goes off.
    pub(super) fn next(&self) -> Option<Micros> {
        self.by_time.first().map(|(at, _)| *at)
    }

    fn set(&mut self, timer: &Timer, at: Option<Micros>) {
        if let Some(before) = self.by_timer.remove(timer) {
            self.by_time.remove(&(before, timer.clone()));
        }
        if let Some(at) = at {
            self.by_timer.insert(timer.clone(), at);
            self.by_time.insert((at, timer.clone()));
        }
    }

    fn pop(&mut self) -> Option<(Micros, Timer)> {
        let (at, timer) = self.by_time.pop_first()?;
        self.by_timer.remove(&timer);
        Some((at, timer))
    }
}

impl Engine {
    /// The timers that a change may arm, move or disarm, with the moment each of them has before it.
    pub(super) fn timers_touched(&self, change: &RowChange) -> Vec<(Timer, Option<Micros>)> {
        let key = match &change.op {
            Op::Insert { new } | Op::Update { new, .. } => key_of(new),
            Op::Delete { key } => key.clone(),
            Op::Truncate => return Vec::new(),
        };
        let timers: Vec<Timer> = match (change.table, key) {
            (Table::FeatureState, Key::Int(id)) => vec![Timer::State(id)],
            (Table::FeatureVersion, Key::Text(uuid)) => vec![Timer::Version(uuid)],
            (Table::ChangeRequest, Key::Int(id)) => {
                self.mirror.states_of_request(id).map(Timer::State).collect()
            }
            _ => Vec::new(),
        };
        timers
            .into_iter()
            .map(|timer| {
                let due = timer.due(&self.mirror);
                (timer, due)
            })
            .collect()
    }

    /// Sets the timers whose moment the change committed at `committed` has moved. What is due by then is in force at once.
    /// One whose moment is as it was is left alone: it is armed, or has gone off (a commit may come late, with a time before
    /// a moment that the stream's clock has passed).
    pub(super) fn rearm(&mut self, touched: Vec<(Timer, Option<Micros>)>, committed: Micros) {
        for (timer, before) in touched {
            let due = timer.due(&self.mirror);
            if due != before {
                self.timers.set(&timer, due.filter(|at| *at > committed));
            }
        }
    }

    /// The moment whose states have been told, but for open groups: the stream's clock, or just before what is still to go live.
    pub(super) fn told_until(&self) -> Micros {
        self.timers.next().map_or(self.clock, |at| self.clock.min(just_before(at)))
    }

    /// Arms everything that is due after `now`.
    pub(super) fn arm_all(&mut self, now: Micros) {
        let states = self.mirror.requested_states().map(Timer::State).collect::<Vec<_>>();
        let versions = self.mirror.keys(Table::FeatureVersion).into_iter().filter_map(|key| match key {
            Key::Text(uuid) => Some(Timer::Version(uuid)),
            Key::Int(_) => None,
        });
        for timer in versions.chain(states) {
            let due = timer.due(&self.mirror).filter(|at| *at > now);
            self.timers.set(&timer, due);
        }
    }

    /// What is due first goes live: everything of that moment, for several changes of one flag are one.
    pub(super) fn fire(&mut self, out: Out<'_>) {
        let Some(at) = self.timers.next() else { return };
        let mut states = BTreeSet::new();
        let mut versions = BTreeSet::new();
        while self.timers.next() == Some(at) {
            match self.timers.pop() {
                Some((_, Timer::State(id))) => states.extend(self.mirror.slot_of_state(id)),
                Some((_, Timer::Version(uuid))) => {
                    let row = self.mirror.row(Table::FeatureVersion, &Key::Text(uuid));
                    versions.extend(row.map(super::version::version_slot));
                }
                None => {}
            }
        }
        let commit = Commit { end_lsn: self.position, xid: 0, time: at };
        for slot in versions {
            for told in self.version_goes_live(&slot, commit, out) {
                states.remove(&told);
            }
        }
        for slot in states {
            let state = self.mirror.in_force(&slot, at).map_or(0, |view| view.state_id());
            let cause = Cause::Schedule { name: format!("{state}@{}", at.0), commit };
            self.go_live(&slot, at, &cause, out);
        }
    }

    /// The flag values that this has told of.
    fn version_goes_live(&mut self, slot: &Slot, commit: Commit, out: Out<'_>) -> Vec<Slot> {
        let at = commit.time;
        let name = self.mirror.live_version_id(slot, at).unwrap_or_default().to_owned();
        let cause = Cause::Schedule { name, commit };
        let slots: Vec<Slot> = self.mirror.slots_of(slot.feature, Some(slot.environment)).collect();
        for slot in &slots {
            self.go_live(slot, at, &cause, out);
        }
        let late = self.group_of_late_change(slot, at, out);
        let live_before = match &late {
            Some(group) => group.live_before().map(str::to_owned),
            None => self.mirror.live_version_id(slot, just_before(at)).map(str::to_owned),
        };
        self.version_changed(slot, live_before.as_deref(), at.max(self.told_until()), &cause, out);
        slots
    }

    fn go_live(&mut self, slot: &Slot, at: Micros, cause: &Cause, out: Out<'_>) {
        let late = self.group_of_late_change(slot, at, out);
        let before = match late {
            Some(group) => group.before.map(|view| *view),
            None => self.mirror.in_force(slot, just_before(at)),
        };
        let after = self.mirror.in_force(slot, at.max(self.told_until()));
        if let Some(event) = self.flag_event(slot, before, after, &Attribution::default(), cause) {
            self.emit(event, out);
        }
    }

    /// What changed before a moment belongs to before: its group is closed. But where the stream's clock had passed the moment
    /// when the change was scheduled, states that went live later have been told: what the receivers have is what the open
    /// group began with.
    fn group_of_late_change(&mut self, slot: &Slot, at: Micros, out: Out<'_>) -> Option<Group> {
        if at <= self.clock {
            return self.take_group(slot, out);
        }
        self.close(slot, just_before(at), out);
        None
    }

    /// The row of a state's history that must be kept: the state is a draft or scheduled, and will be told with it.
    pub(super) fn pending_mark(&self, change: &RowChange) -> Option<Row> {
        let Op::Insert { new } = &change.op else { return None };
        if change.table != Table::StateHistory {
            return None;
        }
        let state = self.mirror.row_by_id(Table::FeatureState, new.int(state_history::ID)?)?;
        let is_requested = !state.is_null(feature_state::CHANGE_REQUEST_ID);
        let is_in_force = self.mirror.state_goes_live(state).is_some_and(|at| at <= self.told_until());
        (is_requested && !is_in_force).then(|| new.clone())
    }
}

fn just_before(at: Micros) -> Micros {
    Micros(at.0.saturating_sub(1))
}
