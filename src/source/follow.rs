//! Opening the stream, and opening it again: connect, check that the slot is the one we know, stream.
//!
//! Invariants: the stream goes on after the last transaction that was handed on; a slot that somebody else moved, that the
//! server has given up, or that belongs to another cluster stops the daemon instead of skipping changes (PITFALLS 5).

use tokio_util::sync::CancellationToken;

use super::catalog::Catalog;
use super::conn_info::ConnInfo;
use super::replication::{Names, Replication};
use super::stream::{Channels, Stream};
use crate::change::Lsn;
use crate::error::{Error, Kind, RECOVER, Result};
use crate::pulse::Pulse;

/// The stream that is to be followed.
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
    /// Where to end; `None` for never.
    pub until: Option<Lsn>,
    /// Whether heartbeats are to come along.
    pub messages: bool,
}

impl Follow {
    /// For ever, and without heartbeats.
    pub fn new(info: ConnInfo, names: Names, catalog: Catalog, system_id: String, from: Lsn) -> Follow {
        Follow { info, names, catalog, system_id, from, until: None, messages: false }
    }
}

/// A stream that can be opened again.
pub struct Following {
    follow: Follow,
    channels: Channels,
    stream: Option<Stream>,
}

impl Following {
    /// Opens the stream.
    pub async fn open(follow: Follow, channels: Channels) -> Result<Following> {
        let stream = try_open(&follow, follow.from, &channels).await?;
        Ok(Following { follow, channels, stream: Some(stream) })
    }

    /// What is told of the source.
    pub fn pulse(&self) -> &Pulse {
        &self.channels.pulse
    }

    /// See [`Stream::run`].
    pub async fn run(&mut self, stop: &CancellationToken) -> Result<()> {
        match &mut self.stream {
            Some(stream) => stream.run(stop).await,
            None => Err(Error::new(Kind::DatabaseUnreachable, "the stream is not open")),
        }
    }

    /// Opens the stream again where it broke.
    pub async fn reopen(&mut self) -> Result<()> {
        // The slot is not free before the session has ended.
        if let Some(broken) = self.stream.take() {
            self.follow.from = broken.handed_on();
        }
        self.stream = Some(try_open(&self.follow, self.follow.from, &self.channels).await?);
        Ok(())
    }

    /// See [`Stream::hand_on_no_more`].
    pub fn hand_on_no_more(&mut self) {
        self.channels.out = tokio::sync::mpsc::channel(1).0;
        if let Some(stream) = &mut self.stream {
            stream.hand_on_no_more();
        }
    }

    /// See [`Stream::finish`].
    pub async fn finish(self) {
        if let Some(stream) = self.stream {
            stream.finish().await;
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
                 database.url or state.dir, or, if the database was moved, run \"flagpost recover --moved\" (or begin anew with \
                 \"flagpost setup --resnapshot\")",
                follow.system_id, server.system_id
            ),
        ));
    }
    if server.position < from {
        return Err(Error::new(
            Kind::SlotLost,
            format!(
                "the database is at {} and the ledger at {from}: it was restored from an older state; {RECOVER}",
                server.position
            ),
        ));
    }
    let Some(slot) = replication.slot_unread(name).await? else {
        return Err(Error::new(
            Kind::SlotLost,
            format!("replication slot {name:?} is gone, and with it what changed after {from}: {RECOVER}"),
        ));
    };
    slot.require(name, &follow.info.database)?;
    if slot.confirmed > from {
        return Err(Error::new(
            Kind::SlotLost,
            format!(
                "replication slot {name:?} was moved on to {} by somebody else, the ledger is at {from}: what lies between \
                 cannot be told any more; {RECOVER}",
                slot.confirmed
            ),
        ));
    }
    let Follow { names, catalog, until, messages, .. } = follow;
    Stream::start(replication, names, catalog.clone(), from, *until, *messages, channels.clone()).await
}
