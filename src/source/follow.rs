//! Following the stream through broken connections: connect, check that the slot is the one we know, stream, and again.
//!
//! Invariants: the stream goes on after the last transaction that was handed on; a slot that somebody else moved, that the
//! server has given up, or that belongs to another cluster stops the daemon instead of skipping changes (PITFALLS 5).

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::catalog::Catalog;
use super::conn_info::ConnInfo;
use super::replication::{Names, Replication};
use super::stream::{Channels, Stream};
use crate::change::Lsn;
use crate::error::{Error, Kind, Policy, Result};

/// Between two tries to connect: doubled from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LAST_WAIT: Duration = Duration::from_secs(15);

/// What to follow.
#[derive(Debug, Clone)]
pub struct Follow {
    /// The database.
    pub info: ConnInfo,
    /// Slot and publication.
    pub names: Names,
    /// What is read of it.
    pub catalog: Catalog,
    /// The cluster that the ledger belongs to.
    pub system_id: String,
    /// Where to begin: the ledger's checkpoint.
    pub from: Lsn,
}

/// Opens the stream; the first time every error is final.
pub async fn open(follow: &Follow, channels: &Channels) -> Result<Stream> {
    try_open(follow, follow.from, channels).await
}

/// Streams until `stop`, connecting again whenever the connection breaks. Returns the stream, if one is open, so that the
/// last confirmation can be sent over it.
pub async fn follow(
    follow: &Follow,
    channels: Channels,
    first: Stream,
    stop: &CancellationToken,
) -> Result<Option<Stream>> {
    let mut stream = first;
    loop {
        let error = match stream.run(stop).await {
            Ok(()) => {
                stream.hand_on_no_more();
                return Ok(Some(stream));
            }
            Err(error) => error,
        };
        give_up_or_warn(&error, FIRST_WAIT)?;
        let from = stream.handed_on();
        drop(stream);
        let mut wait = FIRST_WAIT;
        stream = loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return Ok(None),
            }
            tokio::select! {
                result = try_open(follow, from, &channels) => match result {
                    Ok(stream) => break stream,
                    Err(error) => {
                        wait = (wait * 2).min(LAST_WAIT);
                        give_up_or_warn(&error, wait)?;
                    }
                },
                () = stop.cancelled() => return Ok(None),
            }
        };
        info!(position = %from, "the stream is open again");
    }
}

fn give_up_or_warn(error: &Error, wait: Duration) -> Result<()> {
    match error.kind().policy() {
        Policy::Stop => Err(Error::new(error.kind(), error.to_string())),
        Policy::Retry => {
            let retry_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            warn!(%error, retry_in_ms, "the stream is down: connecting again");
            Ok(())
        }
    }
}

async fn try_open(follow: &Follow, from: Lsn, channels: &Channels) -> Result<Stream> {
    let mut replication = Replication::connect(&follow.info).await?;
    let name = &follow.names.slot;
    let server = replication.server();
    if server.system_id != follow.system_id {
        return Err(Error::new(
            Kind::LedgerMismatch,
            format!(
                "the ledger belongs to another database cluster (system identifier {}, this one is {}): correct \
                 database.url or state.dir, or begin anew with \"flagpost setup --resnapshot\"",
                follow.system_id, server.system_id
            ),
        ));
    }
    if server.position < from {
        return Err(Error::new(
            Kind::SlotLost,
            format!(
                "the database is at {} and the ledger at {from}: it was restored from an older state; begin anew with \
                 \"flagpost setup --resnapshot\"",
                server.position
            ),
        ));
    }
    let Some(slot) = replication.slot_unread(name).await? else {
        return Err(Error::new(
            Kind::SlotLost,
            format!(
                "replication slot {name:?} is gone, and with it what changed after {from}: begin anew with \"flagpost setup \
                 --resnapshot\""
            ),
        ));
    };
    slot.require(name, &follow.info.database)?;
    if slot.confirmed > from {
        return Err(Error::new(
            Kind::SlotLost,
            format!(
                "replication slot {name:?} was moved on to {} by somebody else, the ledger is at {from}: what lies between \
                 cannot be told any more; begin anew with \"flagpost setup --resnapshot\"",
                slot.confirmed
            ),
        ));
    }
    Stream::start(replication, &follow.names, follow.catalog.clone(), from, channels.clone()).await
}
