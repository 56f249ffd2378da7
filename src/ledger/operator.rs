//! What an operator's commands write: pauses, and deliveries that are to be made again. Beside a running daemon or without one.
//!
//! The daemon's writer holds the state directory's lock, not the file: SQLite lets one writer in at a time, and a command writes
//! in short steps. Each of them counts [`OPERATOR_MARK`] up, by which the dispatcher knows to look again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::schema::{self, BEHIND, DEAD, DELIVERED, READY};
use crate::change::Micros;
use crate::error::{Error, Result};
use crate::event::EndpointKey;

/// The key in `meta` that counts an operator's writes.
pub(super) const OPERATOR_MARK: &str = "operator";

/// Who pauses, if not [`Operator::named`] otherwise.
const OPERATOR: &str = "operator";
/// So many deliveries are queued again in one step.
const STEP: usize = 500;
/// Between two steps. SQLite does not queue writers: they look again after a while, and who never lets go is always first.
const TURN: Duration = Duration::from_millis(20);

/// What [`Operator::resume`] ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resumed {
    /// The endpoint was paused.
    pub was_paused: bool,
    /// Its breaker was open.
    pub was_open: bool,
}

/// A connection for an operator's command.
pub struct Operator {
    connection: Connection,
    name: &'static str,
    path: PathBuf,
}

impl Operator {
    /// Opens an existing ledger in `directory`.
    pub fn open(directory: &Path) -> Result<Operator> {
        let path = directory.join(super::FILE);
        Ok(Operator { connection: schema::open_existing(&path)?, name: OPERATOR, path })
    }

    /// The same under another name: who paused an endpoint is told with it.
    pub fn named(mut self, name: &'static str) -> Operator {
        self.name = name;
        self
    }

    /// Sends nothing more to an endpoint until it is resumed; what comes for it waits.
    pub fn pause(&mut self, endpoint: EndpointKey, why: &str) -> Result<()> {
        let name = self.name;
        self.step(|step| {
            step.execute(
                "INSERT INTO lane (endpoint, paused_at, paused_by, paused_why) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (endpoint) DO UPDATE SET paused_at = ?2, paused_by = ?3, paused_why = ?4",
                params![endpoint.to_string(), Micros::now().0, name, why],
            )
            .map(drop)
        })
    }

    /// Ends a pause, closes the breaker, and lets go at once what waits for its next attempt.
    pub fn resume(&mut self, endpoint: EndpointKey) -> Result<Resumed> {
        self.step(|step| {
            let before = step
                .query_row(
                    "SELECT paused_at IS NOT NULL, opened_at IS NOT NULL FROM lane WHERE endpoint = ?1",
                    [endpoint.to_string()],
                    |row| Ok(Resumed { was_paused: row.get(0)?, was_open: row.get(1)? }),
                )
                .optional()?
                .unwrap_or_default();
            step.execute(
                "UPDATE lane SET paused_at = NULL, paused_by = NULL, paused_why = NULL, failures = 0, failing_since = NULL,
                     opened_at = NULL, probe_at = NULL, probes = 0
                 WHERE endpoint = ?1",
                [endpoint.to_string()],
            )?;
            step.execute(
                "UPDATE delivery SET next_at = ?2 WHERE endpoint = ?1 AND status = ?3 AND next_at > ?2",
                params![endpoint.to_string(), Micros::now().0, READY],
            )?;
            Ok(before)
        })
    }

    /// Queues deliveries (endpoint, `event.seq`) again that were made or given up, marked as replays. Returns how many; those
    /// that are still pending, that were dropped with their endpoint, or seen in shadow mode are left alone. The older of two of
    /// the same flag comes first, or it would be sent last.
    ///
    /// Blocks for longer than its writes take: between two steps a daemon has time for its own.
    pub fn requeue(&mut self, deliveries: &[(EndpointKey, i64)]) -> Result<usize> {
        let mut count = 0;
        for (number, some) in deliveries.chunks(STEP).enumerate() {
            if number > 0 {
                std::thread::sleep(TURN);
            }
            count += self.step(|step| {
                let mut queued = 0;
                for (endpoint, event) in some {
                    queued += requeue(step, &endpoint.to_string(), *event)?;
                }
                Ok(queued)
            })?;
        }
        Ok(count)
    }

    fn step<T>(&mut self, change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        let failed = |e| unusable(&self.path, e);
        let step =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let changed = change(&step).map_err(failed)?;
        step.execute(
            "INSERT INTO meta VALUES (?1, '1') ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1",
            [OPERATOR_MARK],
        )
        .map_err(failed)?;
        step.commit().map_err(failed)?;
        Ok(changed)
    }
}

/// Behind the first delivery of its flag that is ready, if there is one: two of a flag are never under way at once.
fn requeue(step: &Transaction<'_>, endpoint: &str, event: i64) -> rusqlite::Result<usize> {
    step.prepare_cached(
        "UPDATE delivery SET replay = 1, queued_at = ?3, next_at = ?3, attempts_before = attempts,
             status = CASE WHEN EXISTS (
                 SELECT 1 FROM delivery ready INDEXED BY delivery_lane WHERE ready.endpoint = ?1 AND ready.lane = delivery.lane
                     AND ready.status IN (0, 1) AND ready.event <> ?2
             ) THEN ?4 ELSE ?5 END
         WHERE endpoint = ?1 AND event = ?2 AND status IN (?6, ?7)",
    )?
    .execute(params![endpoint, event, Micros::now().0, BEHIND, READY, DELIVERED, DEAD])
}

fn unusable(path: &Path, error: rusqlite::Error) -> Error {
    schema::unusable(path, error)
}
