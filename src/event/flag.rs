//! Flag events: how a flag value changed, who changed it, and what led to it (SEMANTICS.md §2, §5).

use super::author::{Attribution, Mark};
use super::{
    Action, Author, ChangeRequest, Commit, Engine, Event, EventId, FlagPayload, Kind, Payload, Scope, Verb,
};
use crate::change::Micros;
use crate::mirror::{Slot, StateView, Target};
use crate::schema::{Table, change_request, feature, feature_state, feature_version, project};

/// What led to an event.
pub(super) enum Cause {
    /// Row changes.
    Change {
        /// 64-bit id of the first transaction.
        xid: u64,
        /// The commit that completed them.
        commit: Commit,
    },
    /// The moment that something was scheduled for.
    Schedule {
        /// The version's uuid, or the state's id with its `live_from`.
        name: String,
        /// The moment.
        commit: Commit,
    },
    /// Changes that were missed, and that only their outcome tells of.
    Missed {
        /// Names the moment at which the outcome was seen.
        name: String,
        /// That moment.
        commit: Commit,
    },
}

impl Cause {
    pub(super) fn commit(&self) -> Commit {
        match self {
            Cause::Change { commit, .. } | Cause::Schedule { commit, .. } | Cause::Missed { commit, .. } => {
                *commit
            }
        }
    }

    /// Its part of the event's id (DESIGN.md).
    pub(super) fn text(&self) -> String {
        match self {
            Cause::Change { xid, .. } => xid.to_string(),
            Cause::Schedule { name, .. } | Cause::Missed { name, .. } => name.clone(),
        }
    }

    pub(super) fn verb(&self, verb: Verb) -> Verb {
        match self {
            Cause::Change { .. } | Cause::Missed { .. } => verb,
            Cause::Schedule { .. } => Verb::Scheduled,
        }
    }
}

impl Engine {
    /// The event that tells how a flag value changed, if it did.
    pub(super) fn flag_event(
        &self,
        slot: &Slot,
        before: Option<StateView>,
        after: Option<StateView>,
        attribution: &Attribution,
        cause: &Cause,
    ) -> Option<Event> {
        if !self.is_told_of(slot.environment) {
            return None;
        }
        let verb = match (&before, &after) {
            (None, None) => return None,
            (Some(before), Some(after)) if self.is_same(before, after) => return None,
            (None, Some(_)) => Verb::Created,
            (Some(_), Some(_)) => Verb::Updated,
            (Some(_), None) => Verb::Removed,
        };
        let mark = self.mark(slot, before.as_ref(), after.as_ref(), attribution, cause);
        let author = mark.as_ref().map_or(Author::Unknown, |mark| mark.author(&self.mirror));
        let commit = cause.commit();
        let at = mark.as_ref().map_or(commit.time, |mark| mark.at);
        let shown = after.as_ref().or(before.as_ref())?;
        let kind = if after.is_some() { Kind::FlagUpdated } else { Kind::FlagDeleted };
        Some(Event {
            id: EventId::new(&self.system_id, kind, &shown.state_id().to_string(), &cause.text()),
            kind,
            action: Action { verb: cause.verb(verb), scope: scope(slot) },
            organisation: shown.project.int(project::ORGANISATION_ID),
            project: shown.project.int(project::ID),
            environment: Some(slot.environment),
            feature: Some(slot.feature),
            feature_name: shown.feature.text(feature::NAME).map(str::to_owned),
            change_request: self.change_request_of(slot, before.as_ref(), after.as_ref(), commit.time),
            commit,
            reconstructed: false,
            payload: Payload::Flag(Box::new(FlagPayload { previous: before, new: after, author, at })),
        })
    }

    /// Who changed it and when (SEMANTICS.md §2): the publication of a version, else the history rows of the edit.
    fn mark(
        &self,
        slot: &Slot,
        before: Option<&StateView>,
        after: Option<&StateView>,
        attribution: &Attribution,
        cause: &Cause,
    ) -> Option<Mark> {
        let Some(after) = after else {
            // Missing in the version that is live now: whoever published that removed it.
            let own = before?.version.as_ref();
            let live = self.mirror.live_version(slot.feature, slot.environment, cause.commit().time);
            let other = live.filter(|live| own.is_some_and(|own| own != *live));
            let publication = other.and_then(Mark::of_publication);
            return publication.or_else(|| attribution.of_removal().cloned());
        };
        let publication = after.version.as_ref().and_then(Mark::of_publication);
        let kept = || self.mirror.mark_of(after.state_id()).and_then(Mark::of_state_history);
        publication.or_else(|| attribution.of_change().cloned()).or_else(kept)
    }

    /// The change request that a flag value changed by: of the version that went live, or of the state.
    fn change_request_of(
        &self,
        slot: &Slot,
        before: Option<&StateView>,
        after: Option<&StateView>,
        at: Micros,
    ) -> Option<ChangeRequest> {
        let version_before = before.and_then(|view| view.version.as_ref());
        let live = self.mirror.live_version(slot.feature, slot.environment, at);
        let published = live.filter(|live| version_before.is_some_and(|before| before != *live));
        if let Some(version) = published {
            return self.change_request(version.int(feature_version::CHANGE_REQUEST_ID)?);
        }
        let after =
            after.filter(|after| before.is_none_or(|before| before.state_id() != after.state_id()))?;
        self.change_request(after.state.int(feature_state::CHANGE_REQUEST_ID)?)
    }

    pub(super) fn change_request(&self, id: i64) -> Option<ChangeRequest> {
        let row = self.mirror.row_by_id(Table::ChangeRequest, id);
        let title = row.and_then(|row| row.text(change_request::TITLE)).unwrap_or_default().to_owned();
        Some(ChangeRequest { id, title })
    }

    /// Whether anybody is told of flags in an environment: not below a deletion, and not while a clone fills it.
    pub(super) fn is_told_of(&self, environment: i64) -> bool {
        self.mirror.environment_is_alive(environment)
            && !self.mirror.environment_is_being_created(environment)
    }

    pub(super) fn is_same(&self, before: &StateView, after: &StateView) -> bool {
        before.looks_like(after) && (!self.metadata_events || before.same_feature_metadata(after))
    }
}

fn scope(slot: &Slot) -> Option<Scope> {
    match slot.target {
        Target::Default => Some(Scope::Default),
        Target::Segment(_) => Some(Scope::Segment),
        Target::Identity(_) => Some(Scope::Identity),
        Target::Version => None,
    }
}
