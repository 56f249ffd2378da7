//! What an operator asks of the outbox: whether our role may read it, how much waits in it, how large it is, what was not
//! captured, whose it is; and what our role could set up. Read only; nothing here decides whether an answer is good.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::session::not_there;
use crate::error::Result;
use crate::schema::Table;
use crate::source::conn_info::ConnInfo;
use crate::source::sql::sql_error;

/// What the outbox holds.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxFacts {
    /// Row changes that have not been taken away.
    pub changes: i64,
    /// Since when the oldest of them waits.
    pub oldest_seconds: Option<f64>,
    /// Its size on disk, as the triggers measure it.
    pub bytes: i64,
    /// The size that the triggers know as the cap. Installing tells them; a change of the configuration alone does not.
    pub cap: Option<i64>,
    /// Statements that could not be captured.
    pub failures: i64,
    /// The ledger that it belongs to.
    pub reader: Option<String>,
    /// The highest sequence number that has been taken away.
    pub consumed: i64,
    /// The highest that has been given.
    pub given: i64,
}

impl OutboxFacts {
    /// Whether nothing more is written to it; `configured` counts where the triggers do not tell.
    pub fn is_full(&self, configured: u64) -> bool {
        self.bytes >= self.limit(configured)
    }

    /// The cap that counts.
    pub fn limit(&self, configured: u64) -> i64 {
        self.cap.unwrap_or(i64::try_from(configured).unwrap_or(i64::MAX))
    }
}

/// Reads [`OutboxFacts`] of an outbox that is there and that our role may read.
pub async fn outbox_facts(client: &Client, info: &ConnInfo) -> Result<OutboxFacts> {
    // Marks of commits are no changes, and some of them may stay until something comes of a change.
    let row = client
        .query_typed_one(
            "SELECT w.changes, w.oldest, pg_catalog.pg_table_size('flagpost.outbox'),
                    (SELECT substring(prosrc FROM $$pg_table_size\\('flagpost.outbox'\\) >= (\\d+)$$)::bigint
                     FROM pg_catalog.pg_proc WHERE oid = to_regprocedure('flagpost.capture()')),
                    coalesce(pg_catalog.pg_sequence_last_value('flagpost.failures'), 0),
                    r.ledger, coalesce(r.consumed, 0), coalesce(pg_catalog.pg_sequence_last_value('flagpost.outbox_seq_seq'), 0)
             FROM (SELECT count(*) AS changes,
                          greatest(extract(epoch FROM clock_timestamp() - min(at)), 0)::float8 AS oldest
                   FROM flagpost.outbox WHERE op <> 'C') w
             LEFT JOIN flagpost.reader r ON true",
            &[],
        )
        .await
        .map_err(|e| not_there(info, "looking at the outbox", &e))?;
    let changes: i64 = row.get(0);
    Ok(OutboxFacts {
        changes,
        // `greatest` passes NULL over.
        oldest_seconds: row.get::<_, Option<f64>>(1).filter(|_| changes > 0),
        bytes: row.get(2),
        cap: row.get(3),
        failures: row.get(4),
        reader: row.get(5),
        consumed: row.get(6),
        given: row.get(7),
    })
}

/// The first reasons why statements were not captured, at most `limit`, each in words.
pub async fn outbox_failures(client: &Client, info: &ConnInfo, limit: i64) -> Result<Vec<String>> {
    let rows = client
        .query_typed(
            "SELECT op, table_name, message, sqlstate, count(*) FROM flagpost.failure
             GROUP BY op, table_name, message, sqlstate ORDER BY min(number) LIMIT $1",
            &[(&limit, Type::INT8)],
        )
        .await
        .map_err(|e| not_there(info, "looking at the outbox", &e))?;
    let words = |row: &tokio_postgres::Row| {
        let (op, table, message): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        let (sqlstate, count): (&str, i64) = (row.get(3), row.get(4));
        let times = if count > 1 { format!(", {count} times") } else { String::new() };
        format!("{op} of {table}: {message} ({sqlstate}{times})")
    };
    Ok(rows.iter().map(words).collect())
}

/// Whether our role can use the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Whether its tables are there.
    pub is_there: bool,
    /// What `sql/outbox_grants.sql` grants and our role lacks, as `SELECT on flagpost.outbox`.
    pub lacking: Vec<String>,
}

/// Reads [`Access`], also for a role that may not even look into the schema.
pub async fn outbox_access(client: &Client, info: &ConnInfo) -> Result<Access> {
    let rows = client
        .query_typed(
            "WITH needed (name, privileges) AS (
                 VALUES ('outbox', ARRAY['SELECT', 'DELETE', 'TRUNCATE']), ('failure', ARRAY['SELECT', 'DELETE']),
                        ('reader', ARRAY['SELECT', 'UPDATE']), ('failures', ARRAY['SELECT', 'UPDATE']),
                        ('outbox_seq_seq', ARRAY['SELECT'])
             )
             SELECT 'USAGE on schema flagpost', true FROM pg_catalog.pg_namespace
             WHERE nspname = 'flagpost' AND NOT pg_catalog.has_schema_privilege(oid, 'USAGE')
             UNION ALL
             SELECT privilege || ' on flagpost.' || name, c.oid IS NOT NULL
             FROM needed CROSS JOIN unnest(privileges) privilege
             LEFT JOIN pg_catalog.pg_class c
                 ON c.relname = name AND c.relnamespace = to_regnamespace('flagpost')
             WHERE NOT coalesce(CASE c.relkind WHEN 'S' THEN pg_catalog.has_sequence_privilege(c.oid, privilege)
                                               ELSE pg_catalog.has_table_privilege(c.oid, privilege) END, false)",
            &[],
        )
        .await
        .map_err(|e| sql_error(info, "reading privileges", &e))?;
    Ok(Access {
        is_there: rows.iter().all(|row| row.get(1)),
        lacking: rows.iter().map(|row| row.get(0)).collect(),
    })
}

/// What our role could set up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetupFacts {
    /// Whether it may make schemas in the database.
    pub may_create: bool,
    /// Whether it may make the role that owns the outbox, or is a member of it.
    pub may_own: bool,
    /// Flagsmith's tables that do not belong to it.
    pub foreign_tables: usize,
}

/// Reads [`SetupFacts`] for an outbox that `owner` is to own, of the tables in `schema`.
pub async fn outbox_setup_facts(
    client: &Client,
    info: &ConnInfo,
    owner: &str,
    schema: &str,
) -> Result<SetupFacts> {
    let tables: Vec<&str> = Table::ALL.iter().map(|table| table.name()).collect();
    let row = client
        .query_typed_one(
            "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
                    EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = current_user AND (rolsuper OR rolcreaterole))
                    OR EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1 AND pg_catalog.pg_has_role(oid, 'MEMBER')),
                    (SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                     WHERE n.nspname = $2 AND c.relname = ANY ($3) AND c.relkind IN ('r', 'p')
                       AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE'))",
            &[(&owner, Type::TEXT), (&schema, Type::TEXT), (&tables, Type::TEXT_ARRAY)],
        )
        .await
        .map_err(|e| sql_error(info, "asking what the role could set up", &e))?;
    Ok(SetupFacts {
        may_create: row.get(0),
        may_own: row.get(1),
        foreign_tables: usize::try_from(row.get::<_, i64>(2)).unwrap_or_default(),
    })
}

/// The tables that a subscription of logical replication writes to: its rows come in without firing statement triggers
/// (PostgreSQL manual, "Logical Replication", "Architecture").
pub async fn subscribed_tables(client: &Client, info: &ConnInfo, schema: &str) -> Result<Vec<String>> {
    let tables: Vec<&str> = Table::ALL.iter().map(|table| table.name()).collect();
    let rows = client
        .query_typed(
            "SELECT DISTINCT c.relname::text FROM pg_catalog.pg_subscription_rel r
             JOIN pg_catalog.pg_class c ON c.oid = r.srrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relname = ANY ($2) ORDER BY 1",
            &[(&schema, Type::TEXT), (&tables, Type::TEXT_ARRAY)],
        )
        .await
        .map_err(|e| sql_error(info, "looking for subscriptions", &e))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// How many of Flagsmith's tables write to an outbox.
pub async fn outbox_tables(client: &Client, info: &ConnInfo) -> Result<i64> {
    client
        .query_typed_one(
            "SELECT count(DISTINCT t.tgrelid) FROM pg_catalog.pg_trigger t
             JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
             WHERE p.pronamespace = to_regnamespace('flagpost') AND p.proname = 'capture' AND t.tgenabled <> 'D'",
            &[],
        )
        .await
        .map(|row| row.get(0))
        .map_err(|e| sql_error(info, "looking for the outbox's triggers", &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_triggers_own_cap_counts_before_the_configured_one() {
        let facts = OutboxFacts {
            changes: 0,
            oldest_seconds: None,
            bytes: 100,
            cap: Some(100),
            failures: 0,
            reader: None,
            consumed: 0,
            given: 7,
        };
        assert!(facts.is_full(1 << 30));
        let untold = OutboxFacts { cap: None, ..facts };
        assert!(untold.is_full(100) && !untold.is_full(101));
    }
}
