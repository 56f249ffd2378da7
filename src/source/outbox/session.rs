//! One connection to the outbox, and the statements that are run on it. Each stands alone and is sent without a name, so a
//! pooler that gives every transaction another of the server's sessions does no harm: only notifications do not come then.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, RowStream};

use super::place::{Place, Snapshot};
use crate::change::Micros;
use crate::error::{Error, Kind, Result};
use crate::source::conn_info::ConnInfo;
use crate::source::observe::system_id;
use crate::source::sql::{connect_notified, sql_error};

const LOOK: &str = include_str!("../../../sql/outbox_look.sql");
const READ: &str = include_str!("../../../sql/outbox_read.sql");
const TAKE_AWAY: &str = include_str!("../../../sql/outbox_take_away.sql");

/// So long a look may take, which is a matter of milliseconds.
pub(super) const SILENCE: Duration = Duration::from_secs(30);

/// See the module's documentation.
pub(super) struct Session {
    client: Client,
    info: ConnInfo,
    notified: Arc<Notify>,
}

/// What a look at the outbox shows.
pub(super) struct Look {
    /// What can be seen.
    pub(super) snapshot: Snapshot,
    /// The server's clock before that.
    pub(super) time: Micros,
    /// Whether there is something that the snapshot before did not see.
    pub(super) waits: bool,
    /// Statements that were not captured.
    pub(super) failures: i64,
    /// The ledger that it belongs to; empty when to none.
    pub(super) ledger: String,
    /// The highest sequence number that has been taken away.
    pub(super) consumed: i64,
    /// The highest that has been given.
    pub(super) given: i64,
    /// The server's last checkpoint: another after a crash.
    pub(super) checkpoint: String,
}

impl Session {
    pub(super) async fn open(info: &ConnInfo) -> Result<Session> {
        let notified = Arc::new(Notify::new());
        let client = connect_notified(info, Arc::clone(&notified)).await?;
        let session = Session { client, info: info.clone(), notified };
        let failed = |e: tokio_postgres::Error| sql_error(info, "listening", &e);
        session.client.batch_execute("LISTEN flagpost").await.map_err(failed)?;
        Ok(session)
    }

    /// Waits until something is committed to the outbox. That it was not told means nothing.
    pub(super) async fn notified(&self) {
        self.notified.notified().await;
    }

    /// The cluster's system identifier.
    pub(super) async fn system_id(&self) -> Result<String> {
        system_id(&self.client, &self.info).await
    }

    /// Looks at what is there that the snapshot `done` did not see or that is above `read_to`, from transaction `floor` on. A
    /// server that does not answer is gone.
    pub(super) async fn look(&self, done: &Snapshot, read_to: i64, floor: u64) -> Result<Look> {
        let (done, floor) = (done.as_str(), floor.to_string());
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&done, Type::TEXT), (&read_to, Type::INT8), (&floor, Type::TEXT)];
        let answer = self.client.query_typed_opt(LOOK, &parameters);
        let answer = tokio::time::timeout(SILENCE, answer).await.map_err(|_| {
            Error::new(
                Kind::DatabaseUnreachable,
                format!("the server has not answered for {} s: check that it is up", SILENCE.as_secs()),
            )
        })?;
        let row = answer
            .map_err(|e| not_there(&self.info, "looking at the outbox", &e))?
            .ok_or_else(|| garbled(&"table flagpost.reader is empty"))?;
        let snapshot: String = row.try_get(0).map_err(|e| garbled(&e))?;
        Ok(Look {
            snapshot: snapshot.parse().map_err(|e: String| garbled(&e))?,
            time: Micros(row.try_get(1).map_err(|e| garbled(&e))?),
            waits: row.try_get(2).map_err(|e| garbled(&e))?,
            failures: row.try_get::<_, Option<i64>>(3).map_err(|e| garbled(&e))?.unwrap_or(0),
            ledger: row.try_get(4).map_err(|e| garbled(&e))?,
            consumed: row.try_get(5).map_err(|e| garbled(&e))?,
            given: row.try_get(6).map_err(|e| garbled(&e))?,
            checkpoint: row.try_get(7).map_err(|e| garbled(&e))?,
        })
    }

    /// The rows of a batch that come after its place, as `sql/outbox_read.sql` has them.
    pub(super) async fn rows(&self, place: &Place, floor: u64) -> Result<RowStream> {
        let (before, batch, floor) = (place.before.as_str(), place.batch.as_str(), floor.to_string());
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            (&before, Type::TEXT),
            (&batch, Type::TEXT),
            (&place.seq, Type::INT8),
            (&place.read_to, Type::INT8),
            (&floor, Type::TEXT),
        ];
        self.client.query_typed_raw(READ, parameters).await.map_err(|e| self.failed(&e))
    }

    /// The error of reading rows.
    pub(super) fn failed(&self, error: &tokio_postgres::Error) -> Error {
        not_there(&self.info, "reading the outbox", error)
    }

    /// Takes away what the snapshot sees up to a sequence number, from transaction `floor` on.
    pub(super) async fn take_away(
        &self,
        ledger: &str,
        seen: &Snapshot,
        consumed: i64,
        floor: u64,
    ) -> Result<()> {
        let sql = TAKE_AWAY
            .replace("{seen}", seen.as_str())
            .replace("{consumed}", &consumed.to_string())
            .replace("{floor}", &floor.to_string())
            .replace("{ledger}", &ledger.replace('\'', "''"));
        let doing = "taking away what has been read of the outbox";
        self.client.batch_execute(&sql).await.map_err(|e| not_there(&self.info, doing, &e))
    }
}

/// The error of a statement on the outbox: where nothing is installed, that is what the operator must hear.
pub(super) fn not_there(info: &ConnInfo, doing: &str, error: &tokio_postgres::Error) -> Error {
    let code = error.code().map(|code| code.code());
    // Undefined table, undefined schema.
    if code.is_some_and(|code| code == "42P01" || code == "3F000") {
        return Error::new(
            Kind::SlotLost,
            "the outbox is not there (schema flagpost lacks what it needs): run \"flagpost setup --mode outbox\"; if it was there \
             before, what changed since it went is lost: \"flagpost recover\" sends receivers the difference, and --resnapshot begins \
             anew without it",
        );
    }
    sql_error(info, doing, error)
}

fn garbled(why: &dyn std::fmt::Display) -> Error {
    Error::new(
        Kind::DatabaseRefuses,
        format!(
            "the outbox has another shape ({why}): run \"flagpost setup --mode outbox\" to bring it up to date"
        ),
    )
}
