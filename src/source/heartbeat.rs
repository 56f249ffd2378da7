//! The heartbeat: a mark of ours in the server's log from time to time, which comes back in the stream.
//!
//! PostgreSQL's own keepalives tell the stream how far the server has read, so on a server of its own none is needed and it is
//! off. It is for what stands between (a service or a proxy that passes no keepalives on), and shows that a position of the log
//! makes the whole way. A mark is some 80 bytes of log, no row, no transaction id.
//!
//! Source: PostgreSQL manual, "Replication Management Functions" (`pg_logical_emit_message`).

use std::time::Duration;

use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::conn_info::ConnInfo;
use super::sql::{reuse, sql_error};
use crate::change::Micros;
use crate::error::Result;
use crate::fact::HeartbeatFailed;

/// By which our marks are known from those of others.
const PREFIX: &str = "flagpost";

/// The server's clock when a mark was left; `None` if it is none of ours.
pub(super) fn time_of(prefix: &[u8], content: &[u8]) -> Option<Micros> {
    let text = std::str::from_utf8(content).ok().filter(|_| prefix == PREFIX.as_bytes())?;
    text.parse().ok().map(Micros)
}

/// Leaves a mark each time, until `stop`. One that cannot be left is told once, until one could be again.
pub async fn beat(info: ConnInfo, every: Duration, stop: CancellationToken) {
    let mut client = None;
    let mut is_well = true;
    loop {
        match stop.run_until_cancelled(mark(&info, &mut client)).await {
            None => return,
            Some(Ok(())) => is_well = true,
            Some(Err(error)) => {
                if std::mem::take(&mut is_well) {
                    HeartbeatFailed { error: error.to_string() }.tell();
                }
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(every)).await.is_none() {
            return;
        }
    }
}

async fn mark(info: &ConnInfo, kept: &mut Option<Client>) -> Result<()> {
    let client = reuse(kept.take(), info).await?;
    // Not transactional: it is in the log at once and takes no transaction id. It says when, since it is read later.
    let sql = "SELECT pg_catalog.pg_logical_emit_message(false, $1,
                      (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint::text)";
    client
        .execute(sql, &[&PREFIX])
        .await
        .map_err(|e| sql_error(info, "leaving a heartbeat in the log", &e))?;
    *kept = Some(client);
    Ok(())
}
