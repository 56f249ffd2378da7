//! How the ledger is as a whole: what is queued for whom, and whether the file is sound.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use rusqlite::{OptionalExtension, params};

use super::Reader;
use super::record::Counts;
use super::search::DeliveryState;
use crate::change::{Micros, Row};
use crate::error::Result;
use crate::event::EndpointKey;
use crate::schema::Table;

/// Of so many failed deliveries the latest failure is looked for: those that wait longest for their next attempt.
const FAILED: usize = 100;
/// So many faults of the file are told.
const FAULTS: usize = 10;

/// What is counted of one endpoint on the way through its deliveries.
#[derive(Default)]
struct Tally {
    counts: Counts,
    /// The first pending event (`event.seq`) that was never sent.
    first_pending: Option<i64>,
    /// When the first pending one was queued that an operator asked for again.
    first_replay: Option<i64>,
    /// `next_at` (no earlier than the last attempt), `event.seq` and attempts of what has failed.
    failed: BinaryHeap<Reverse<(i64, i64, u32)>>,
}

/// A row of `delivery`, but for its endpoint.
struct Passing {
    event: i64,
    state: DeliveryState,
    attempts: u32,
    next_at: i64,
    queued_at: i64,
    is_replay: bool,
}

impl Tally {
    fn add(&mut self, row: &Passing) {
        let counts = &mut self.counts;
        counts.replays += u64::from(row.is_replay);
        let is_pending = matches!(row.state, DeliveryState::Pending | DeliveryState::Retrying);
        match row.state {
            DeliveryState::Delivered => counts.delivered += 1,
            DeliveryState::Dead => counts.dead += 1,
            DeliveryState::Dropped => counts.dropped += 1,
            DeliveryState::Shadowed => counts.shadowed += 1,
            DeliveryState::Pending => counts.pending += 1,
            DeliveryState::Retrying => {
                counts.pending += 1;
                counts.retrying += 1;
            }
        }
        if is_pending && row.is_replay {
            self.first_replay = self.first_replay.into_iter().chain([row.queued_at]).min();
        } else if is_pending {
            // They come in the order of the events.
            self.first_pending = self.first_pending.or(Some(row.event));
        }
        if matches!(row.state, DeliveryState::Retrying | DeliveryState::Dead) && row.attempts > 0 {
            self.failed.push(Reverse((row.next_at, row.event, row.attempts)));
            if self.failed.len() > FAILED {
                self.failed.pop();
            }
        }
    }
}

/// An attempt, without what was sent and answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// `environment:1` …
    pub endpoint: String,
    /// When it began.
    pub at: Micros,
    /// Counted from 1.
    pub number: u32,
    /// The answer's status code, if there was an answer.
    pub http_status: Option<u16>,
    /// How long it took.
    pub milliseconds: u64,
    /// Whether it failed.
    pub has_failed: bool,
}

/// The tables whose rows are counted.
const COUNTED: [&str; 7] = ["meta", "mirror", "event", "body", "delivery", "attempt", "lane"];

impl Reader {
    /// The file's format, its pages, and how many rows its tables have; of the mirror, of each of Flagsmith's tables too.
    pub fn statistics(&self) -> Result<BTreeMap<String, i64>> {
        let mut all = BTreeMap::new();
        let number = |sql: &str| self.connection().query_row(sql, [], |row| row.get::<_, i64>(0));
        for pragma in ["user_version", "page_count", "page_size", "freelist_count"] {
            all.insert(pragma.to_owned(), number(&format!("PRAGMA {pragma}")).map_err(self.failed())?);
        }
        for table in COUNTED {
            let count = number(&format!("SELECT count(*) FROM {table}")).map_err(self.failed())?;
            all.insert(format!("rows.{table}"), count);
        }
        let mut statement = self
            .connection()
            .prepare("SELECT tbl, count(*) FROM mirror GROUP BY tbl")
            .map_err(self.failed())?;
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))
            .map_err(self.failed())?;
        for row in rows {
            let (table, count) = row.map_err(self.failed())?;
            all.insert(format!("rows.mirror.{table}"), count);
        }
        Ok(all)
    }

    /// The latest attempts, newest first.
    pub fn tried(&self, limit: u32) -> Result<Vec<Tried>> {
        let mut statement = self
            .connection()
            .prepare(
                "SELECT endpoint, at, number, http_status, milliseconds, error IS NOT NULL FROM attempt
                 ORDER BY at DESC LIMIT ?1",
            )
            .map_err(self.failed())?;
        let rows = statement
            .query_map([limit], |row| {
                Ok(Tried {
                    endpoint: row.get(0)?,
                    at: Micros(row.get(1)?),
                    number: row.get(2)?,
                    http_status: row.get(3)?,
                    milliseconds: row.get(4)?,
                    has_failed: row.get(5)?,
                })
            })
            .map_err(self.failed())?;
        rows.collect::<rusqlite::Result<_>>().map_err(self.failed())
    }

    /// Deliveries by endpoint and state: one pass through them in the order in which they lie in the file.
    pub fn counts(&self) -> Result<BTreeMap<String, Counts>> {
        let mut statement = self
            .connection()
            .prepare_cached(
                "SELECT endpoint, event, status, attempts, attempts_before, next_at, queued_at, replay FROM delivery",
            )
            .map_err(self.failed())?;
        let mut rows = statement.query([]).map_err(self.failed())?;
        let mut all: BTreeMap<String, Tally> = BTreeMap::new();
        let mut current: Option<(String, Tally)> = None;
        while let Some(row) = rows.next().map_err(self.failed())? {
            let passing = || {
                let attempts: u32 = row.get(3)?;
                Ok(Passing {
                    event: row.get(1)?,
                    state: DeliveryState::of(row.get(2)?, attempts > row.get(4)?),
                    attempts,
                    next_at: row.get(5)?,
                    queued_at: row.get(6)?,
                    is_replay: row.get(7)?,
                })
            };
            let passing = passing().map_err(self.failed())?;
            let endpoint = row.get_ref(0).and_then(|v| Ok(v.as_str()?)).map_err(self.failed())?;
            match &mut current {
                Some((name, tally)) if name == endpoint => tally.add(&passing),
                _ => {
                    all.extend(current.take());
                    let (_, tally) = current.insert((endpoint.to_owned(), Tally::default()));
                    tally.add(&passing);
                }
            }
        }
        all.extend(current);
        all.into_iter().map(|(name, tally)| Ok((name.clone(), self.complete(&name, tally)?))).collect()
    }

    fn complete(&self, endpoint: &str, tally: Tally) -> Result<Counts> {
        let committed = tally.first_pending.map(|event| self.commit_time(event)).transpose()?.flatten();
        let oldest_pending = committed.into_iter().chain(tally.first_replay.map(Micros)).min();
        let mut latest: Option<(i64, Option<String>)> = None;
        for Reverse((_, event, attempts)) in tally.failed {
            let failure = self.failure(endpoint, event, attempts)?;
            latest = latest.into_iter().chain(failure).max_by_key(|(at, _)| *at);
        }
        let last_error = latest.and_then(|(_, error)| error);
        Ok(Counts { oldest_pending, last_error, ..tally.counts })
    }

    fn commit_time(&self, event: i64) -> Result<Option<Micros>> {
        self.connection()
            .prepare_cached("SELECT commit_time FROM event WHERE seq = ?1")
            .and_then(|mut s| s.query_row([event], |row| row.get(0).map(Micros)).optional())
            .map_err(self.failed())
    }

    fn failure(&self, endpoint: &str, event: i64, attempt: u32) -> Result<Option<(i64, Option<String>)>> {
        self.connection()
            .prepare_cached(
                "SELECT at, error FROM attempt WHERE endpoint = ?1 AND event = ?2 AND number = ?3",
            )
            .and_then(|mut s| {
                s.query_row(params![endpoint, event, attempt], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()
            })
            .map_err(self.failed())
    }

    /// The attempts at the newest events of an endpoint, at most `limit`: how many there were, and how many were delivered.
    pub fn recent_attempts(&self, endpoint: EndpointKey, limit: usize) -> Result<(u64, u64)> {
        self.connection()
            .prepare_cached(
                "SELECT count(*), count(*) FILTER (WHERE error IS NULL) FROM (
                     SELECT error FROM attempt WHERE endpoint = ?1 ORDER BY event DESC, number DESC LIMIT ?2)",
            )
            .and_then(|mut s| {
                let limit = i64::try_from(limit).unwrap_or(i64::MAX);
                s.query_row(params![endpoint.to_string(), limit], |row| Ok((row.get(0)?, row.get(1)?)))
            })
            .map_err(self.failed())
    }

    /// The rows of a table that the mirror has: id and the text of a column. Not for columns that are sealed.
    pub fn names(&self, table: Table, column: usize) -> Result<BTreeMap<i64, String>> {
        let mut statement = self
            .connection()
            .prepare_cached("SELECT row FROM mirror WHERE tbl = ?1")
            .map_err(self.failed())?;
        let rows =
            statement.query_map([table.name()], |row| row.get::<_, Vec<u8>>(0)).map_err(self.failed())?;
        let mut names = BTreeMap::new();
        for bytes in rows {
            let Some(row) = Row::from_bytes(&bytes.map_err(self.failed())?) else { continue };
            // The first column is the primary key.
            names.extend(row.int(0).zip(row.text(column).map(str::to_owned)));
        }
        Ok(names)
    }

    /// What is wrong with the file: nothing, or the first faults. Reads all of it; `full` also compares every index with its
    /// table, which takes several times as long.
    pub fn faults(&self, full: bool) -> Result<Vec<String>> {
        let pragma = if full { "integrity_check" } else { "quick_check" };
        let mut statement =
            self.connection().prepare(&format!("PRAGMA {pragma}({FAULTS})")).map_err(self.failed())?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).map_err(self.failed())?;
        let mut faults = rows.collect::<rusqlite::Result<Vec<_>>>().map_err(self.failed())?;
        faults.retain(|fault| fault != "ok");
        Ok(faults)
    }
}
