//! Whether a pooler stands between that gives every transaction another of the server's sessions.
//!
//! A server never moves a session: `pg_backend_pid()` stays. A pooler in transaction mode gives back the session that it used
//! last, so one client alone sees the same process again and again. Therefore other clients take sessions away and hold them,
//! each in an open transaction, while the first is asked again.
//!
//! A pooler in session mode is not seen: nothing of flagpost's needs that, but for replication, which it refuses by itself.
//! Source: PostgreSQL manual, "Session Information Functions"; PgBouncer's documentation, "Pooling modes".

use std::time::Duration;

use tokio_postgres::Client;

use super::conn_info::ConnInfo;
use super::sql::{connect, sql_error};
use crate::error::Result;

/// Clients that hold a session. A pooler that takes turns (`server_round_robin`) may give the first one its old session while
/// it has idle ones; it has fewer of them each time.
const HOLDERS: usize = 3;
/// A pool without another session lets the client wait until one is free.
const PATIENCE: Duration = Duration::from_secs(3);

/// See the module's documentation.
pub async fn has_transaction_pooler(client: &Client, info: &ConnInfo) -> Result<bool> {
    let before = backend(client, info).await?;
    let mut holders = Vec::new();
    for _ in 0..HOLDERS {
        let holder = connect(info).await?;
        let begun = holder.batch_execute("BEGIN; SELECT 1").await;
        begun.map_err(|e| sql_error(info, "opening a transaction", &e))?;
        holders.push(holder);
        match tokio::time::timeout(PATIENCE, backend(client, info)).await {
            Ok(now) if now.as_ref().is_ok_and(|now| *now == before) => {}
            Ok(now) => return now.map(|_| true),
            Err(_) => return Ok(true),
        }
    }
    Ok(false)
}

/// The server's process that serves this transaction.
async fn backend(client: &Client, info: &ConnInfo) -> Result<i32> {
    client
        .query_typed_one("SELECT pg_catalog.pg_backend_pid()", &[])
        .await
        .map(|row| row.get(0))
        .map_err(|e| sql_error(info, "asking which process serves us", &e))
}
