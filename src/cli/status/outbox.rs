//! The outbox: what waits in it, how large it is, whose it is, and in capitals what was not captured.

use std::time::Duration;

use serde::Serialize;
use tokio_postgres::Client;

use crate::cli::printable::one_line;
use crate::cli::size;
use crate::config::Config;
use crate::error::Result;
use crate::source::{has_outbox, outbox_facts, outbox_failures};

#[derive(Serialize)]
pub(super) struct OutboxPart {
    /// Row changes that wait.
    rows: i64,
    /// How long the oldest of them has.
    pub(super) oldest_seconds: Option<f64>,
    /// On disk.
    pub(super) bytes: i64,
    max_bytes: i64,
    /// The cap is reached: changes are not captured any more.
    pub(super) full: bool,
    /// Statements that were not captured.
    pub(super) failures: i64,
    /// The first reason.
    pub(super) failure: Option<String>,
    pub(super) reader: Whose,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Whose {
    ThisLedger,
    AnotherLedger,
    Nobody,
}

/// `reader` is the name by which an outbox belongs to our ledger. `None` where no outbox is.
pub(super) async fn read(
    config: &Config,
    client: &Client,
    reader: Option<&str>,
) -> Result<Option<OutboxPart>> {
    let info = &config.database;
    if !has_outbox(client, info).await? {
        return Ok(None);
    }
    let facts = outbox_facts(client, info).await?;
    let failure = if facts.failures > 0 { outbox_failures(client, info, 1).await? } else { Vec::new() };
    let whose = match facts.reader.as_deref() {
        None => Whose::Nobody,
        found if found == reader => Whose::ThisLedger,
        Some(_) => Whose::AnotherLedger,
    };
    Ok(Some(OutboxPart {
        rows: facts.changes,
        oldest_seconds: facts.oldest_seconds,
        bytes: facts.bytes,
        max_bytes: facts.limit(config.outbox.cap),
        full: facts.is_full(config.outbox.cap),
        failures: facts.failures,
        failure: failure.first().map(|reason| one_line(reason)),
        reader: whose,
    }))
}

pub(super) fn print(outbox: &OutboxPart) {
    let line = |name: &str, text: String| say!("{name:<10} {text}");
    let reader = match outbox.reader {
        Whose::ThisLedger => "it belongs to this ledger",
        Whose::AnotherLedger => "it belongs to ANOTHER LEDGER",
        Whose::Nobody => "it belongs to no ledger yet",
    };
    line("outbox", reader.to_owned());
    let oldest = outbox.oldest_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let oldest = oldest.map(|span| format!(", the oldest for {}", size::span(span))).unwrap_or_default();
    line("waiting", format!("{}{oldest}", size::counted(outbox.rows, "change")));
    line("size", format!("{} of at most {}", size::bytes(outbox.bytes), size::bytes(outbox.max_bytes)));
    line("failures", format!("{} not captured", size::counted(outbox.failures, "statement")));
}

/// What is wrong cannot be overlooked.
pub(super) fn print_troubles(outbox: &OutboxPart) {
    if outbox.full {
        say!();
        say!(
            "OUTBOX FULL  {} of at most {}: CHANGES ARE NOT CAPTURED ANY MORE, each that comes is lost for webhooks",
            size::bytes(outbox.bytes),
            size::bytes(outbox.max_bytes)
        );
        say!("             the daemon must read it, or recover: \"flagpost check\" says how");
    }
    if outbox.failures > 0 {
        say!();
        say!(
            "NOT CAPTURED {} of Flagsmith's: webhooks of that will not be sent; the first: {}",
            size::counted(outbox.failures, "statement"),
            outbox.failure.as_deref().unwrap_or("see the server's log")
        );
        say!("             mend the cause, then: flagpost recover (sends receivers what was missed)");
    }
}
