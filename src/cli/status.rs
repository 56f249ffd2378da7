//! `flagpost status`: where the stream is, what is queued, how the endpoints are.
//!
//! It reads: the database by SQL, the ledger beside a running daemon or without one. Each part is shown without the other.

use std::time::Duration;

use serde::Serialize;

use super::size;
use crate::change::Micros;
use crate::config::Config;
use crate::delivery::redacted;
use crate::error::{Error, Result};
use crate::event::EndpointKey;
use crate::ledger::{Counts, Endpoint, Ledger, Reader};
use crate::source::{SlotFacts, connect, server_facts, slot_facts};

#[derive(Serialize)]
struct Status {
    database: DatabasePart,
    ledger: LedgerPart,
    endpoints: Vec<EndpointPart>,
}

#[derive(Serialize)]
struct DatabasePart {
    place: String,
    server_version: Option<String>,
    slot: Option<SlotPart>,
    /// Why the rest is missing.
    error: Option<String>,
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
}

#[derive(Serialize)]
struct LedgerPart {
    directory: String,
    exists: bool,
    checkpoint: Option<String>,
    events: Option<u64>,
    error: Option<String>,
}

#[derive(Serialize)]
struct EndpointPart {
    endpoint: String,
    /// Without userinfo and query; `None` where the endpoint was deleted.
    url: Option<String>,
    enabled: bool,
    /// False where the configuration says `verify = false`: TLS is made with whoever answers.
    tls_verified: bool,
    pending: u64,
    retrying: u64,
    dead: u64,
    delivered: u64,
    dropped: u64,
    shadowed: u64,
    oldest_pending_seconds: Option<u64>,
    last_error: Option<String>,
}

pub(super) async fn status(config: &Config, json: bool) -> Result<u8> {
    let (database, database_code) = database_part(config).await;
    let (ledger, endpoints, ledger_code) = ledger_part(config);
    let status = Status { database, ledger, endpoints };
    if json {
        let text = serde_json::to_string_pretty(&status)
            .map_err(|e| Error::internal(format!("the status cannot be written as JSON: {e}")))?;
        say!("{text}");
    } else {
        print_text(config, &status);
    }
    Ok(database_code.max(ledger_code))
}

async fn database_part(config: &Config) -> (DatabasePart, u8) {
    let mut part =
        DatabasePart { place: config.database.shown(), server_version: None, slot: None, error: None };
    let read = async {
        let client = connect(&config.database).await?;
        let server = server_facts(&client, &config.database).await?;
        let slot = slot_facts(&client, &config.database, &config.names.slot).await?;
        Ok::<_, Error>((server, slot))
    };
    match read.await {
        Ok((server, slot)) => {
            part.server_version = Some(server.version_text);
            part.slot = slot.map(|slot| slot_part(&config.names.slot, slot));
            (part, 0)
        }
        Err(error) => {
            part.error = Some(error.to_string());
            (part, error.kind().exit_code())
        }
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
        wal_status: slot.wal_status,
    }
}

fn ledger_part(config: &Config) -> (LedgerPart, Vec<EndpointPart>, u8) {
    let mut part = LedgerPart {
        directory: config.state_dir.display().to_string(),
        exists: Ledger::exists(&config.state_dir),
        checkpoint: None,
        events: None,
        error: None,
    };
    if !part.exists {
        return (part, Vec::new(), 0);
    }
    let mut read = || {
        let reader = Reader::open(&config.state_dir)?;
        part.checkpoint = reader.checkpoint()?.map(|lsn| lsn.to_string());
        part.events = Some(reader.event_count()?);
        endpoint_parts(config, &reader)
    };
    match read() {
        Ok(endpoints) => (part, endpoints, 0),
        Err(error) => {
            part.error = Some(error.to_string());
            (part, Vec::new(), error.kind().exit_code())
        }
    }
}

fn endpoint_parts(config: &Config, reader: &Reader) -> Result<Vec<EndpointPart>> {
    let mut counts = reader.counts()?;
    let now = Micros::now();
    let configured = config.targets.configured().iter();
    let configured = configured.map(|c| (EndpointKey::Configured(c.name), c.endpoint.clone()));
    let mut parts: Vec<EndpointPart> = reader
        .endpoints()?
        .into_iter()
        .chain(configured)
        .map(|(key, endpoint)| {
            let counts = counts.remove(&key.to_string()).unwrap_or_default();
            let options = config.endpoint_options(key, &endpoint.url);
            let tls_verified = options.is_none_or(|options| options.tls.verifies());
            EndpointPart { tls_verified, ..endpoint_part(key.to_string(), Some(&endpoint), counts, now) }
        })
        .collect();
    // What is left belongs to endpoints that were deleted.
    parts.extend(counts.into_iter().map(|(key, counts)| endpoint_part(key, None, counts, now)));
    parts.sort_by_key(|part| order(&part.endpoint));
    Ok(parts)
}

/// By number, so that `environment:10` comes after `environment:9`.
fn order(key: &str) -> (Option<(&'static str, i64)>, String) {
    let row = key.parse::<EndpointKey>().ok().and_then(EndpointKey::row);
    (row.map(|(table, id)| (table.name(), id)), key.to_owned())
}

fn endpoint_part(key: String, endpoint: Option<&Endpoint>, counts: Counts, now: Micros) -> EndpointPart {
    let age = |since: Micros| u64::try_from((now.0 - since.0) / 1_000_000).unwrap_or(0);
    EndpointPart {
        endpoint: key,
        url: endpoint.map(|endpoint| redacted(&endpoint.url)),
        enabled: endpoint.is_some_and(|endpoint| endpoint.enabled),
        tls_verified: true,
        pending: counts.pending,
        retrying: counts.retrying,
        dead: counts.dead,
        delivered: counts.delivered,
        dropped: counts.dropped,
        shadowed: counts.shadowed,
        oldest_pending_seconds: counts.oldest_pending.map(age),
        last_error: counts.last_error,
    }
}

fn print_text(config: &Config, status: &Status) {
    let line = |name: &str, text: String| say!("{name:<10} {text}");
    let database = &status.database;
    let version = database.server_version.as_ref().map(|v| format!(" (PostgreSQL {v})")).unwrap_or_default();
    line("database", format!("{}{version}", database.place));
    match (&database.error, &database.slot) {
        (Some(error), _) => line("", error.clone()),
        (None, None) => {
            line("slot", format!("{:?} is not there: \"flagpost setup\" makes it", config.names.slot))
        }
        (None, Some(slot)) => print_slot(slot),
    }
    print_ledger(&status.ledger);
    print_endpoints(&status.endpoints);
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
    line("retained", format!("{} of the server's log", bytes(slot.retained_bytes)));
}

fn print_ledger(ledger: &LedgerPart) {
    let line = |name: &str, text: String| say!("{name:<10} {text}");
    if !ledger.exists {
        return line("ledger", format!("none in {} yet: \"flagpost setup\" makes it", ledger.directory));
    }
    line("ledger", ledger.directory.clone());
    if let Some(error) = &ledger.error {
        return line("", error.clone());
    }
    let checkpoint = ledger.checkpoint.as_deref().unwrap_or("none: the mirror has not been filled yet");
    line("checkpoint", checkpoint.to_owned());
    line("events", format!("{} on record", ledger.events.unwrap_or(0)));
}

const HEAD: [&str; 8] = ["endpoint", "enabled", "pending", "retrying", "dead", "delivered", "oldest", "url"];

fn print_endpoints(endpoints: &[EndpointPart]) {
    if endpoints.is_empty() {
        return;
    }
    let rows: Vec<[String; 8]> = endpoints.iter().map(cells).collect();
    let widths: [usize; 8] = std::array::from_fn(|column| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(HEAD.get(column).map(|head| head.len())).max().unwrap_or(0)
    });
    say!();
    print_row(HEAD, widths);
    for (row, endpoint) in rows.iter().zip(endpoints) {
        print_row(row.each_ref().map(String::as_str), widths);
        if let Some(error) = &endpoint.last_error {
            say!("    {error}");
        }
    }
}

fn cells(part: &EndpointPart) -> [String; 8] {
    let oldest = part.oldest_pending_seconds.map(|s| size::span(Duration::from_secs(s)));
    [
        part.endpoint.clone(),
        if part.enabled { "yes" } else { "no" }.to_owned(),
        part.pending.to_string(),
        part.retrying.to_string(),
        part.dead.to_string(),
        part.delivered.to_string(),
        oldest.unwrap_or_else(|| "-".into()),
        format!(
            "{}{}",
            part.url.as_deref().unwrap_or("(deleted)"),
            if part.tls_verified { "" } else { "  TLS IS NOT VERIFIED" }
        ),
    ]
}

fn print_row(cells: [&str; 8], widths: [usize; 8]) {
    let padded: Vec<String> =
        cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    say!("{}", padded.join("  ").trim_end());
}
