//! Versioned environments: the event of a version that went live, and forgetting those that it superseded (SEMANTICS.md §5,
//! "Versioned environments"). What the version changed in the states is told as flag events, by the same comparison as ever.

use super::flag::Cause;
use super::{Action, Engine, Event, EventId, Kind, Out, Payload, Verb, VersionPayload};
use crate::change::{Micros, Row};
use crate::mirror::{Mirror, Slot, Target, flag_of_version};
use crate::schema::{Table, environment, feature, feature_version, project};

/// What stands for the version of a feature in an environment.
pub(super) fn version_slot(version: &Row) -> Slot {
    let (feature, environment) = flag_of_version(version);
    Slot { feature, environment, target: Target::Version }
}

impl Mirror {
    /// The uuid of the version that is live in a slot's environment.
    pub(super) fn live_version_id(&self, slot: &Slot, at: Micros) -> Option<&str> {
        self.live_version(slot.feature, slot.environment, at)?.text(feature_version::UUID)
    }
}

impl Engine {
    /// A version may have gone live: tells it, and forgets what it superseded.
    pub(super) fn version_changed(
        &mut self,
        slot: &Slot,
        live_before: Option<&str>,
        at: Micros,
        cause: &Cause,
        out: Out<'_>,
    ) {
        let live = self.mirror.live_version_id(slot, at);
        // The first version of a flag is no publication: Flagsmith makes it when versioning is turned on, or with the feature.
        if live_before.is_some()
            && live.is_some()
            && live_before != live
            && let Some(event) = self.version_event(slot, at, cause)
        {
            self.emit(event, out);
        }
        self.forget_superseded(slot.feature, slot.environment, at, out);
    }

    /// Forgets the versions of a flag that another has superseded.
    fn forget_superseded(&mut self, feature: i64, environment: i64, at: Micros, out: Out<'_>) {
        for version in self.mirror.superseded_versions(feature, environment, at) {
            self.mirror.forget_version(&version, &mut |persist| out(super::Effect::Mirror(persist)));
        }
    }

    /// Forgets all versions that others have superseded: a snapshot brings them. Where a change of versions is still open, what it
    /// supersedes is forgotten when that closes, as it would have been without a restart.
    pub fn forget_all_superseded(&mut self, out: Out<'_>) {
        for (feature, environment) in self.mirror.versioned_flags() {
            if !self.groups.contains_key(&Slot { feature, environment, target: Target::Version }) {
                self.forget_superseded(feature, environment, self.clock(), out);
            }
        }
    }

    pub(super) fn version_event(&self, slot: &Slot, at: Micros, cause: &Cause) -> Option<Event> {
        if !self.is_told_of(slot.environment) {
            return None;
        }
        let version = self.mirror.live_version(slot.feature, slot.environment, at)?.clone();
        let feature_row = self.mirror.row_by_id(Table::Feature, slot.feature)?.clone();
        if !feature_row.is_null(feature::DELETED_AT) {
            return None;
        }
        let environment_row = self.mirror.row_by_id(Table::Environment, slot.environment)?;
        let project_row = self.mirror.project_of(environment_row)?;
        let publisher = version
            .int(feature_version::PUBLISHED_BY_ID)
            .and_then(|id| self.mirror.row_by_id(Table::User, id))
            .cloned();
        let uuid = version.text(feature_version::UUID).unwrap_or_default();
        Some(Event {
            id: EventId::new(&self.system_id, Kind::NewVersionPublished, uuid, &cause.text()),
            kind: Kind::NewVersionPublished,
            action: Action { verb: cause.verb(Verb::Created), scope: None },
            organisation: project_row.int(project::ORGANISATION_ID),
            project: project_row.int(project::ID),
            environment: environment_row.int(environment::ID),
            feature: Some(slot.feature),
            feature_name: feature_row.text(feature::NAME).map(str::to_owned),
            change_request: version
                .int(feature_version::CHANGE_REQUEST_ID)
                .and_then(|id| self.change_request(id)),
            commit: cause.commit(),
            reconstructed: false,
            payload: Payload::Version(Box::new(VersionPayload {
                states: self.mirror.states_of_version(&version),
                version,
                feature: feature_row,
                publisher,
            })),
        })
    }
}
