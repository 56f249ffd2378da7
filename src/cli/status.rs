//! `flagpost status`: where the stream is, what is queued, how the endpoints are.
//!
//! It reads: the database by SQL, the ledger beside a running daemon or without one. Each part is shown without the other.

mod endpoints;
mod outbox;
pub(super) mod wrong;

use std::time::Duration;

use endpoints::EndpointPart;
use outbox::OutboxPart;
use serde::Serialize;

use super::size;
use crate::config::{Config, Mode};
use crate::error::{Error, Result};
use crate::ledger::{Ledger, Reader};
use crate::room::ENOUGH;
use crate::source::{SlotFacts, connect, reader_of, server_facts, slot_facts};

/// So long the status page waits for the database.
const SERVER_TELLS_WITHIN: Duration = Duration::from_secs(5);

/// How everything is.
#[derive(Serialize)]
pub(super) struct Status {
    /// `source.mode`
    source: &'static str,
    database: DatabasePart,
    ledger: LedgerPart,
    endpoints: Vec<EndpointPart>,
}

#[derive(Serialize)]
struct DatabasePart {
    place: String,
    server_version: Option<String>,
    /// Of source `replication`.
    slot: Option<SlotPart>,
    /// Of source `outbox`.
    outbox: Option<OutboxPart>,
    /// Why the rest is missing.
    error: Option<String>,
}

impl DatabasePart {
    /// Of which nothing is known.
    fn new(config: &Config) -> DatabasePart {
        let place = config.database.shown();
        DatabasePart { place, server_version: None, slot: None, outbox: None, error: None }
    }
}

#[derive(Serialize)]
struct SlotPart {
    name: String,
    active: bool,
    active_pid: Option<i32>,
    wal_status: String,
    confirmed: String,
    lag_bytes: Option<i64>,
    /// See [`SlotFacts::lag_seconds`].
    lag_seconds: Option<f64>,
    retained_bytes: Option<i64>,
    /// See [`SlotFacts::safe_bytes`].
    safe_bytes: Option<i64>,
    /// Why the server gave it up.
    invalidation_reason: Option<String>,
    /// Whether standbys are to have it; `None` where the server knows no failover slots.
    failover: Option<bool>,
    /// Whether this is a standby that has it from its primary.
    synced: Option<bool>,
}

#[derive(Clone, Serialize)]
struct LedgerPart {
    directory: String,
    exists: bool,
    checkpoint: Option<String>,
    events: Option<u64>,
    /// Free on its disk; `None` where the file system does not tell.
    free_bytes: Option<u64>,
    /// There is so little room that the daemon has stopped reading.
    full: bool,
    /// Why changes are known to have been missed: the daemon does not start.
    missed: Option<String>,
    error: Option<String>,
    /// The name by which an outbox belongs to it.
    #[serde(skip)]
    reader: Option<String>,
}

/// What the ledger tells.
#[derive(Clone)]
pub(super) struct OfLedger {
    part: LedgerPart,
    endpoints: Vec<EndpointPart>,
    exit_code: u8,
}

/// What the database tells beside what the ledger has told.
pub(super) async fn with_database(config: &Config, ledger: OfLedger) -> Status {
    let asking = database_part(config, ledger.part.reader.as_deref());
    let database = match tokio::time::timeout(SERVER_TELLS_WITHIN, asking).await {
        Ok((database, _)) => database,
        Err(_) => DatabasePart {
            error: Some(format!("it has not answered for {} s", SERVER_TELLS_WITHIN.as_secs())),
            ..DatabasePart::new(config)
        },
    };
    Status { source: config.mode.name(), database, ledger: ledger.part, endpoints: ledger.endpoints }
}

pub(super) async fn status(config: &Config, json: bool) -> Result<u8> {
    let (status, code) = gather(config).await;
    if json {
        say!("{}", to_json(&status)?);
    } else {
        print_text(config, &status);
    }
    Ok(code)
}

/// What `status --json` prints.
pub(super) async fn json(config: &Config) -> Result<String> {
    to_json(&gather(config).await.0)
}

async fn gather(config: &Config) -> (Status, u8) {
    let OfLedger { part: ledger, endpoints, exit_code: ledger_code } = of_ledger(config);
    let (database, database_code) = database_part(config, ledger.reader.as_deref()).await;
    let status = Status { source: config.mode.name(), database, ledger, endpoints };
    (status, database_code.max(ledger_code))
}

fn to_json(status: &Status) -> Result<String> {
    serde_json::to_string_pretty(status)
        .map_err(|e| Error::internal(format!("the status cannot be written as JSON: {e}")))
}

async fn database_part(config: &Config, reader: Option<&str>) -> (DatabasePart, u8) {
    let mut part = DatabasePart::new(config);
    match read(config, reader, &mut part).await {
        Ok(()) => (part, 0),
        Err(error) => {
            part.error = Some(error.to_string());
            (part, error.kind().exit_code())
        }
    }
}

async fn read(config: &Config, reader: Option<&str>, part: &mut DatabasePart) -> Result<()> {
    let client = connect(&config.database).await?;
    part.server_version = Some(server_facts(&client, &config.database).await?.version_text);
    match config.mode {
        Mode::Replication => {
            let slot = slot_facts(&client, &config.database, &config.names.slot).await?;
            part.slot = slot.map(|slot| slot_part(&config.names.slot, slot));
        }
        Mode::Outbox => part.outbox = outbox::read(config, &client, reader).await?,
    }
    Ok(())
}

impl SlotPart {
    fn is_lost(&self) -> bool {
        self.wal_status == "lost" || self.invalidation_reason.is_some()
    }
}

fn slot_part(name: &str, slot: SlotFacts) -> SlotPart {
    SlotPart {
        name: name.to_owned(),
        active: slot.active_pid.is_some(),
        active_pid: slot.active_pid,
        confirmed: slot.confirmed.to_string(),
        lag_bytes: slot.lag_bytes,
        lag_seconds: slot.lag_seconds(),
        retained_bytes: slot.retained_bytes,
        safe_bytes: slot.safe_bytes,
        invalidation_reason: slot.invalidation,
        failover: slot.failover,
        synced: slot.synced,
        wal_status: slot.wal_status,
    }
}

/// Reads through all deliveries.
pub(super) fn of_ledger(config: &Config) -> OfLedger {
    let free_bytes = Ledger::room(&config.state_dir);
    let mut part = LedgerPart {
        directory: config.state_dir.display().to_string(),
        exists: Ledger::exists(&config.state_dir),
        checkpoint: None,
        events: None,
        free_bytes,
        full: free_bytes.is_some_and(|free| free < ENOUGH),
        error: None,
        missed: None,
        reader: None,
    };
    if !part.exists {
        return OfLedger { part, endpoints: Vec::new(), exit_code: 0 };
    }
    let mut read = || {
        let reader = Reader::open(&config.state_dir)?;
        part.checkpoint = reader.checkpoint()?.map(|lsn| lsn.to_string());
        part.events = Some(reader.event_count()?);
        part.missed = reader.meta("broken")?;
        let identity = reader.identity()?;
        part.reader = identity.and_then(|identity| reader_of(&identity.slot).map(str::to_owned));
        endpoints::read(config, &reader)
    };
    match read() {
        Ok(endpoints) => OfLedger { part, endpoints, exit_code: 0 },
        Err(error) => {
            part.error = Some(error.to_string());
            OfLedger { part, endpoints: Vec::new(), exit_code: error.kind().exit_code() }
        }
    }
}

fn print_text(config: &Config, status: &Status) {
    let line = |name: &str, text: String| say!("{name:<10} {text}");
    let database = &status.database;
    let version = database.server_version.as_ref().map(|v| format!(" (PostgreSQL {v})")).unwrap_or_default();
    line("database", format!("{}{version}", database.place));
    if let Some(error) = &database.error {
        line("", error.clone());
    }
    line("source", config.mode.name().to_owned());
    match (config.mode, &database.slot, &database.outbox) {
        _ if database.error.is_some() => {}
        (Mode::Replication, Some(slot), _) => print_slot(slot),
        (Mode::Replication, None, _) => {
            let mend = match status.ledger.checkpoint {
                Some(_) => {
                    "it is gone, and changes with it: \"flagpost recover\" sends receivers what was missed"
                }
                None => "it is not there: \"flagpost setup\" makes it",
            };
            line("slot", format!("{:?}: {mend}", config.names.slot));
        }
        (Mode::Outbox, _, Some(outbox)) => outbox::print(outbox),
        (Mode::Outbox, _, None) => {
            line("outbox", "it is not there: \"flagpost setup --mode outbox\" makes it".to_owned());
        }
    }
    print_ledger(&status.ledger);
    if let Some(outbox) = &database.outbox {
        outbox::print_troubles(outbox);
    }
    if let Some(slot) = database.slot.as_ref().filter(|slot| slot.is_lost()) {
        let reason = slot.invalidation_reason.as_deref().map(|reason| format!(" ({reason})"));
        say!();
        say!(
            "SLOT LOST  the server has given slot {:?} up{}: stop flagpost and run \"flagpost recover\", which sends receivers \
             what was missed",
            slot.name,
            reason.unwrap_or_default()
        );
    }
    if let Some(reason) = &status.ledger.missed {
        say!();
        say!("CHANGES MISSED  {reason}");
    }
    if status.ledger.full {
        print_full(&status.ledger, database.slot.as_ref());
    }
    endpoints::print(&status.endpoints);
}

fn print_slot(slot: &SlotPart) {
    let line = |name: &str, text: String| say!("{name:<10} {text}");
    let reader = slot
        .active_pid
        .map_or_else(|| "nobody reads it".to_owned(), |pid| format!("read by the server's process {pid}"));
    line(
        "slot",
        format!("{:?}: {reader}, log {}, confirmed to {}", slot.name, slot.wal_status, slot.confirmed),
    );
    let bytes = |count: Option<i64>| count.map_or_else(|| "unknown".to_owned(), size::bytes);
    let seconds = slot.lag_seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
    let seconds = seconds.map(|span| format!(", {}", size::span(span))).unwrap_or_default();
    line("lag", format!("{}{seconds}", bytes(slot.lag_bytes)));
    let safe = slot.safe_bytes.map(|safe| format!(", lost after {} more", size::bytes(safe.max(0))));
    line(
        "retained",
        format!("{} of the server's log{}", bytes(slot.retained_bytes), safe.unwrap_or_default()),
    );
    match (slot.failover, slot.synced) {
        (_, Some(true)) => line("failover", "the slot is the copy of a primary's".to_owned()),
        (Some(true), _) => line("failover", "standbys that synchronize slots have it".to_owned()),
        (Some(false), _) => {
            line("failover", "no: a standby that is promoted does not have the slot".to_owned())
        }
        (None, _) => {}
    }
}

fn print_ledger(ledger: &LedgerPart) {
    let line = |name: &str, text: String| say!("{name:<10} {text}");
    if !ledger.exists {
        return line("ledger", format!("none in {} yet: \"flagpost setup\" makes it", ledger.directory));
    }
    let free = ledger.free_bytes.and_then(|free| i64::try_from(free).ok());
    let free = free.map(|free| format!(", {} free on its disk", size::bytes(free))).unwrap_or_default();
    line("ledger", format!("{}{free}", ledger.directory));
    if let Some(error) = &ledger.error {
        return line("", error.clone());
    }
    let checkpoint = ledger.checkpoint.as_deref().unwrap_or("none: the mirror has not been filled yet");
    line("checkpoint", checkpoint.to_owned());
    line("events", format!("{} on record", ledger.events.unwrap_or(0)));
}

/// What is wrong cannot be overlooked.
fn print_full(ledger: &LedgerPart, slot: Option<&SlotPart>) {
    let free = ledger.free_bytes.and_then(|free| i64::try_from(free).ok()).unwrap_or(0);
    let needed = i64::try_from(ENOUGH).unwrap_or(i64::MAX);
    let held = match slot.and_then(|slot| slot.retained_bytes) {
        Some(bytes) => format!("holds {} of its log for us, and more with every change", size::bytes(bytes)),
        None => "holds its log for us, and more with every change".to_owned(),
    };
    say!();
    say!(
        "DISK FULL  {} free of the {} that are needed: the daemon has stopped reading and sending",
        size::bytes(free),
        size::bytes(needed)
    );
    say!("           the database server {held}: make room for {}", ledger.directory);
}
