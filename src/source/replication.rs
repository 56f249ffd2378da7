//! A replication session before it streams: who the server is, what the slot is like, making a slot with its snapshot.
//!
//! Source: PostgreSQL manual, "Streaming Replication Protocol" and `pg_replication_slots`.

use std::time::Duration;

use tokio::time::Instant;

use super::conn_info::ConnInfo;
use super::wire::{TextRow, Wire};
use crate::change::Lsn;
use crate::error::{Error, Kind, RECOVER, Result};
use crate::fact::SlotBusy;

/// The slot, the publication and the schema that changes are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// The schema of Flagsmith's tables.
    pub schema: String,
}

/// The only output plugin that every PostgreSQL has.
pub const PLUGIN: &str = "pgoutput";

/// How long a slot that is in use at start is waited for.
const SLOT_PATIENCE: Duration = Duration::from_secs(5);
const SLOT_POLL: Duration = Duration::from_millis(250);

/// What `IDENTIFY_SYSTEM` tells, and a transaction id of this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Identifies the cluster; the same on its standbys.
    pub system_id: String,
    /// Where the server's log was flushed to when we connected.
    pub position: Lsn,
    /// The 64-bit id that the next transaction gets.
    pub next_xid: u64,
    /// `wal_sender_timeout`: the server ends a session that is silent for this long; `None` when it never does.
    pub sender_timeout: Option<Duration>,
}

/// A row of `pg_replication_slots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// Its output plugin.
    pub plugin: String,
    /// The database it reads.
    pub database: String,
    /// The process that reads it now.
    pub active_pid: Option<i32>,
    /// Everything before this has been confirmed.
    pub confirmed: Lsn,
    /// The server keeps its log from here on.
    pub restart: Lsn,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
}

impl SlotState {
    /// `Err` says why the slot cannot be read by us.
    pub fn require(&self, name: &str, database: &str) -> Result<()> {
        self.require_ours(name, database)?;
        if self.wal_status == "lost" {
            return Err(Error::new(
                Kind::SlotLost,
                format!(
                    "the server has given up replication slot {name:?} (it held more log than max_slot_wal_keep_size, or was \
                     idle for too long): {RECOVER}"
                ),
            ));
        }
        Ok(())
    }

    /// `Err` if it is not a slot of flagpost in this database.
    pub fn require_ours(&self, name: &str, database: &str) -> Result<()> {
        if self.plugin == PLUGIN && self.database == database {
            return Ok(());
        }
        Err(Error::new(
            Kind::DatabaseRefuses,
            format!(
                "replication slot {name:?} is somebody else's (plugin {}, database {}): give flagpost another name with \
                 source.slot",
                self.plugin, self.database
            ),
        ))
    }
}

/// A slot that has just been made, with the snapshot that fits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The slot streams what commits after this.
    pub position: Lsn,
    /// For `SET TRANSACTION SNAPSHOT`; valid until the next command on this session.
    pub snapshot: String,
}

/// See the module's documentation.
pub struct Replication {
    pub(super) wire: Wire,
    pub(super) server: Server,
}

impl Replication {
    /// Connects and asks who is there.
    pub async fn connect(info: &ConnInfo) -> Result<Replication> {
        let mut wire = Wire::connect(info).await?;
        let rows = wire.query("identifying the server (IDENTIFY_SYSTEM)", "IDENTIFY_SYSTEM").await?;
        let row = one_row(rows, "IDENTIFY_SYSTEM")?;
        let [Some(system_id), _, Some(position), database] = &row[..] else {
            return Err(nonsense("IDENTIFY_SYSTEM"));
        };
        if database.is_none() {
            return Err(Error::new(
                Kind::DatabaseRefuses,
                "the session is for physical replication: a pooler stands between; give database.url the server's own host and port",
            ));
        }
        let position = position.parse().map_err(|_| nonsense("IDENTIFY_SYSTEM"))?;
        let system_id = system_id.clone();
        let command = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text, setting \
                       FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'";
        let row = one_row(wire.query("asking for the transaction id", command).await?, "pg_settings")?;
        let [Some(next_xid), Some(timeout_ms)] = &row[..] else { return Err(nonsense("pg_settings")) };
        let next_xid = next_xid.parse().map_err(|_| nonsense("pg_snapshot_xmax"))?;
        let sender_timeout = timeout_ms.parse().ok().filter(|ms| *ms > 0).map(Duration::from_millis);
        Ok(Replication { wire, server: Server { system_id, position, next_xid, sender_timeout } })
    }

    /// Who is there.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The slot of this name, if there is one.
    pub async fn slot(&mut self, name: &str) -> Result<Option<SlotState>> {
        let command = format!(
            "SELECT plugin::text, database::text, active_pid::text, confirmed_flush_lsn::text, restart_lsn::text, wal_status \
             FROM pg_catalog.pg_replication_slots WHERE slot_name = '{name}'"
        );
        let rows = self.wire.query("looking for the replication slot", &command).await?;
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        let [plugin, database, active_pid, confirmed, restart, wal_status] = &row[..] else {
            return Err(nonsense("pg_replication_slots"));
        };
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let lsn = |field: &Option<String>| field.as_deref().and_then(|t| t.parse().ok()).unwrap_or_default();
        Ok(Some(SlotState {
            plugin: text(plugin),
            database: text(database),
            active_pid: active_pid.as_deref().and_then(|t| t.parse().ok()),
            confirmed: lsn(confirmed),
            restart: lsn(restart),
            wal_status: text(wal_status),
        }))
    }

    /// The slot of this name, once nobody reads it: a server needs a moment to notice that a reader died. Somebody who goes
    /// on reading it is an error.
    pub async fn slot_unread(&mut self, name: &str) -> Result<Option<SlotState>> {
        let patience = Instant::now() + SLOT_PATIENCE;
        loop {
            let slot = self.slot(name).await?;
            let Some(pid) = slot.as_ref().and_then(|slot| slot.active_pid) else { return Ok(slot) };
            if Instant::now() >= patience {
                return Err(Error::new(
                    Kind::SlotInUse,
                    format!(
                        "replication slot {name:?} is being read by another process (PID {pid} on the server): stop the other \
                         reader, or give this flagpost a slot of its own (source.slot)"
                    ),
                ));
            }
            SlotBusy { slot: name.to_owned(), pid }.tell();
            tokio::time::sleep(SLOT_POLL).await;
        }
    }

    /// The statement that makes a slot. One that stays is a failover slot where the server knows them (from PostgreSQL 17 on,
    /// on a primary): a standby that synchronizes slots has it after a promotion.
    pub async fn slot_statement(&mut self, name: &str, temporary: bool) -> Result<String> {
        let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attname = 'failover' \
                                  AND attrelid = 'pg_catalog.pg_replication_slots'::pg_catalog.regclass) \
                   AND NOT pg_catalog.pg_is_in_recovery()";
        let row = one_row(self.wire.query("asking for failover slots", sql).await?, "pg_attribute")?;
        let has_failover = matches!(&row[..], [Some(answer)] if answer == "t");
        Ok(match (temporary, has_failover) {
            (true, _) => {
                format!("CREATE_REPLICATION_SLOT \"{name}\" TEMPORARY LOGICAL {PLUGIN} EXPORT_SNAPSHOT")
            }
            (false, false) => format!("CREATE_REPLICATION_SLOT \"{name}\" LOGICAL {PLUGIN} EXPORT_SNAPSHOT"),
            (false, true) => {
                format!("CREATE_REPLICATION_SLOT \"{name}\" LOGICAL {PLUGIN} (SNAPSHOT 'export', FAILOVER)")
            }
        })
    }

    /// Makes a slot and exports the snapshot that fits it. Waits for transactions that are open now. A temporary slot goes
    /// with the session.
    pub async fn create_slot(&mut self, name: &str, temporary: bool) -> Result<Exported> {
        let command = self.slot_statement(name, temporary).await?;
        let rows = self.wire.query(&format!("making the replication slot {name:?}"), &command).await?;
        let row = one_row(rows, "CREATE_REPLICATION_SLOT")?;
        let [_, Some(position), Some(snapshot), ..] = &row[..] else {
            return Err(nonsense("CREATE_REPLICATION_SLOT"));
        };
        let position = position.parse().map_err(|_| nonsense("CREATE_REPLICATION_SLOT"))?;
        Ok(Exported { position, snapshot: snapshot.clone() })
    }

    /// Drops a slot that nobody reads.
    pub async fn drop_slot(&mut self, name: &str) -> Result<()> {
        let command = format!("DROP_REPLICATION_SLOT \"{name}\"");
        self.wire.query(&format!("dropping the replication slot {name:?}"), &command).await.map(drop)
    }
}

fn one_row(rows: Vec<TextRow>, command: &str) -> Result<TextRow> {
    rows.into_iter().next().ok_or_else(|| nonsense(command))
}

fn nonsense(command: &str) -> Error {
    Error::new(
        Kind::DatabaseRefuses,
        format!("the server's answer to {command} makes no sense: flagpost needs PostgreSQL 14 or later"),
    )
}
