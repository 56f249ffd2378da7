//! The ledger: everything durable, in one SQLite file that an operator can open with the `sqlite3` they have.
//!
//! It owns durability and nothing else: it does not know what an event means. The file's format and its invariants are in
//! `schema`'s documentation. One thread writes (`writer`); [`Reader`]s read without waiting for it. The order is
//! strict: local COMMIT first, then the LSN is published to whoever confirms it to the server.

mod history;
mod operator;
#[cfg(test)]
mod operator_tests;
mod purge;
mod reader;
mod record;
mod retention;
mod schema;
mod seal;
mod search;
mod survey;
mod writer;
#[cfg(test)]
mod writer_tests;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot, watch};

use crate::change::{Lsn, Micros, Row};
use crate::error::{Error, Kind, Result};
use crate::pulse::Pulse;
use crate::schema::Table;

pub use history::{Attempt, Delivery, Recorded};
pub use operator::{Operator, Resumed};
pub use purge::Purge;
pub use reader::{Endpoint, Reader};
pub use record::{
    BreakerState, Counts, Due, EventRecord, LaneState, Outcome, Owner, Pause, Purpose, Verdict, Write,
};
pub use retention::{Finished, Retention};
pub use search::{DeliveryState, Filter, Replayable};
pub use survey::Tried;
pub use writer::{News, Newsstand};

use seal::Seal;
use writer::Writer;

/// The file's name in the state directory.
const FILE: &str = "ledger.sqlite3";
const KEY_FILE: &str = "ledger.key";
const LOCK_FILE: &str = "ledger.lock";

/// Writes that wait for the writer. Enough to keep it busy while the next transaction is decoded, small enough to cost
/// little memory: an event waits here with its bodies.
const WRITE_QUEUE: usize = 256;

/// What a ledger belongs to. It must be the same at every start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The database cluster's system identifier (`IDENTIFY_SYSTEM`).
    pub system_id: String,
    /// The database's name.
    pub database: String,
    /// What the checkpoint is a position of: the replication slot, or the outbox by its reader's name.
    pub slot: String,
}

/// A ledger that is open for writing. There can be one a state directory.
pub struct Ledger {
    connection: Connection,
    seal: Seal,
    path: PathBuf,
    directory: PathBuf,
    _lock: File,
    pulse: Arc<Pulse>,
}

/// The running writer.
pub struct WriterHandle {
    /// Where to send writes. The writer ends when every sender is gone.
    pub writes: mpsc::Sender<Write>,
    /// The position up to which everything is durable: the only one that may be confirmed to the server.
    pub durable: watch::Receiver<Lsn>,
    /// What the commits mean for those who send.
    pub newsstand: Arc<Newsstand>,
    /// Tells why the writer ended. `Ok` only after every sender is gone.
    pub ended: oneshot::Receiver<Result<()>>,
}

impl Ledger {
    /// Opens the ledger in `directory`, making both where they are missing.
    pub fn open(directory: &Path) -> Result<Ledger> {
        let failed = |what: &str, e: &std::io::Error| unusable_directory(directory, what, e);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|e| failed("it cannot be made", &e))?;
        let lock = lock(directory)?;
        let path = directory.join(FILE);
        // Made before SQLite opens it, so that it (and the files that SQLite puts beside it) is never readable by others.
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| failed("the ledger cannot be written", &e))?;
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .map_err(|e| failed("its mode cannot be set", &e))?;
        drop(file);
        let connection = schema::open(&path)?;
        let seal = Seal::open(&directory.join(KEY_FILE))?;
        let pulse = Arc::default();
        Ok(Ledger { connection, seal, path, directory: directory.to_owned(), _lock: lock, pulse })
    }

    /// The writer will show this pulse that it gets on.
    pub fn with_pulse(mut self, pulse: Arc<Pulse>) -> Ledger {
        self.pulse = pulse;
        self
    }

    /// The files that hold what nobody else may read: ledger, what SQLite puts beside it, and key.
    pub fn files(directory: &Path) -> Vec<PathBuf> {
        let beside = ["", "-wal", "-shm"].map(|end| directory.join(format!("{FILE}{end}")));
        beside.into_iter().chain([directory.join(KEY_FILE)]).collect()
    }

    /// Whether there is a ledger in `directory`.
    pub fn exists(directory: &Path) -> bool {
        fs::metadata(directory.join(FILE)).is_ok_and(|file| file.len() > 0)
    }

    /// The format of a ledger that an older flagpost wrote; [`Ledger::open`] brings it up to date.
    pub fn older_format(directory: &Path) -> Option<i64> {
        schema::older_format(&directory.join(FILE))
    }

    /// Whether another process writes to the ledger in `directory` now.
    pub fn is_in_use(directory: &Path) -> bool {
        Ledger::exists(directory) && lock(directory).is_err_and(|error| error.kind() == Kind::LedgerMismatch)
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> Error + '_ {
        |e| schema::unusable(&self.path, e)
    }

    /// The position up to which everything is in the ledger; `None` before the mirror has been loaded.
    pub fn checkpoint(&self) -> Result<Option<Lsn>> {
        Ok(self.meta("checkpoint")?.and_then(|text| text.parse().ok()))
    }

    /// Where the source goes on, if the checkpoint alone does not tell (see [`Write::Cursor`]).
    pub fn cursor(&self) -> Result<Option<String>> {
        self.meta("cursor")
    }

    /// `Err` when changes are known to have been missed (see [`Write::Broken`]).
    pub fn require_unbroken(&self) -> Result<()> {
        match self.meta("broken")? {
            None => Ok(()),
            Some(reason) => Err(Error::new(Kind::SlotLost, reason)),
        }
    }

    /// Notes that a recovery has begun: nobody may go on from here until one has come to its end ([`Write::Rebase`]), since the
    /// source is being made anew.
    pub fn begin_recovery(&self) -> Result<()> {
        self.note_broken(
            "\"flagpost recover\" was begun and has not come to its end: run it again (it sends what was missed)",
        )
    }

    /// Notes that changes were missed for this reason ([`Write::Broken`]), where no writer runs.
    pub fn note_broken(&self, reason: &str) -> Result<()> {
        self.connection
            .execute("INSERT OR REPLACE INTO meta VALUES ('broken', ?1)", [reason])
            .map_err(self.failed())?;
        Ok(())
    }

    /// The stream's clock at the checkpoint: everything that was due until then is in the ledger.
    pub fn clock(&self) -> Result<Option<Micros>> {
        Ok(self.meta("clock")?.and_then(|text| text.parse().ok()).map(Micros))
    }

    /// The server's clock when the mirror was filled from a snapshot: what was before it has not been told. `None` where an older
    /// flagpost filled it.
    pub fn filled_at(&self) -> Result<Option<Micros>> {
        Ok(self.meta("filled_at")?.and_then(|text| text.parse().ok()).map(Micros))
    }

    /// For what the ledger was last written: open groups were read for this purpose.
    pub fn purpose(&self) -> Result<Purpose> {
        let is_shadow = self.meta("purpose")?.is_some_and(|name| name == Purpose::Shadow.name());
        Ok(if is_shadow { Purpose::Shadow } else { Purpose::Send })
    }

    /// What the ledger belongs to; `None` when it is new.
    pub fn identity(&self) -> Result<Option<Identity>> {
        let (system_id, database, slot) =
            (self.meta("system_id")?, self.meta("database")?, self.meta("slot")?);
        Ok(system_id.zip(database).zip(slot).map(|((system_id, database), slot)| Identity {
            system_id,
            database,
            slot,
        }))
    }

    fn meta(&self, key: &str) -> Result<Option<String>> {
        self.connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
            .optional()
            .map_err(self.failed())
    }

    /// Forgets mirror, open groups and checkpoint (events and deliveries stay) and takes the given identity: what comes
    /// next is a fresh copy of the database, complete with [`Write::Checkpoint`]. `clock` is the server's: what was before it is
    /// not told.
    pub fn begin_snapshot(&mut self, identity: &Identity, clock: Micros) -> Result<()> {
        let transaction = self.connection.transaction().map_err(|e| schema::unusable(&self.path, e))?;
        let clear = || -> rusqlite::Result<()> {
            transaction.execute_batch(
                "DELETE FROM mirror; DELETE FROM open_group; DELETE FROM meta WHERE key IN ('checkpoint', 'clock', 'broken', 'cursor');",
            )?;
            let columns = columns_fingerprint();
            for (key, value) in [
                ("system_id", identity.system_id.as_str()),
                ("database", identity.database.as_str()),
                ("slot", identity.slot.as_str()),
                ("columns", columns.as_str()),
                ("filled_at", clock.0.to_string().as_str()),
            ] {
                transaction.execute("INSERT OR REPLACE INTO meta VALUES (?1, ?2)", params![key, value])?;
            }
            Ok(())
        };
        clear().map_err(|e| schema::unusable(&self.path, e))?;
        transaction.commit().map_err(|e| schema::unusable(&self.path, e))
    }

    /// From here on the ledger goes on in another source: what it belongs to, and where. Everything else stays, for both sources
    /// bring the same changes. The source before is on record until [`Ledger::forget_left`].
    pub fn change_source(&mut self, identity: &Identity, position: Lsn, cursor: Option<&str>) -> Result<()> {
        let transaction = self.connection.transaction().map_err(|e| schema::unusable(&self.path, e))?;
        let change = || -> rusqlite::Result<()> {
            transaction.execute_batch(
                "DELETE FROM meta WHERE key = 'cursor';
                 INSERT OR REPLACE INTO meta SELECT 'left', value FROM meta WHERE key = 'slot';",
            )?;
            for (key, value) in [
                ("slot", Some(identity.slot.as_str())),
                ("checkpoint", Some(position.to_string().as_str())),
                ("cursor", cursor),
            ] {
                transaction.execute(
                    "INSERT OR REPLACE INTO meta SELECT ?1, ?2 WHERE ?2 IS NOT NULL",
                    params![key, value],
                )?;
            }
            Ok(())
        };
        change().map_err(|e| schema::unusable(&self.path, e))?;
        transaction.commit().map_err(|e| schema::unusable(&self.path, e))
    }

    /// The source that the ledger went on in before [`Ledger::change_source`], if it may still be there.
    pub fn left(&self) -> Result<Option<String>> {
        self.meta("left")
    }

    /// The source before is gone.
    pub fn forget_left(&self) -> Result<()> {
        self.connection.execute("DELETE FROM meta WHERE key = 'left'", []).map_err(self.failed())?;
        Ok(())
    }

    /// Gives every row of the mirror to `each`, its secrets in the clear.
    pub fn load_mirror(&self, mut each: impl FnMut(Table, Row)) -> Result<()> {
        if self.meta("columns")?.is_some_and(|columns| columns != columns_fingerprint()) {
            return Err(Error::new(
                Kind::LedgerMismatch,
                "this flagpost reads other columns than the one that filled the ledger: run \"flagpost setup --resnapshot\"",
            ));
        }
        let mut statement = self.connection.prepare("SELECT tbl, row FROM mirror").map_err(self.failed())?;
        let mut rows = statement.query([]).map_err(self.failed())?;
        while let Some(row) = rows.next().map_err(self.failed())? {
            let table: String = row.get(0).map_err(self.failed())?;
            let bytes = row.get_ref(1).and_then(|v| Ok(v.as_blob()?)).map_err(self.failed())?;
            let (Some(table), Some(row)) = (Table::by_name(&table), Row::from_bytes(bytes)) else {
                return Err(Error::new(
                    Kind::LedgerMismatch,
                    format!(
                        "the ledger {} holds a row that is none: restore it from a copy",
                        self.path.display()
                    ),
                ));
            };
            each(table, self.seal.unseal(table, &row)?);
        }
        Ok(())
    }

    /// The open groups, as they were kept.
    pub fn load_groups(&self) -> Result<Vec<Vec<u8>>> {
        let mut statement = self.connection.prepare("SELECT bytes FROM open_group").map_err(self.failed())?;
        let rows = statement.query_map([], |row| row.get(0)).map_err(self.failed())?;
        rows.collect::<rusqlite::Result<_>>().map_err(self.failed())
    }

    /// Starts the writer thread, for the purpose that the ledger has until [`Write::Purpose`] gives it another. The lock on the
    /// state directory is held until it ends.
    pub fn start_writer(self) -> Result<WriterHandle> {
        let purpose = self.purpose()?;
        let checkpoint = self.checkpoint()?.unwrap_or_default();
        let (writes, receiver) = mpsc::channel(WRITE_QUEUE);
        let (durable_sender, durable) = watch::channel(checkpoint);
        let (ended_sender, ended) = oneshot::channel();
        let newsstand = Arc::new(Newsstand::default());
        let writer = Writer {
            connection: self.connection,
            seal: self.seal,
            writes: receiver,
            durable: durable_sender,
            newsstand: Arc::clone(&newsstand),
            purpose,
            answers: Vec::new(),
            recorded: Vec::new(),
            pulse: self.pulse,
        };
        let (path, lock) = (self.path, self._lock);
        std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || {
                let result = writer.run().map_err(|stopped| stopped.told(&path));
                drop(lock);
                // Nobody to tell when the daemon is gone.
                ended_sender.send(result).ok();
            })
            .map_err(|e| Error::internal(format!("the ledger's thread cannot be started: {e}")))?;
        Ok(WriterHandle { writes, durable, newsstand, ended })
    }

    /// Bytes that are free on the file system of a state directory; `None` where it does not tell.
    pub fn room(directory: &Path) -> Option<u64> {
        let facts = rustix::fs::statvfs(directory).ok()?;
        Some(facts.f_bavail.saturating_mul(facts.f_frsize))
    }

    /// A reader of the same ledger.
    pub fn reader(&self) -> Result<Reader> {
        Reader::open(&self.directory)
    }
}

/// The lock that keeps a second writer away, held as long as the file is open.
fn lock(directory: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(directory.join(LOCK_FILE))
        .map_err(|e| unusable_directory(directory, "it cannot be written", &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            Kind::LedgerMismatch,
            format!(
                "another flagpost works with state.dir {}: stop it, or give this one another state.dir",
                directory.display()
            ),
        )),
        Err(TryLockError::Error(e)) => Err(unusable_directory(directory, "it cannot be locked", &e)),
    }
}

fn unusable_directory(directory: &Path, what: &str, error: &std::io::Error) -> Error {
    Error::new(
        Kind::LedgerIo,
        format!(
            "state.dir {} cannot be used: {what}: {error}: give flagpost a directory that it may write to",
            directory.display()
        ),
    )
}

/// Which columns the mirror's rows are made of: rows of another set would be misread.
fn columns_fingerprint() -> String {
    let tables: Vec<String> = Table::ALL
        .iter()
        .map(|table| {
            let columns: Vec<&str> = table.columns().iter().map(|c| c.name).collect();
            format!("{}({})", table.name(), columns.join(","))
        })
        .collect();
    tables.join(" ")
}
