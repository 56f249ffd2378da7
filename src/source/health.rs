//! What `check` asks of the server beyond what the source needs: what would end our sessions, what the slot costs, what our role
//! may, what hides rows from us, what Flagsmith's own bookkeeping tells. Ordinary SQL, read only, without names (see `observe`);
//! nothing here decides whether an answer is good.
//!
//! Source: PostgreSQL manual, "System Views", "The Cumulative Statistics System", "Row Security Policies"; Flagsmith's task
//! processor (`task_processor_task`) and Django's `django_migrations`.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::catalog::{Catalog, quoted};
use super::conn_info::ConnInfo;
use super::observe::Quota;
use super::sql::sql_error;
use super::transport::Transport;
use crate::error::Result;
use crate::schema::Table;

/// So many of the newest rows of Flagsmith's task queue are looked at: its table has no index on the time.
const NEWEST_TASKS: i64 = 20_000;
/// So many transactions, slots and the like are told.
const AT_MOST: i64 = 5;

/// What bounds or endangers our sessions. Timeouts are in milliseconds, 0 for none, as they are for our role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFacts {
    /// The encoding of the database.
    pub encoding: String,
    /// `statement_timeout`
    pub statement_timeout: i64,
    /// `idle_session_timeout`
    pub idle_session_timeout: i64,
    /// `wal_sender_timeout`
    pub sender_timeout: i64,
    /// Whether what is committed is on the server's disk (`fsync`), and survives a torn page (`full_page_writes`).
    pub is_durable: bool,
    /// Sessions, and how many a role without privileges may have altogether.
    pub connections: Quota,
    /// How many more there are for superusers and other privileged roles.
    pub reserved: i64,
}

/// Reads [`SessionFacts`].
pub async fn session_facts(client: &Client, info: &ConnInfo) -> Result<SessionFacts> {
    let row = client
        .query_typed_one(
            "WITH s AS (SELECT name, setting FROM pg_catalog.pg_settings)
             SELECT (SELECT pg_catalog.pg_encoding_to_char(encoding)::text FROM pg_catalog.pg_database
                     WHERE datname = pg_catalog.current_database()),
                    (SELECT setting::bigint FROM s WHERE name = 'statement_timeout'),
                    (SELECT setting::bigint FROM s WHERE name = 'idle_session_timeout'),
                    (SELECT setting::bigint FROM s WHERE name = 'wal_sender_timeout'),
                    (SELECT pg_catalog.bool_and(setting = 'on') FROM s WHERE name IN ('fsync', 'full_page_writes')),
                    (SELECT coalesce(sum(numbackends), 0)::bigint FROM pg_catalog.pg_stat_database),
                    (SELECT setting::bigint FROM s WHERE name = 'max_connections'),
                    (SELECT sum(setting::bigint)::bigint FROM s
                     WHERE name IN ('superuser_reserved_connections', 'reserved_connections'))",
            &[],
        )
        .await
        .map_err(|e| sql_error(info, "reading the session's settings", &e))?;
    // The second of them came with version 16.
    let reserved = row.get::<_, Option<i64>>(7).unwrap_or(0);
    Ok(SessionFacts {
        encoding: row.get(0),
        statement_timeout: row.get(1),
        idle_session_timeout: row.get::<_, Option<i64>>(2).unwrap_or(0),
        sender_timeout: row.get(3),
        is_durable: row.get::<_, Option<bool>>(4).unwrap_or(true),
        connections: Quota { used: row.get(5), limit: row.get::<_, i64>(6) - reserved },
        reserved,
    })
}

/// How the way to the server is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsFacts {
    /// Whether it is encrypted.
    pub is_encrypted: bool,
    /// When the server's certificate expires, in seconds since 1970.
    pub expires_at: Option<i64>,
}

/// Makes a connection for nothing but [`TlsFacts`]; it ends before anybody proves who they are.
pub async fn tls_facts(info: &ConnInfo) -> Result<TlsFacts> {
    let connecting = Transport::connect(info);
    let transport = tokio::time::timeout(info.connect_timeout, connecting)
        .await
        .map_err(|_| super::sql::timed_out(info))??;
    Ok(TlsFacts { is_encrypted: transport.is_encrypted(), expires_at: transport.certificate_expires_at() })
}

/// Our role.
#[derive(Debug, Clone, PartialEq)]
pub struct RoleFacts {
    /// Whether it may everything.
    pub is_superuser: bool,
    /// In how many seconds its password expires.
    pub expires_in: Option<f64>,
    /// Its sessions now, and how many it may have; no limit is negative.
    pub connections: Quota,
    /// Flagsmith's tables that it may write to.
    pub writable: Vec<String>,
    /// Whether it may read the users' password hashes.
    pub reads_passwords: bool,
    /// Tables in which row-level security hides rows from it.
    pub hidden: Vec<String>,
}

/// Reads [`RoleFacts`].
pub async fn role_facts(client: &Client, info: &ConnInfo, schema: &str) -> Result<RoleFacts> {
    let names: Vec<&str> = Table::ALL.iter().map(|table| table.name()).collect();
    let row = client
        .query_typed_one(
            "WITH t AS (SELECT c.oid, c.relname::text AS name FROM pg_catalog.pg_class c
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                        WHERE n.nspname = $1 AND c.relname = ANY ($2) AND c.relkind IN ('r', 'p'))
             SELECT r.rolsuper, extract(epoch FROM CASE WHEN isfinite(r.rolvaliduntil) THEN r.rolvaliduntil END - now())::float8,
                    (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE usesysid = r.oid), r.rolconnlimit::bigint,
                    ARRAY(SELECT name FROM t WHERE pg_catalog.has_table_privilege(oid, 'INSERT, UPDATE, DELETE') ORDER BY 1),
                    EXISTS (SELECT FROM t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid
                            WHERE t.name = $3 AND a.attname = 'password' AND NOT a.attisdropped
                              AND pg_catalog.has_column_privilege(t.oid, a.attnum, 'SELECT')),
                    ARRAY(SELECT name FROM t WHERE pg_catalog.row_security_active(oid) ORDER BY 1)
             FROM pg_catalog.pg_roles r WHERE r.rolname = current_user",
            &[(&schema, Type::TEXT), (&names, Type::TEXT_ARRAY), (&Table::User.name(), Type::TEXT)],
        )
        .await
        .map_err(|e| sql_error(info, "looking at our role", &e))?;
    Ok(RoleFacts {
        is_superuser: row.get(0),
        expires_in: row.get(1),
        connections: Quota { used: row.get(2), limit: row.get(3) },
        writable: row.get(4),
        reads_passwords: row.get(5),
        hidden: row.get(6),
    })
}

/// What the slot costs the server, and what endangers it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SlotCost {
    /// `max_slot_wal_keep_size` in MiB; none is negative.
    pub limit_mib: i64,
    /// Bytes that may still be written before the server gives the slot up; `None` where there is no limit.
    pub safe_bytes: Option<i64>,
    /// Transactions since the catalogue was last cleaned for this slot.
    pub catalog_age: Option<i64>,
    /// Whether it outlives a failover (from version 17 on).
    pub has_failover: Option<bool>,
    /// Physical standbys that follow or have a slot.
    pub standbys: i64,
    /// Transactions that were written to disk to be decoded, and their bytes.
    pub spilled: Option<(i64, i64)>,
}

/// Reads [`SlotCost`], if there is a slot of this name.
pub async fn slot_cost(client: &Client, info: &ConnInfo, name: &str) -> Result<Option<SlotCost>> {
    // Through jsonb, since older versions lack some columns.
    let row = client
        .query_typed_opt(
            "SELECT (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'),
                    (to_jsonb(s) ->> 'safe_wal_size')::bigint, pg_catalog.age(s.catalog_xmin)::bigint,
                    (to_jsonb(s) ->> 'failover')::boolean,
                    (SELECT count(*) FROM pg_catalog.pg_replication_slots WHERE slot_type = 'physical'),
                    t.spill_txns, t.spill_bytes
             FROM pg_catalog.pg_replication_slots s
             LEFT JOIN pg_catalog.pg_stat_replication_slots t ON t.slot_name = s.slot_name
             WHERE s.slot_name = $1",
            &[(&name, Type::TEXT)],
        )
        .await
        .map_err(|e| sql_error(info, "looking at what the slot costs", &e))?;
    Ok(row.map(|row| SlotCost {
        limit_mib: row.get::<_, Option<i64>>(0).unwrap_or(-1),
        safe_bytes: row.get(1),
        catalog_age: row.get(2),
        has_failover: row.get(3),
        standbys: row.get(4),
        spilled: row.get::<_, Option<i64>>(5).zip(row.get(6)),
    }))
}

/// Something that has been there for a while.
#[derive(Debug, Clone, PartialEq)]
pub struct Aged {
    /// Its name: a slot's, a prepared transaction's, or the process of an open one.
    pub name: String,
    /// Since when, in seconds; of a slot: bytes of log that it holds back.
    pub amount: f64,
}

async fn aged(client: &Client, info: &ConnInfo, doing: &str, sql: &str, name: &str) -> Result<Vec<Aged>> {
    let rows = client
        .query_typed(sql, &[(&name, Type::TEXT), (&AT_MOST, Type::INT8)])
        .await
        .map_err(|e| sql_error(info, doing, &e))?;
    let of = |row: &Row| Aged { name: row.get(0), amount: row.get::<_, Option<f64>>(1).unwrap_or(0.0) };
    Ok(rows.iter().map(of).collect())
}

/// Logical slots of this database, but for the one called `name`, that nobody reads.
pub async fn unread_slots(client: &Client, info: &ConnInfo, name: &str) -> Result<Vec<Aged>> {
    let sql = "SELECT slot_name::text, pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery()
                      THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END, restart_lsn)::float8
               FROM pg_catalog.pg_replication_slots
               WHERE slot_type = 'logical' AND database = pg_catalog.current_database() AND NOT active AND NOT temporary
                 AND slot_name <> $1
               ORDER BY 2 DESC NULLS LAST LIMIT $2";
    aged(client, info, "looking for other slots", sql, name).await
}

/// The oldest open transactions of other sessions, by process; those of other roles are seen with `pg_read_all_stats` only.
pub async fn open_transactions(client: &Client, info: &ConnInfo) -> Result<Vec<Aged>> {
    let sql =
        "SELECT pid::text, extract(epoch FROM now() - xact_start)::float8 FROM pg_catalog.pg_stat_activity
               WHERE xact_start IS NOT NULL AND pid <> pg_catalog.pg_backend_pid() AND backend_type = $1
               ORDER BY xact_start LIMIT $2";
    aged(client, info, "looking for open transactions", sql, "client backend").await
}

/// The oldest prepared transactions of this database.
pub async fn prepared_transactions(client: &Client, info: &ConnInfo) -> Result<Vec<Aged>> {
    let sql = "SELECT gid, extract(epoch FROM now() - prepared)::float8 FROM pg_catalog.pg_prepared_xacts
               WHERE database = $1 ORDER BY prepared LIMIT $2";
    aged(client, info, "looking for prepared transactions", sql, &info.database).await
}

/// The tables of which the publication leaves rows out (from version 15 on).
pub async fn filtered_tables(
    client: &Client,
    info: &ConnInfo,
    catalog: &Catalog,
    publication: &str,
) -> Result<Vec<String>> {
    if !catalog.has_column_lists() {
        return Ok(Vec::new());
    }
    let rows = client
        .query_typed(
            "SELECT tablename::text FROM pg_catalog.pg_publication_tables
             WHERE pubname = $1 AND schemaname = $2 AND rowfilter IS NOT NULL ORDER BY 1",
            &[(&publication, Type::TEXT), (&catalog.schema, Type::TEXT)],
        )
        .await
        .map_err(|e| sql_error(info, "reading the publication's row filters", &e))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether our role may read these columns of a table of this name.
async fn may_read(client: &Client, info: &ConnInfo, table: (&str, &str), columns: &[&str]) -> Result<bool> {
    let (schema, name) = table;
    let count = i64::try_from(columns.len()).unwrap_or(0);
    client
        .query_typed_one(
            "SELECT count(*) = $4 FROM pg_catalog.pg_class c
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
             WHERE n.nspname = $1 AND c.relname = $2 AND a.attname = ANY ($3) AND NOT a.attisdropped
               AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
               AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')",
            &[(&schema, Type::TEXT), (&name, Type::TEXT), (&columns, Type::TEXT_ARRAY), (&count, Type::INT8)],
        )
        .await
        .map(|row| row.get(0))
        .map_err(|e| sql_error(info, "asking for privileges", &e))
}

/// The migrations of each of Flagsmith's applications, in order; `None` where our role may not read them, or there are none.
pub async fn migrations(
    client: &Client,
    info: &ConnInfo,
    schema: &str,
) -> Result<Option<BTreeMap<String, Vec<String>>>> {
    if !may_read(client, info, (schema, "django_migrations"), &["app", "name"]).await? {
        return Ok(None);
    }
    let statement = format!(
        "SELECT app::text, array_agg(name::text ORDER BY name) FROM {}.django_migrations GROUP BY 1",
        quoted(schema)
    );
    let rows = client
        .query_typed(&statement, &[])
        .await
        .map_err(|e| sql_error(info, "reading Flagsmith's migrations", &e))?;
    Ok(Some(rows.iter().map(|row| (row.get(0), row.get(1))).collect()))
}

/// Calls of webhooks in Flagsmith's own task queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OwnCalls {
    /// In the last day, as far as the newest rows of the queue reach.
    pub count: i64,
    /// How many seconds ago the latest was queued.
    pub latest: Option<f64>,
}

/// Reads [`OwnCalls`]; `None` where there is no task queue here, or our role may not read it. With `DISABLE_WEBHOOKS=true`
/// Flagsmith queues what decides about calls, and never a call.
pub async fn own_calls(client: &Client, info: &ConnInfo, schema: &str) -> Result<Option<OwnCalls>> {
    let columns = ["id", "task_identifier", "created_at"];
    if !may_read(client, info, (schema, "task_processor_task"), &columns).await? {
        return Ok(None);
    }
    let statement = format!(
        "SELECT count(*), extract(epoch FROM now() - max(created_at))::float8
         FROM (SELECT task_identifier, created_at FROM {}.task_processor_task ORDER BY id DESC LIMIT {NEWEST_TASKS}) newest
         WHERE task_identifier LIKE '%.call\\_webhook\\_with\\_failure\\_mail\\_after\\_retries'
           AND created_at > now() - interval '1 day'",
        quoted(schema)
    );
    let row = client
        .query_typed_one(&statement, &[])
        .await
        .map_err(|e| sql_error(info, "reading Flagsmith's task queue", &e))?;
    Ok(Some(OwnCalls { count: row.get(0), latest: row.get(1) }))
}

/// The values of these settings, as far as the server has them and our role may see them.
pub async fn settings(client: &Client, info: &ConnInfo, names: &[&str]) -> Result<BTreeMap<String, String>> {
    let rows = client
        .query_typed(
            "SELECT name::text, pg_catalog.current_setting(name)::text FROM pg_catalog.pg_settings WHERE name = ANY ($1)",
            &[(&names, Type::TEXT_ARRAY)],
        )
        .await
        .map_err(|e| sql_error(info, "reading settings", &e))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Every slot of the server, as JSON without what a version lacks: names, conditions and positions.
pub async fn all_slots(client: &Client, info: &ConnInfo) -> Result<Vec<String>> {
    let rows = client
        .query_typed(
            "SELECT to_jsonb(s)::text FROM pg_catalog.pg_replication_slots s ORDER BY slot_name",
            &[],
        )
        .await
        .map_err(|e| sql_error(info, "reading the slots", &e))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
