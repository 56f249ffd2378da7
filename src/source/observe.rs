//! What an operator asks of the server: settings, limits, the slot's condition, privileges, replica identities. Ordinary
//! SQL, read only; nothing here decides whether an answer is good. Statements are sent without a name: behind a pooler the
//! next one may run in another of the server's sessions.
//!
//! Source: PostgreSQL manual, `pg_replication_slots`, `pg_stat_replication`, "Access Privilege Inquiry Functions".

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::catalog::{Catalog, quoted, table_name};
use super::conn_info::ConnInfo;
use super::sql::sql_error;
use crate::change::Lsn;
use crate::error::{Error, Kind, Result};
use crate::schema::Table;

/// How many of something that the server limits are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// In use now.
    pub used: i64,
    /// The limit.
    pub limit: i64,
}

impl Quota {
    /// Whether none is left.
    pub fn is_exhausted(self) -> bool {
        self.used >= self.limit
    }
}

/// The server's settings and our role's attributes, as far as replication depends on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// `server_version_num`
    pub version: i32,
    /// The version for people, without the packager's addition.
    pub version_text: String,
    /// `wal_level`
    pub wal_level: String,
    /// Replication slots and `max_replication_slots`.
    pub slots: Quota,
    /// Walsenders and `max_wal_senders`.
    pub senders: Quota,
    /// `max_slot_wal_keep_size`; `-1` is no limit.
    pub wal_keep_size: String,
    /// `idle_replication_slot_timeout` (from version 18 on), unless it is off.
    pub idle_timeout: Option<String>,
    /// Whether this is a standby.
    pub is_standby: bool,
    /// Whether the role is a superuser, has REPLICATION, or is a member of `rds_replication`.
    pub may_replicate: bool,
}

impl ServerFacts {
    /// Of a server on which nothing stands in the way.
    #[cfg(test)]
    pub(crate) fn sample() -> ServerFacts {
        ServerFacts {
            version: 150_000,
            version_text: "15".into(),
            wal_level: "logical".into(),
            slots: Quota { used: 0, limit: 1 },
            senders: Quota { used: 0, limit: 1 },
            wal_keep_size: "-1".into(),
            idle_timeout: None,
            is_standby: false,
            may_replicate: true,
        }
    }

    /// `Err` when the server does not write what logical decoding needs.
    pub fn require_logical(&self) -> Result<()> {
        if self.wal_level == "logical" {
            return Ok(());
        }
        Err(Error::new(
            Kind::DatabaseRefuses,
            format!(
                "the server's wal_level is {:?}: run ALTER SYSTEM SET wal_level = logical and restart the server",
                self.wal_level
            ),
        ))
    }
}

/// Reads [`ServerFacts`].
pub async fn server_facts(client: &Client, info: &ConnInfo) -> Result<ServerFacts> {
    let row = client
        .query_typed_one(
            "SELECT current_setting('server_version_num')::int, split_part(current_setting('server_version'), ' ', 1),
                    current_setting('wal_level'),
                    (SELECT count(*) FROM pg_catalog.pg_replication_slots),
                    current_setting('max_replication_slots')::bigint,
                    (SELECT count(*) FROM pg_catalog.pg_stat_replication),
                    current_setting('max_wal_senders')::bigint,
                    coalesce(current_setting('max_slot_wal_keep_size', true), '-1'),
                    nullif(current_setting('idle_replication_slot_timeout', true), '0'),
                    pg_catalog.pg_is_in_recovery(),
                    coalesce((SELECT rolsuper OR rolreplication FROM pg_catalog.pg_roles
                              WHERE rolname = current_user), false)
                    OR EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'rds_replication'
                               AND pg_catalog.pg_has_role(current_user, oid, 'MEMBER'))",
            &[],
        )
        .await
        .map_err(|e| sql_error(info, "reading the server's settings", &e))?;
    Ok(ServerFacts {
        version: row.get(0),
        version_text: row.get(1),
        wal_level: row.get(2),
        slots: Quota { used: row.get(3), limit: row.get(4) },
        senders: Quota { used: row.get(5), limit: row.get(6) },
        wal_keep_size: row.get(7),
        idle_timeout: row.get(8),
        is_standby: row.get(9),
        may_replicate: row.get(10),
    })
}

/// The cluster's system identifier (PostgreSQL manual, `pg_control_system`): what `IDENTIFY_SYSTEM` tells a replication
/// session, for ordinary ones.
pub async fn system_id(client: &Client, info: &ConnInfo) -> Result<String> {
    client
        .query_typed_one("SELECT system_identifier::text FROM pg_control_system()", &[])
        .await
        .map(|row| row.get(0))
        .map_err(|e| sql_error(info, "asking which server this is", &e))
}

/// Where the server itself listens; `None` on a Unix socket. Behind a pooler it is another port than the URL's.
pub async fn server_port(client: &Client, info: &ConnInfo) -> Result<Option<i32>> {
    client
        .query_typed_one("SELECT pg_catalog.inet_server_port()", &[])
        .await
        .map(|row| row.get(0))
        .map_err(|e| sql_error(info, "asking where the server listens", &e))
}

/// The slot's condition.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotFacts {
    /// Its output plugin; empty for a physical slot.
    pub plugin: String,
    /// The database it reads; empty for a physical slot.
    pub database: String,
    /// The process that reads it now.
    pub active_pid: Option<i32>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Everything before this has been confirmed.
    pub confirmed: Lsn,
    /// Bytes of log that the server keeps for it; `None` when they are gone.
    pub retained_bytes: Option<i64>,
    /// Bytes of log written and not confirmed yet.
    pub lag_bytes: Option<i64>,
    /// Bytes of log that may still be written before the server may give it up; `None` where nothing limits that, or when it is
    /// lost.
    pub safe_bytes: Option<i64>,
    /// Why the server gave it up (`pg_replication_slots.invalidation_reason`, from version 17 on; on 16 only a conflict with
    /// recovery is known).
    pub invalidation: Option<String>,
    /// Whether standbys that synchronize slots are to have it (from version 17 on).
    pub failover: Option<bool>,
    /// Whether this server is a standby that has it from its primary (from version 17 on).
    pub synced: Option<bool>,
    /// How long nobody has read it (from version 17 on).
    pub(crate) inactive_seconds: Option<f64>,
    /// The server's own measure for a reader: from writing to confirmation.
    pub(crate) flush_lag_seconds: Option<f64>,
    /// Whether our role may see that measure (it needs `pg_read_all_stats`).
    pub(crate) sees_reader: bool,
}

impl SlotFacts {
    /// Of a slot that nobody has read for a minute.
    #[cfg(test)]
    pub(crate) fn sample() -> SlotFacts {
        SlotFacts {
            plugin: "pgoutput".into(),
            database: "flagsmith".into(),
            active_pid: None,
            wal_status: "reserved".into(),
            confirmed: Lsn(1),
            retained_bytes: Some(9),
            lag_bytes: Some(9),
            safe_bytes: None,
            invalidation: None,
            failover: None,
            synced: None,
            inactive_seconds: Some(60.0),
            flush_lag_seconds: None,
            sees_reader: false,
        }
    }

    /// Whether it is a slot of flagpost in this database.
    pub fn is_ours(&self, info: &ConnInfo) -> bool {
        self.plugin == super::PLUGIN && self.database == info.database
    }

    /// How long nobody has read it; `None` while somebody does, and where the server does not tell (before version 17).
    pub fn inactive_seconds(&self) -> Option<f64> {
        self.inactive_seconds.filter(|_| self.active_pid.is_none())
    }

    /// How far confirmation is behind, in seconds: nothing where all is confirmed; while the slot is read, the server's
    /// `flush_lag` (from writing the log to our confirmation); else since when nobody reads it. `None` where the server
    /// does not tell (`flush_lag` needs `pg_read_all_stats`, `inactive_since` PostgreSQL 17).
    pub fn lag_seconds(&self) -> Option<f64> {
        match self.active_pid {
            _ if self.lag_bytes == Some(0) => Some(0.0),
            // The server forgets the measure once everything it had sent was confirmed.
            Some(_) if self.sees_reader => Some(self.flush_lag_seconds.unwrap_or(0.0)),
            Some(_) => None,
            None => self.inactive_seconds,
        }
    }
}

/// Reads [`SlotFacts`], if there is a slot of this name.
pub async fn slot_facts(client: &Client, info: &ConnInfo, name: &str) -> Result<Option<SlotFacts>> {
    // Through jsonb, since older versions lack some columns.
    let row = client
        .query_typed_opt(
            "SELECT coalesce(s.plugin::text, ''), coalesce(s.database::text, ''), s.active_pid,
                    coalesce(s.wal_status, ''), coalesce(s.confirmed_flush_lsn::text, ''),
                    pg_catalog.pg_wal_lsn_diff(here.lsn, s.restart_lsn)::bigint,
                    pg_catalog.pg_wal_lsn_diff(here.lsn, s.confirmed_flush_lsn)::bigint,
                    coalesce(to_jsonb(s) ->> 'invalidation_reason',
                             CASE WHEN (to_jsonb(s) ->> 'conflicting')::bool THEN 'conflict with recovery' END),
                    extract(epoch FROM now() - (to_jsonb(s) ->> 'inactive_since')::timestamptz)::float8,
                    extract(epoch FROM w.flush_lag)::float8, w.state IS NOT NULL,
                    s.safe_wal_size::bigint, (to_jsonb(s) ->> 'failover')::bool, (to_jsonb(s) ->> 'synced')::bool
             FROM pg_catalog.pg_replication_slots s
             CROSS JOIN (SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                                     ELSE pg_catalog.pg_current_wal_lsn() END AS lsn) here
             LEFT JOIN pg_catalog.pg_stat_replication w ON w.pid = s.active_pid
             WHERE s.slot_name = $1",
            &[(&name, Type::TEXT)],
        )
        .await
        .map_err(|e| sql_error(info, "looking at the replication slot", &e))?;
    Ok(row.map(|row| SlotFacts {
        plugin: row.get(0),
        database: row.get(1),
        active_pid: row.get(2),
        wal_status: row.get(3),
        confirmed: row.get::<_, &str>(4).parse().unwrap_or_default(),
        retained_bytes: row.get(5),
        // A confirmation can come between the two readings.
        lag_bytes: row.get::<_, Option<i64>>(6).map(|bytes| bytes.max(0)),
        invalidation: row.get(7),
        inactive_seconds: row.get(8),
        flush_lag_seconds: row.get(9),
        sees_reader: row.get(10),
        safe_bytes: row.get(11),
        failover: row.get(12),
        synced: row.get(13),
    }))
}

/// Whether there is a publication of this name.
pub async fn has_publication(client: &Client, info: &ConnInfo, name: &str) -> Result<bool> {
    client
        .query_typed_opt("SELECT FROM pg_catalog.pg_publication WHERE pubname = $1", &[(&name, Type::TEXT)])
        .await
        .map(|row| row.is_some())
        .map_err(|e| sql_error(info, "looking for the publication", &e))
}

/// The kept tables of which our role may not read every column that flagpost reads.
pub async fn unreadable_tables(client: &Client, info: &ConnInfo, catalog: &Catalog) -> Result<Vec<Table>> {
    let kept: Vec<Table> = catalog.tables.keys().copied().filter(|table| table.is_kept()).collect();
    let names: Vec<&str> = kept.iter().map(|table| table.name()).collect();
    let rows = client
        .query_typed(
            "SELECT c.relname::text, a.attname::text
             FROM pg_catalog.pg_class c
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
             WHERE n.nspname = $1 AND c.relname = ANY ($2) AND a.attnum > 0 AND NOT a.attisdropped
               AND NOT (pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                        AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT'))",
            &[(&catalog.schema, Type::TEXT), (&names, Type::TEXT_ARRAY)],
        )
        .await
        .map_err(|e| sql_error(info, "reading privileges", &e))?;
    let is_refused = |table: &Table| {
        let columns = catalog.columns(*table);
        rows.iter()
            .any(|row| row.get::<_, &str>(0) == table.name() && columns.contains(&row.get::<_, &str>(1)))
    };
    Ok(kept.into_iter().filter(is_refused).collect())
}

/// A table's replica identity that does not fit a publication of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The table.
    pub table: Table,
    /// What is wrong.
    pub why: &'static str,
    /// The statement that mends it.
    pub mend: String,
}

/// The tables that must not be published as they are: the server would refuse Flagsmith's own updates and deletes of them
/// (no replica identity, or one that the column list does not cover), or send no key that flagpost knows.
pub async fn unusable_identities(
    client: &Client,
    info: &ConnInfo,
    catalog: &Catalog,
) -> Result<Vec<Identity>> {
    let names: Vec<&str> = catalog.tables.keys().map(|table| table.name()).collect();
    let rows = client
        .query_typed(
            "SELECT c.relname::text, c.relreplident::text,
                    EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relname = ANY ($2)
             ORDER BY c.relname",
            &[(&catalog.schema, Type::TEXT), (&names, Type::TEXT_ARRAY)],
        )
        .await
        .map_err(|e| sql_error(info, "reading replica identities", &e))?;
    let mut unusable = Vec::new();
    for row in rows {
        let Some(table) = Table::by_name(row.get(0)) else { continue };
        let has_key: bool = row.get(2);
        let name = table_name(&catalog.schema, table);
        let default = format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT;");
        let (why, mend) = match row.get::<_, &str>(1) {
            "d" if has_key => continue,
            "d" => {
                let key = table.columns().first().map(|column| column.name).unwrap_or_default();
                ("there is no primary key", format!("ALTER TABLE {name} ADD PRIMARY KEY ({});", quoted(key)))
            }
            // A column list and a full identity exclude each other (PostgreSQL manual, "Column Lists").
            "f" if catalog.has_column_lists() => ("full does not go with a column list", default),
            "f" => continue,
            "n" => ("the replica identity is nothing", default),
            _ => ("the replica identity is another index than the primary key", default),
        };
        unusable.push(Identity { table, why, mend });
    }
    Ok(unusable)
}

/// An endpoint's row, without its secret. Not `Debug`: the URL can carry credentials.
pub struct Listener {
    /// In which table it is.
    pub table: Table,
    /// Its id there.
    pub id: i64,
    /// Where it listens.
    pub url: String,
    /// Whether it wants webhooks.
    pub enabled: bool,
    /// The environment or the organisation that it belongs to.
    pub owner: i64,
    /// Whether calls are signed.
    pub has_secret: bool,
}

/// The endpoints as they are in the database now.
pub async fn listeners(client: &Client, info: &ConnInfo, catalog: &Catalog) -> Result<Vec<Listener>> {
    let mut all = Vec::new();
    for (table, owner) in
        [(Table::EnvironmentWebhook, "environment_id"), (Table::OrganisationWebhook, "organisation_id")]
    {
        // Old versions of Flagsmith sign nothing.
        let is_signed = if catalog.columns(table).contains(&"secret") {
            "coalesce(secret::text, '') <> ''"
        } else {
            "false"
        };
        let statement = format!(
            "SELECT id::bigint, coalesce(url::text, ''), coalesce(enabled, false), coalesce({owner}, 0)::bigint, {is_signed}
             FROM {} ORDER BY id",
            table_name(&catalog.schema, table)
        );
        let rows = client.query_typed(&statement, &[]).await;
        let rows = rows.map_err(|e| sql_error(info, &format!("reading table {}", table.name()), &e))?;
        all.extend(rows.iter().map(|row| Listener {
            table,
            id: row.get(0),
            url: row.get(1),
            enabled: row.get(2),
            owner: row.get(3),
            has_secret: row.get(4),
        }));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_in_seconds_is_told_where_it_is_known() {
        let idle = SlotFacts::sample();
        assert_eq!(idle.lag_seconds(), Some(60.0));
        assert_eq!(SlotFacts { lag_bytes: Some(0), ..idle.clone() }.lag_seconds(), Some(0.0));
        let read = SlotFacts { active_pid: Some(7), ..idle };
        assert_eq!(read.lag_seconds(), None, "the role may not see it");
        let seen = SlotFacts { sees_reader: true, ..read };
        assert_eq!(seen.lag_seconds(), Some(0.0), "nothing is outstanding");
        assert_eq!(SlotFacts { flush_lag_seconds: Some(2.5), ..seen }.lag_seconds(), Some(2.5));
    }
}
