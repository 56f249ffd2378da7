//! Events: which touched rows mean which webhook, and what it says.
//!
//! Pure: transactions and moments in, events out; no I/O, no clock. Rules: SEMANTICS.md §5; identity and settling:
//! DESIGN.md. [`Engine`] holds the rules, [`mod@format`] the bodies, `route` who gets an event.

mod audit;
mod author;
mod engine;
#[cfg(test)]
mod engine_tests;
mod flag;
pub mod format;
mod group;
mod id;
mod missed;
#[cfg(test)]
mod missed_tests;
mod route;
mod sample;
mod schedule;
#[cfg(test)]
mod schedule_tests;
mod version;

use crate::change::{Lsn, Micros, Row};
use crate::mirror::StateView;
use crate::schema::{api_key, user};

pub use engine::{Effect, Engine, Out, Settle};
pub use format::Format;
pub use id::EventId;
pub use missed::Missed;
pub use route::{EndpointKey, EndpointName, Formats, Recipient, Routing, Subscription, Wanted, recipients};
pub use sample::sample;

/// `event_type` of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A flag came to be or changed.
    FlagUpdated,
    /// A flag or an override is gone.
    FlagDeleted,
    /// A version of a feature went live in a versioned environment.
    NewVersionPublished,
    /// A row of the audit log.
    AuditLogCreated,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] =
        [Kind::FlagUpdated, Kind::FlagDeleted, Kind::NewVersionPublished, Kind::AuditLogCreated];

    /// The name in bodies, in the ledger and in event ids.
    pub fn name(self) -> &'static str {
        match self {
            Kind::FlagUpdated => "FLAG_UPDATED",
            Kind::FlagDeleted => "FLAG_DELETED",
            Kind::NewVersionPublished => "NEW_VERSION_PUBLISHED",
            Kind::AuditLogCreated => "AUDIT_LOG_CREATED",
        }
    }
}

/// What happened to a flag, which the documented body does not tell apart; sent in the header `X-Flagpost-Action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// It was not there before.
    Created,
    /// It was there before.
    Updated,
    /// It is not there any more.
    Removed,
    /// Its time had come: a change that was written before went live.
    Scheduled,
}

/// For whom the flag value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everybody.
    Default,
    /// A segment override.
    Segment,
    /// An identity override.
    Identity,
}

/// What happened, and to which kind of flag value (`None` for an audit row).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Action {
    /// What happened.
    pub verb: Verb,
    /// For whom the flag value is.
    pub scope: Option<Scope>,
}

impl std::fmt::Display for Action {
    /// An item with a parameter, as in RFC 8941: `updated;scope=segment`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.verb {
            Verb::Created => "created",
            Verb::Updated => "updated",
            Verb::Removed => "removed",
            Verb::Scheduled => "scheduled",
        })?;
        match self.scope {
            None => Ok(()),
            Some(Scope::Default) => f.write_str(";scope=default"),
            Some(Scope::Segment) => f.write_str(";scope=segment"),
            Some(Scope::Identity) => f.write_str(";scope=identity"),
        }
    }
}

/// Who made a change.
#[derive(Debug, Clone)]
pub enum Author {
    /// A row of `users_ffadminuser`.
    User(Row),
    /// A row of `api_keys_masterapikey`.
    ApiKey(Row),
    /// Nobody that Flagsmith knows: changed by SQL, or the user is gone.
    Unknown,
}

impl Author {
    /// `changed_by` of `current`.
    pub fn email(&self) -> String {
        match self {
            Author::User(row) => row.text(user::EMAIL).unwrap_or_default().to_owned(),
            Author::ApiKey(row) => row.text(api_key::NAME).unwrap_or_default().to_owned(),
            Author::Unknown => String::new(),
        }
    }

    /// `changed_by` of `classic`.
    pub fn full_name(&self) -> String {
        match self {
            Author::User(row) => {
                let first = row.text(user::FIRST_NAME).unwrap_or_default();
                let last = row.text(user::LAST_NAME).unwrap_or_default();
                format!("{first} {last}").trim().to_owned()
            }
            Author::ApiKey(_) | Author::Unknown => self.email(),
        }
    }
}

/// The parts of a flag event's body.
#[derive(Debug, Clone)]
pub struct FlagPayload {
    /// The state after the change; `None` when it is gone.
    pub new: Option<StateView>,
    /// The state before the change; `None` when there was none.
    pub previous: Option<StateView>,
    /// Who changed it.
    pub author: Author,
    /// When: the history row's date, or the commit time.
    pub at: Micros,
}

/// The parts of an audit event's body, as they were at the commit.
#[derive(Debug, Clone)]
pub struct AuditPayload {
    /// `audit_auditlog`
    pub audit: Row,
    /// `users_ffadminuser`
    pub author: Option<Row>,
    /// `projects_project`
    pub project: Option<Row>,
    /// `environments_environment`
    pub environment: Option<Row>,
}

/// The parts of a version event's body.
#[derive(Debug, Clone)]
pub struct VersionPayload {
    /// `feature_versioning_environmentfeatureversion`
    pub version: Row,
    /// `features_feature`
    pub feature: Row,
    /// `users_ffadminuser`: who published it, if a user did.
    pub publisher: Option<Row>,
    /// Its states, in id order.
    pub states: Vec<StateView>,
}

/// What an event says.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Of [`Kind::FlagUpdated`] and [`Kind::FlagDeleted`].
    Flag(Box<FlagPayload>),
    /// Of [`Kind::NewVersionPublished`].
    Version(Box<VersionPayload>),
    /// Of [`Kind::AuditLogCreated`].
    Audit(Box<AuditPayload>),
}

/// Something that receivers are told.
#[derive(Debug, Clone)]
pub struct Event {
    /// Deterministic: the same after a restart, a failover and in both source modes.
    pub id: EventId,
    /// `event_type`.
    pub kind: Kind,
    /// What happened.
    pub action: Action,
    /// `organisations_organisation.id`, where it is known.
    pub organisation: Option<i64>,
    /// `projects_project.id`, where there is one.
    pub project: Option<i64>,
    /// `environments_environment.id`, where there is one.
    pub environment: Option<i64>,
    /// `features_feature.id` of a flag event.
    pub feature: Option<i64>,
    /// The feature's name of a flag event, for people.
    pub feature_name: Option<String>,
    /// The change request that caused it, if one did.
    pub change_request: Option<ChangeRequest>,
    /// Position, transaction and time of the commit that completed it.
    pub commit: Commit,
    /// Whether it was made of a difference: the changes themselves were missed.
    pub reconstructed: bool,
    /// What it says.
    pub payload: Payload,
}

/// A row of `workflows_core_changerequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeRequest {
    /// `id`
    pub id: i64,
    /// `title`; empty where the mirror does not have the row.
    pub title: String,
}

/// Where in the stream something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// End of the commit record.
    pub end_lsn: Lsn,
    /// 64-bit transaction id.
    pub xid: u64,
    /// By the server's clock.
    pub time: Micros,
}
