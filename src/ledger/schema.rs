//! The ledger file's format, and opening it.
//!
//! | table | holds |
//! | --- | --- |
//! | `meta` | what the ledger belongs to, the checkpoint, for what it was last written (`purpose`), why nobody may go on from here (`broken`) |
//! | `mirror` | the mirror's rows, packed ([`crate::change::Row`]); secrets and URLs sealed |
//! | `open_group` | changes that have not settled yet |
//! | `event`, `body` | events with their exact bodies, one for each format in use |
//! | `sequence` | the last number given to an event of each flag, each audit log |
//! | `delivery` | event × endpoint: what is to be sent, and what became of it |
//! | `attempt` | every try, with the answer |
//! | `lane` | endpoints that are paused, have been failing or got dead letters, and when somebody was told |
//! | `old_secret` | secrets that an endpoint had until a short while ago, sealed |
//!
//! Invariant: mirror, open groups, events, deliveries and checkpoint move in one SQLite transaction, so the file is
//! consistent at the checkpoint's LSN whenever the process dies. Times are microseconds since 1970 (UTC).

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::error::{Error, Kind, Result};

/// `PRAGMA application_id`: "flgp".
const APPLICATION_ID: i64 = 0x666C_6770;
/// `PRAGMA user_version`: the format described above. Each entry of [`MIGRATIONS`] makes the next one.
const FORMAT: i64 = 3;
/// How long a reader waits while the writer checkpoints the file, and a writer for another one: an operator's command writes in
/// short steps.
const BUSY: Duration = Duration::from_secs(30);

/// `delivery.status`: the next one of its lane; sent as soon as `next_at` has come.
pub(super) const READY: i64 = 0;
/// `delivery.status`: an earlier delivery of the same flag to the same endpoint comes first.
pub(super) const BEHIND: i64 = 1;
/// `delivery.status`: answered with 2xx.
pub(super) const DELIVERED: i64 = 2;
/// `delivery.status`: given up after `delivery.max_age`.
pub(super) const DEAD: i64 = 3;
/// `delivery.status`: its endpoint was deleted.
pub(super) const DROPPED: i64 = 4;
/// `delivery.status`: recorded in shadow mode: compared with what Flagsmith sent, and never to be sent.
pub(super) const SHADOWED: i64 = 5;

/// Format 1.
const TABLES: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE mirror (tbl TEXT NOT NULL, key NOT NULL, row BLOB NOT NULL, PRIMARY KEY (tbl, key)) WITHOUT ROWID;
CREATE TABLE open_group (slot TEXT PRIMARY KEY, bytes BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    action TEXT NOT NULL,
    organisation_id INTEGER,
    project_id INTEGER,
    environment_id INTEGER,
    feature_id INTEGER,
    feature TEXT,
    sequence INTEGER NOT NULL,
    change_request_id INTEGER,
    change_request TEXT,
    lsn TEXT NOT NULL,
    xid INTEGER NOT NULL,
    commit_time INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL
);
CREATE TABLE sequence (name TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE body (
    event INTEGER NOT NULL, format TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (event, format)
) WITHOUT ROWID;
CREATE TABLE delivery (
    endpoint TEXT NOT NULL,
    event INTEGER NOT NULL,
    lane TEXT NOT NULL,
    format TEXT NOT NULL,
    status INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    next_at INTEGER NOT NULL,
    PRIMARY KEY (endpoint, event)
) WITHOUT ROWID;
CREATE INDEX delivery_due ON delivery (endpoint, next_at, event) WHERE status = 0;
CREATE INDEX delivery_lane ON delivery (endpoint, lane, event) WHERE status IN (0, 1);
CREATE TABLE attempt (
    endpoint TEXT NOT NULL,
    event INTEGER NOT NULL,
    number INTEGER NOT NULL,
    at INTEGER NOT NULL,
    http_status INTEGER,
    milliseconds INTEGER NOT NULL,
    error TEXT,
    PRIMARY KEY (endpoint, event, number)
) WITHOUT ROWID;
";

/// What makes format 2 of format 1, and so on. What has been released is never edited.
const MIGRATIONS: &[&str] = &["
ALTER TABLE delivery ADD COLUMN queued_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE delivery ADD COLUMN attempts_before INTEGER NOT NULL DEFAULT 0;
ALTER TABLE delivery ADD COLUMN replay INTEGER NOT NULL DEFAULT 0;
UPDATE delivery SET queued_at = (SELECT recorded_at FROM event WHERE seq = event);
ALTER TABLE attempt ADD COLUMN answer TEXT;
ALTER TABLE attempt ADD COLUMN replay INTEGER NOT NULL DEFAULT 0;
CREATE TABLE lane (
    endpoint TEXT PRIMARY KEY,
    paused_at INTEGER,
    paused_by TEXT,
    paused_why TEXT,
    failures INTEGER NOT NULL DEFAULT 0,
    failing_since INTEGER,
    opened_at INTEGER,
    probe_at INTEGER,
    probes INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0,
    notified_at INTEGER,
    notified_dead INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE old_secret (
    endpoint TEXT NOT NULL, retired_at INTEGER NOT NULL, secret BLOB NOT NULL, PRIMARY KEY (endpoint, retired_at)
) WITHOUT ROWID;
CREATE INDEX delivery_dead ON delivery (endpoint, event) WHERE status = 3;
",
"
ALTER TABLE event ADD COLUMN reconstructed INTEGER NOT NULL DEFAULT 0;
"];

/// Opens the ledger for writing, making it if there is none.
pub(super) fn open(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path).map_err(|e| unusable(path, e))?;
    configure(&connection).map_err(|e| unusable(path, e))?;
    prepare_format(&connection, path)?;
    Ok(connection)
}

/// Opens an existing ledger for an operator's writes, beside a daemon or without one.
pub(super) fn open_existing(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|e| unusable(path, e))?;
    configure(&connection).map_err(|e| unusable(path, e))?;
    check_format(&connection, path)?;
    Ok(connection)
}

/// Opens an existing ledger for reading only.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|e| unusable(path, e))?;
    connection.busy_timeout(BUSY).map_err(|e| unusable(path, e))?;
    connection.set_prepared_statement_cache_capacity(32);
    check_format(&connection, path)?;
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    // Takes effect in a new file only: room that retention has freed is given back in steps.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: a commit that was answered is on the disk. Without it the confirmed LSN could be ahead of the ledger.
    connection.pragma_update(None, "synchronous", "FULL")?;
    // 4 MiB: pages of a large transaction spill into the write-ahead log instead of staying in memory.
    connection.pragma_update(None, "cache_size", -4096)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

fn prepare_format(connection: &Connection, path: &Path) -> Result<()> {
    let is_new: bool = connection
        .query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
        .map_err(|e| unusable(path, e))?;
    if is_new {
        let script = format!(
            "BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1; COMMIT;"
        );
        connection.execute_batch(&script).map_err(|e| unusable(path, e))?;
    }
    migrate(connection, path)?;
    check_format(connection, path)
}

/// Brings a ledger of an older flagpost up to date, each step in a transaction of its own.
fn migrate(connection: &Connection, path: &Path) -> Result<()> {
    let format = format_of(connection, path)?;
    for (from, script) in (1..).zip(MIGRATIONS) {
        if format <= from {
            let script = format!("BEGIN IMMEDIATE; {script} PRAGMA user_version = {}; COMMIT;", from + 1);
            connection.execute_batch(&script).map_err(|e| unusable(path, e))?;
        }
    }
    Ok(())
}

/// The file's format. `Err` when it is no ledger.
fn format_of(connection: &Connection, path: &Path) -> Result<i64> {
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
    let application = pragma("application_id").map_err(|e| unusable(path, e))?;
    let format = pragma("user_version").map_err(|e| unusable(path, e))?;
    if application != APPLICATION_ID {
        return Err(not_a_ledger(path));
    }
    Ok(format)
}

/// The format of an existing file, where it is one that an older flagpost wrote: the next start brings it up to date.
pub(super) fn older_format(path: &Path) -> Option<i64> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).ok()?;
    connection.busy_timeout(BUSY).ok()?;
    format_of(&connection, path).ok().filter(|format| (1..FORMAT).contains(format))
}

fn check_format(connection: &Connection, path: &Path) -> Result<()> {
    let format = format_of(connection, path)?;
    if format == FORMAT {
        return Ok(());
    }
    let mend = if format < FORMAT {
        "\"flagpost run\" brings it up to date when it starts"
    } else {
        "run the flagpost that wrote it"
    };
    Err(Error::new(
        Kind::LedgerMismatch,
        format!(
            "the ledger {} has format {format}, this flagpost knows format {FORMAT}: {mend}",
            path.display()
        ),
    ))
}

fn not_a_ledger(path: &Path) -> Error {
    Error::new(
        Kind::LedgerMismatch,
        format!("{} is no flagpost ledger: choose another state.dir", path.display()),
    )
}

/// The error for a ledger that SQLite cannot use.
pub(super) fn unusable(path: &Path, error: rusqlite::Error) -> Error {
    if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) {
        return not_a_ledger(path).caused_by(error);
    }
    if error.sqlite_error_code() == Some(ErrorCode::DiskFull) {
        return full(path);
    }
    Error::new(
        Kind::LedgerIo,
        format!(
            "the ledger {} cannot be used: {error}: check the disk, its space and the file's owner",
            path.display()
        ),
    )
    .caused_by(error)
}

/// The error for a disk that is full.
pub(super) fn full(path: &Path) -> Error {
    Error::new(
        Kind::LedgerFull,
        format!("the disk of the ledger {} is full: make room; nothing is lost meanwhile", path.display()),
    )
}
