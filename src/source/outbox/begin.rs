//! Beginning with the outbox: it is given to a ledger, and a snapshot shows the tables and tells which of its rows they hold.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::place::Place;
use super::session::not_there;
use crate::change::Lsn;
use crate::error::{Error, Kind, Result};
use crate::fact::{OutboxDeleted, UncapturedForgotten, WaitingForTransactions};
use crate::source::conn_info::ConnInfo;
use crate::source::snapshot::View;
use crate::source::sql::{connect, pinned, sql_error};

/// Between two looks whether open transactions have ended.
const POLL: std::time::Duration = std::time::Duration::from_millis(100);

/// Whether something is installed, whole or not.
pub async fn has_outbox(client: &Client, info: &ConnInfo) -> Result<bool> {
    let sql = "SELECT to_regnamespace('flagpost') IS NOT NULL";
    let row =
        client.query_typed_one(sql, &[]).await.map_err(|e| sql_error(info, "looking for the outbox", &e))?;
    Ok(row.get(0))
}

/// The ledger that the outbox belongs to; `None` when to none.
pub async fn outbox_reader(client: &Client, info: &ConnInfo) -> Result<Option<String>> {
    let sql = "SELECT ledger FROM flagpost.reader";
    let row =
        client.query_typed_opt(sql, &[]).await.map_err(|e| not_there(info, "looking at the outbox", &e))?;
    Ok(row.and_then(|row| row.get(0)))
}

/// Gives the outbox to a new ledger, whose name is returned. From now on no other takes rows away.
pub async fn claim_outbox(client: &Client, info: &ConnInfo) -> Result<String> {
    let sql = "UPDATE flagpost.reader SET ledger = gen_random_uuid()::text, consumed = NULL RETURNING ledger";
    let row =
        client.query_typed_opt(sql, &[]).await.map_err(|e| not_there(info, "looking at the outbox", &e))?;
    row.map(|row| row.get(0)).ok_or_else(|| {
        Error::new(
            Kind::DatabaseRefuses,
            "table flagpost.reader is empty: run \"flagpost setup --mode outbox\" to bring it up to date",
        )
    })
}

/// Forgets statements that were not captured: what they changed is in a snapshot that is taken after this. That may have to
/// wait for transactions that are open now, for they may be the ones.
pub async fn forget_failures(client: &Client, info: &ConnInfo) -> Result<()> {
    let failed = |e: tokio_postgres::Error| sql_error(info, "forgetting what was not captured", &e);
    let count = "SELECT pg_sequence_last_value('flagpost.failures'::regclass)";
    let row = client.query_typed_one(count, &[]).await.map_err(failed)?;
    let Some(count) = row.get::<_, Option<i64>>(0) else { return Ok(()) };
    UncapturedForgotten { count }.tell();
    empty(client, info).await?;
    client
        .batch_execute("SELECT setval('flagpost.failures', 1, false); DELETE FROM flagpost.failure")
        .await
        .map_err(failed)?;
    wait_for_open_transactions(client, info).await
}

/// Empties the outbox, so that the triggers can go on if it had reached its cap: everything in it is older than the snapshot
/// that is to come. TRUNCATE gives the room back at once; where somebody holds the table for long, nobody is made to wait for
/// it, and the rows are deleted instead.
async fn empty(client: &Client, info: &ConnInfo) -> Result<()> {
    let truncate = "BEGIN; SET LOCAL lock_timeout = '500ms'; TRUNCATE flagpost.outbox; COMMIT";
    let Err(error) = client.batch_execute(truncate).await else { return Ok(()) };
    OutboxDeleted { error: error.to_string() }.tell();
    client
        .batch_execute("ROLLBACK; DELETE FROM flagpost.outbox")
        .await
        .map_err(|e| sql_error(info, "emptying the outbox", &e))
}

async fn wait_for_open_transactions(client: &Client, info: &ConnInfo) -> Result<()> {
    let failed = |e: tokio_postgres::Error| sql_error(info, "waiting for open transactions", &e);
    let sql = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text";
    let next: String = client.query_typed_one(sql, &[]).await.map_err(failed)?.get(0);
    let sql = "SELECT pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8";
    let mut is_first = true;
    while !client.query_typed_one(sql, &[(&next, Type::TEXT)]).await.map_err(failed)?.get::<_, bool>(0) {
        if is_first {
            WaitingForTransactions {}.tell();
            is_first = false;
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// The tables and the outbox's place at one moment.
pub async fn outbox_view(info: &ConnInfo) -> Result<View> {
    let client = connect(info).await?;
    let position = position(&client).await;
    let failed = |e: tokio_postgres::Error| sql_error(info, "taking a snapshot", &e);
    let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {}", pinned("SET LOCAL"));
    client.batch_execute(&begin).await.map_err(failed)?;
    let cursor = Some(current_place(&client, info).await?.to_string());
    Ok(View { client, position, cursor })
}

/// The place behind everything that the client's transaction sees.
pub async fn current_place(client: &Client, info: &ConnInfo) -> Result<Place> {
    let sql = "SELECT pg_current_snapshot()::text, coalesce(max(seq), 0) FROM flagpost.outbox";
    let row = client.query_typed_one(sql, &[]).await.map_err(|e| not_there(info, "taking a snapshot", &e))?;
    let snapshot: String = row.get(0);
    Ok(Place::behind(snapshot.parse().map_err(Error::internal)?, row.get(1)))
}

/// Where the server's log is, so that positions go on if the installation changes to replication. Not every managed server
/// tells; then counting begins at one, which is below any position.
async fn position(client: &Client) -> Lsn {
    let messages = client.simple_query("SELECT pg_current_wal_lsn()").await.unwrap_or_default();
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    row.unwrap_or(Lsn(1))
}
