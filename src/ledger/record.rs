//! What the ledger is told, and what it gives back.

use tokio::sync::oneshot;

use super::Identity;
use crate::change::{Lsn, Micros};
use crate::event::{ChangeRequest, EndpointKey, Event, Format, Kind, Recipient};
use crate::mirror::{Persist, Slot};

/// An event with its bodies and the deliveries to be made, as it is written.
#[derive(Debug)]
pub struct EventRecord {
    pub(super) id: String,
    pub(super) kind: &'static str,
    pub(super) action: String,
    pub(super) organisation: Option<i64>,
    pub(super) project: Option<i64>,
    pub(super) environment: Option<i64>,
    pub(super) feature: Option<i64>,
    pub(super) feature_name: Option<String>,
    pub(super) change_request: Option<ChangeRequest>,
    pub(super) lsn: Lsn,
    pub(super) xid: u64,
    pub(super) commit_time: Micros,
    pub(super) reconstructed: bool,
    pub(super) lane: String,
    pub(super) sequence: String,
    pub(super) bodies: Vec<(Format, String)>,
    pub(super) recipients: Vec<Recipient>,
}

impl EventRecord {
    /// Renders the bodies that the recipients need; the default format's where nobody listens, so that an operator can
    /// still look the event up.
    pub fn new(event: &Event, recipients: Vec<Recipient>, default: Format) -> EventRecord {
        let mut formats: Vec<Format> = recipients.iter().map(|r| r.format).collect();
        formats.sort_by_key(|format| format.name());
        formats.dedup();
        if formats.is_empty() {
            formats.push(default);
        }
        EventRecord {
            id: event.id.to_string(),
            kind: event.kind.name(),
            action: event.action.to_string(),
            organisation: event.organisation,
            project: event.project,
            environment: event.environment,
            feature: event.feature,
            feature_name: event.feature_name.clone(),
            change_request: event.change_request.clone(),
            lsn: event.commit.end_lsn,
            xid: event.commit.xid,
            commit_time: event.commit.time,
            reconstructed: event.reconstructed,
            lane: lane(event),
            sequence: sequence(event),
            bodies: formats.into_iter().map(|format| (format, format.body(event))).collect(),
            recipients,
        }
    }
}

/// What keeps its order: a flag in an environment, or the audit log of an environment (or of a project).
fn lane(event: &Event) -> String {
    let id = |id: Option<i64>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    match event.feature {
        Some(feature) => format!("flag {feature}/{}", id(event.environment)),
        None => format!("audit {}/{}", id(event.project), id(event.environment)),
    }
}

/// What is numbered without gaps. Publications are numbered apart from flag events: not everybody who gets these gets those.
fn sequence(event: &Event) -> String {
    match event.kind {
        Kind::NewVersionPublished => format!("version {}", lane(event)),
        Kind::FlagUpdated | Kind::FlagDeleted | Kind::AuditLogCreated => lane(event),
    }
}

/// One thing to write. The captures of one source transaction end in [`Write::Checkpoint`]; what comes before it is
/// committed with it or not at all.
#[derive(Debug)]
pub enum Write {
    /// A row of the mirror.
    Mirror(Persist),
    /// An open group.
    KeepGroup(Slot, Vec<u8>),
    /// A group that closed.
    DropGroup(Slot),
    /// An event.
    Event(Box<EventRecord>),
    /// An endpoint's row changed: whoever sends must read it again.
    EndpointChanged(EndpointKey),
    /// An endpoint was deleted: what is queued for it is dropped (and stays on record).
    EndpointGone(EndpointKey),
    /// Everything up to this position has been written before, and everything that was due until this moment of the stream's
    /// clock.
    Checkpoint(Lsn, Micros),
    /// Where the source goes on after a restart, if the next [`Write::Checkpoint`]'s position alone does not tell.
    Cursor(String),
    /// The outcome of an attempt.
    Outcome(Outcome),
    /// Deliveries that have become too old while nothing could be sent to their endpoint: dead letters.
    Expire(Vec<(EndpointKey, i64)>),
    /// Events that are over and too old to be kept, with all that belongs to them. Answered when it is on the disk.
    Purge(Vec<i64>, oneshot::Sender<()>),
    /// Somebody was told of an endpoint's troubles at this time, when so many of its deliveries had been given up.
    Notified(EndpointKey, Micros, u64),
    /// Secrets that were replaced before this moment sign no more.
    ForgetSecrets(Micros),
    /// From here on events are recorded for this purpose. What belongs to the purpose before comes before it, and a
    /// [`Write::Checkpoint`] after it. Answered when it is on the disk.
    Purpose(Purpose, oneshot::Sender<()>),
    /// Changes were missed for this reason: nobody may go on from here. Answered when it is on the disk.
    Broken(String, oneshot::Sender<()>),
    /// From here on the ledger goes on in the source of this identity, at the next [`Write::Checkpoint`]. Open groups and what
    /// was broken are forgotten: the mirror's rows that differ and the events of what was missed come with it.
    Rebase(Identity),
    /// Leaves no trace: a writer that has nothing else to do shows by it that it gets on ([`crate::pulse`]).
    Nothing,
}

/// What becomes of the deliveries of new events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// They are sent.
    Send,
    /// They are compared with what Flagsmith sent (shadow mode). From the start they are on record as such and are never due,
    /// so that whoever sends later sends none of them, however the comparison ended.
    Shadow,
}

impl Purpose {
    /// The name in the ledger.
    pub(super) fn name(self) -> &'static str {
        match self {
            Purpose::Send => "send",
            Purpose::Shadow => "shadow",
        }
    }
}

/// What one attempt came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// To whom.
    pub endpoint: EndpointKey,
    /// `event.seq`
    pub event: i64,
    /// The lane of the delivery.
    pub lane: String,
    /// Counted from 1.
    pub attempt: u32,
    /// When it began.
    pub at: Micros,
    /// The answer's status code, if there was an answer.
    pub http_status: Option<u16>,
    /// How long it took.
    pub milliseconds: u64,
    /// Why it failed, without secrets.
    pub error: Option<String>,
    /// The beginning of the answer's body.
    pub answer: Option<String>,
    /// Whether an operator had asked for this delivery again.
    pub replay: bool,
    /// What is to be done now.
    pub verdict: Verdict,
    /// The endpoint's breaker, if the attempt has changed it.
    pub breaker: Option<BreakerState>,
    /// The endpoint is back after an outage: what waits for its next attempt need not wait longer.
    pub hasten: bool,
}

/// What is to be done after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Answered with 2xx.
    Delivered,
    /// Try again at this time.
    Retry(Micros),
    /// Given up.
    Dead,
    /// The endpoint wants nothing more (HTTP 410): it is paused, and the delivery waits.
    Pause,
}

/// How long an endpoint has been failing, and whether its breaker is open. What moves it is in `delivery`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BreakerState {
    /// Failures since the last success.
    pub failures: u32,
    /// When the first of them was.
    pub failing_since: Option<Micros>,
    /// Open since then: nothing is sent but probes.
    pub opened_at: Option<Micros>,
    /// When the next probe is due, while it is open.
    pub probe_at: Option<Micros>,
    /// Probes that have failed since it opened.
    pub probes: u32,
}

/// Why nothing is sent to an endpoint until an operator resumes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// Since when.
    pub at: Micros,
    /// Who paused it: `operator`, or `endpoint` (HTTP 410).
    pub by: String,
    /// What they said.
    pub why: String,
}

/// What is kept of a lane beside its deliveries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneState {
    /// Set while the endpoint is paused.
    pub pause: Option<Pause>,
    /// How it has been doing.
    pub breaker: BreakerState,
    /// Deliveries that were given up, ever.
    pub dead: u64,
    /// When somebody was last told of its troubles.
    pub notified_at: Option<Micros>,
    /// `dead` at that time.
    pub notified_dead: u64,
}

/// Whose endpoint it is, as the mirror has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// `organisations_organisation.name`
    pub organisation: Option<String>,
    /// `organisations_organisation.webhook_notification_email`: who wants to know of failures.
    pub email: Option<String>,
    /// `environments_environment.name`, of an environment's endpoint.
    pub environment: Option<String>,
}

/// A delivery that is due.
#[derive(Debug, Clone)]
pub struct Due {
    /// To whom.
    pub endpoint: EndpointKey,
    /// `event.seq`
    pub event: i64,
    /// The event's id.
    pub event_id: String,
    /// What happened, for the header.
    pub action: String,
    /// The feature's name, for the log.
    pub feature: Option<String>,
    /// The environment's id, where there is one.
    pub environment: Option<i64>,
    /// The event's number among those of its flag, from 1.
    pub sequence: i64,
    /// The change request that caused it: id and title.
    pub change_request: Option<(i64, String)>,
    /// Whether it was made of a difference: the changes themselves were missed.
    pub reconstructed: bool,
    /// What keeps its order.
    pub lane: String,
    /// The exact bytes to send.
    pub body: String,
    /// Attempts made so far.
    pub attempts: u32,
    /// Of those, attempts made before an operator asked for it again.
    pub attempts_before: u32,
    /// Whether an operator asked for it again.
    pub replay: bool,
    /// When it was queued: when the event was recorded, or when an operator asked for it again.
    pub queued_at: Micros,
    /// When the change was committed.
    pub commit_time: Micros,
    /// When the event was recorded.
    pub recorded_at: Micros,
}

/// How many deliveries of an endpoint are in which state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// To be sent, or to be tried again.
    pub pending: u64,
    /// Of those: failed at least once.
    pub retrying: u64,
    /// Answered with 2xx.
    pub delivered: u64,
    /// Given up.
    pub dead: u64,
    /// Their endpoint was deleted.
    pub dropped: u64,
    /// Recorded in shadow mode: never sent.
    pub shadowed: u64,
    /// Of all of these: an operator asked for them again.
    pub replays: u64,
    /// Commit time of the oldest pending one; of one that an operator asked for again, when that was.
    pub oldest_pending: Option<Micros>,
    /// The latest failure of a pending one, or of one that was given up.
    pub last_error: Option<String>,
}
