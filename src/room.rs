//! A full disk: the daemon reads nothing more, keeps what it has, says what that costs the server, and goes on by itself.
//! Where the operator has said so, what it costs the server has an end ([`Waited::GaveUp`]).
//!
//! All stages have ended by then (what was not committed is read again from the checkpoint), so there is nothing to lose and
//! nothing to send twice but what was under way.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::Error;
use crate::fact::{DiskFull, RoomAgain};
use crate::ledger::{Ledger, Reader};
use crate::ops::service;
use crate::source::{ConnInfo, Level, Limit, connect, slot_facts};

/// So many bytes must be free before it is tried again; twice as many every time it was not enough to get further.
pub const ENOUGH: u64 = 4 << 20;
/// Between two looks at the disk.
const LOOK: Duration = Duration::from_secs(1);
/// Between two lines in the log.
const REMIND: Duration = Duration::from_secs(60);

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// There is room again.
    Room,
    /// Told to stop.
    Stopped,
    /// The server keeps more of its log than it may, and is not to keep more.
    GaveUp,
}

/// See the module's documentation.
pub struct Room {
    directory: PathBuf,
    database: ConnInfo,
    slot: String,
    limit: Limit,
    level: watch::Receiver<Level>,
    needed: u64,
    /// The checkpoint when there was no room last.
    stuck_at: Option<String>,
}

impl Room {
    /// For the state directory and the database of this configuration; `level` tells how much the server keeps.
    pub fn new(config: &Config, level: watch::Receiver<Level>) -> Room {
        Room {
            directory: config.state_dir.clone(),
            database: config.database.clone(),
            slot: config.names.slot.clone(),
            limit: config.retained,
            level,
            needed: ENOUGH,
            stuck_at: None,
        }
    }

    /// Waits until there is room again, or no longer.
    pub async fn wait(&mut self, error: &Error, stop: &CancellationToken) -> Waited {
        let checkpoint = Reader::open(&self.directory).and_then(|r| r.checkpoint()).ok().flatten();
        let checkpoint = checkpoint.map(|lsn| lsn.to_string());
        let is_stuck = checkpoint == self.stuck_at && self.stuck_at.is_some();
        self.needed = if is_stuck { self.needed.saturating_mul(2) } else { ENOUGH };
        self.stuck_at = checkpoint;
        let mut reminded: Option<tokio::time::Instant> = None;
        loop {
            if reminded.is_none_or(|at| at.elapsed() >= REMIND) {
                self.tell(error).await;
                reminded = Some(tokio::time::Instant::now());
            }
            if stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
                return Waited::Stopped;
            }
            if Ledger::room(&self.directory).is_none_or(|free| free >= self.needed) {
                RoomAgain {}.tell();
                return Waited::Room;
            }
            if self.limit.gives_up && *self.level.borrow() == Level::Over {
                return Waited::GaveUp;
            }
        }
    }

    async fn tell(&self, error: &Error) {
        service::status("no room on the disk of state.dir: reading and sending have stopped");
        DiskFull {
            error: error.to_string(),
            free_bytes: Ledger::room(&self.directory),
            needed_bytes: self.needed,
            wal_held_bytes: self.held().await,
        }
        .tell();
    }

    /// How much of its write-ahead log the server keeps for us; `None` where it does not tell.
    async fn held(&self) -> Option<i64> {
        let client = connect(&self.database).await.ok()?;
        slot_facts(&client, &self.database, &self.slot).await.ok()??.retained_bytes
    }
}
