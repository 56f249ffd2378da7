//! Settling: the changes of one flag value that belong together (DESIGN.md, "one click, one event").
//!
//! Windows are measured between commit times in the stream, so a replay after a crash groups the same way. An open group
//! is kept in the ledger: the daemon continues in the middle of a click.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Commit;
use super::author::Attribution;
use crate::change::{Lsn, Micros};
use crate::mirror::StateView;

/// How long changes of one flag value are collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settle {
    /// A group closes after this much quiet; zero closes it with its transaction.
    pub quiet: Duration,
    /// A group closes this long after its first change at the latest. Also how long the states of a feature that is
    /// marked deleted are waited for.
    pub max: Duration,
}

/// How a change touches a flag value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touch {
    /// A row of the state itself: state, value, variants, override, history.
    Own,
    /// The feature's metadata: no change of the flag, but the state before it shows the old metadata.
    Metadata,
    /// The feature was marked deleted: the state's own deletion follows, or never comes.
    FeatureGone,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Group {
    /// 64-bit xid of the first transaction: the cause in the event's id.
    pub(super) xid: u64,
    /// First of the changes that `max` is counted from.
    first: Micros,
    last: Micros,
    commit_lsn: Lsn,
    commit_xid: u64,
    /// The state in force before the first change.
    pub(super) before: Option<Box<StateView>>,
    /// What a row changed by bulk SQL does not have: a hundred thousand groups must stay cheap.
    details: Option<Box<Details>>,
    /// Born with its environment: its creation is no event.
    pub(super) silent: bool,
    /// Whether the ledger has it.
    #[serde(skip, default = "yes")]
    pub(super) persisted: bool,
    /// Whether the transaction that is being applied has touched it.
    #[serde(skip)]
    pub(super) touched: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Details {
    feature_gone: Option<Micros>,
    own_rows_gone: bool,
    attribution: Attribution,
    /// States of the group that the mirror has dropped, whose history rows may still come.
    gone_states: Vec<i64>,
    /// Of the group of a version: the version that was live before.
    live_before: Option<String>,
}

fn yes() -> bool {
    true
}

impl Group {
    pub(super) fn open(commit: Commit, before: Option<StateView>) -> Group {
        Group {
            xid: commit.xid,
            first: commit.time,
            last: commit.time,
            commit_lsn: commit.end_lsn,
            commit_xid: commit.xid,
            before: before.map(Box::new),
            details: None,
            silent: false,
            persisted: false,
            touched: false,
        }
    }

    pub(super) fn touch(&mut self, touch: Touch, commit: Commit) {
        self.last = self.last.max(commit.time);
        self.commit_lsn = commit.end_lsn;
        self.commit_xid = commit.xid;
        match touch {
            Touch::Own | Touch::Metadata => {}
            Touch::FeatureGone => {
                self.details().feature_gone.get_or_insert(commit.time);
            }
        }
    }

    /// The state's own deletion has come: the group settles like any other from here on.
    pub(super) fn own_rows_are_gone(&mut self, at: Micros) {
        let details = self.details();
        let was_known = std::mem::replace(&mut details.own_rows_gone, true);
        if !was_known && details.feature_gone.is_some() {
            self.first = at;
        }
    }

    fn details(&mut self) -> &mut Details {
        self.details.get_or_insert_default()
    }

    /// The version that was live before the first change; of the group of a version.
    pub(super) fn set_live_before(&mut self, version: Option<&str>) {
        if let Some(version) = version {
            self.details().live_before = Some(version.to_owned());
        }
    }

    pub(super) fn live_before(&self) -> Option<&str> {
        self.details.as_ref()?.live_before.as_deref()
    }

    /// A state of the group that the mirror has dropped.
    pub(super) fn note_gone_state(&mut self, state: i64) {
        self.details().gone_states.push(state);
    }

    /// States of the group that the mirror has dropped, whose history rows may still come.
    pub(super) fn gone_states(&self) -> &[i64] {
        self.details.as_ref().map_or(&[], |details| &details.gone_states)
    }

    pub(super) fn attribution(&mut self) -> &mut Attribution {
        &mut self.details().attribution
    }

    pub(super) fn known_attribution(&self) -> Option<&Attribution> {
        self.details.as_ref().map(|details| &details.attribution)
    }

    /// The commit that completed it.
    pub(super) fn commit(&self) -> Commit {
        Commit { end_lsn: self.commit_lsn, xid: self.commit_xid, time: self.last }
    }

    fn waits_for_own_deletion(&self) -> bool {
        self.details.as_ref().is_some_and(|d| d.feature_gone.is_some() && !d.own_rows_gone)
    }

    /// Whether it must stay open after its transaction.
    pub(super) fn stays_open(&self, settle: Settle, is_bulk: bool) -> bool {
        self.waits_for_own_deletion() || (!settle.quiet.is_zero() && !is_bulk)
    }

    /// When it closes if nothing more happens, in stream time.
    pub(super) fn deadline(&self, settle: Settle) -> Micros {
        match self.details.as_ref().and_then(|details| details.feature_gone) {
            Some(marked) if self.waits_for_own_deletion() => marked.plus(settle.max),
            _ => self.last.plus(settle.quiet).min(self.first.plus(settle.max)),
        }
    }
}
