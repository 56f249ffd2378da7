//! What has become too old: found by reading, in steps that are small for the writer. What is still to be sent is never purged.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use super::Reader;
use crate::change::Micros;
use crate::error::Result;
use crate::event::EndpointKey;

/// The endpoints that have deliveries: one seek each, however many deliveries there are.
pub(super) const ENDPOINTS: &str = "
    WITH RECURSIVE endpoints (name) AS (
        SELECT min(endpoint) FROM delivery
        UNION ALL
        SELECT (SELECT min(endpoint) FROM delivery WHERE endpoint > name) FROM endpoints WHERE name IS NOT NULL
    )
    SELECT name FROM endpoints WHERE name IS NOT NULL";

/// By which time of an event something is found.
#[derive(Debug, Clone, Copy)]
pub(super) enum Clock {
    /// When it was recorded here.
    Recorded,
    /// When it was committed there.
    Commit,
}

/// What of the ledger is kept. What is still to be sent always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Events with their deliveries and attempts are kept for so long.
    pub age: Duration,
    /// Older ones go earlier when the ledger is larger than this, in bytes.
    pub max_bytes: u64,
}

impl Default for Retention {
    /// Thirty days, 4 GiB.
    fn default() -> Self {
        Retention { age: Duration::from_secs(30 * 24 * 3600), max_bytes: 4 << 30 }
    }
}

/// What [`Reader::finished`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// Events (`event.seq`) with nothing pending.
    pub events: Vec<i64>,
    /// The last event that was looked at; `None` when there was none left to look at.
    pub looked_until: Option<i64>,
}

impl Reader {
    /// Deliveries that have waited since before `queued_before`, at most `limit`; not those to paused endpoints.
    pub fn expired(&self, queued_before: Micros, limit: usize) -> Result<Vec<(EndpointKey, i64)>> {
        let Some(newest) = self.last_event_before(Clock::Recorded, queued_before)? else {
            return Ok(Vec::new());
        };
        let mut expired = Vec::new();
        for endpoint in self.endpoints_with_deliveries()? {
            if self.lane(endpoint)?.pause.is_some() {
                continue;
            }
            let room = i64::try_from(limit.saturating_sub(expired.len())).unwrap_or(i64::MAX);
            let mut statement = self
                .connection()
                .prepare_cached(
                    "SELECT event FROM delivery INDEXED BY delivery_lane
                     WHERE endpoint = ?1 AND status IN (0, 1) AND event <= ?2 AND queued_at < ?3 LIMIT ?4",
                )
                .map_err(self.failed())?;
            let rows = statement
                .query_map(params![endpoint.to_string(), newest, queued_before.0, room], |row| row.get(0))
                .map_err(self.failed())?;
            for event in rows {
                expired.push((endpoint, event.map_err(self.failed())?));
            }
        }
        Ok(expired)
    }

    /// Of the next `limit` events after `after` (`event.seq`) those that have nothing pending, and were recorded before
    /// `recorded_before`.
    pub fn finished(&self, after: i64, recorded_before: Micros, limit: usize) -> Result<Finished> {
        let mut statement = self
            .connection()
            .prepare_cached("SELECT seq FROM event WHERE seq > ?1 AND recorded_at < ?2 ORDER BY seq LIMIT ?3")
            .map_err(self.failed())?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // Recorded in the order of seq: the first that is too young ends the search.
        let newest = self.last_event_before(Clock::Recorded, recorded_before)?.unwrap_or(0);
        if newest <= after {
            return Ok(Finished::default());
        }
        let mut events = statement
            .query_map(params![after, recorded_before.0, limit], |row| row.get(0))
            .map_err(self.failed())?
            .collect::<rusqlite::Result<Vec<i64>>>()
            .map_err(self.failed())?;
        let (Some(first), Some(last)) = (events.first().copied(), events.last().copied()) else {
            return Ok(Finished::default());
        };
        for endpoint in self.endpoints_with_deliveries()? {
            let mut statement = self
                .connection()
                .prepare_cached(
                    "SELECT event FROM delivery WHERE endpoint = ?1 AND event BETWEEN ?2 AND ?3 AND status IN (0, 1)",
                )
                .map_err(self.failed())?;
            let pending = statement
                .query_map(params![endpoint.to_string(), first, last], |row| row.get(0))
                .map_err(self.failed())?
                .collect::<rusqlite::Result<std::collections::HashSet<i64>>>()
                .map_err(self.failed())?;
            events.retain(|event| !pending.contains(event));
        }
        Ok(Finished { events, looked_until: Some(last) })
    }

    /// Bytes of the ledger file that hold something.
    pub fn used_bytes(&self) -> Result<u64> {
        let pragma = |name: &str| {
            self.connection()
                .query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, u64>(0))
                .map_err(self.failed())
        };
        let pages = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
        Ok(pages * pragma("page_size")?)
    }

    /// The endpoints that have ever had a delivery that is on record.
    pub fn endpoints_with_deliveries(&self) -> Result<Vec<EndpointKey>> {
        let mut statement = self.connection().prepare_cached(ENDPOINTS).map_err(self.failed())?;
        let names = statement.query_map([], |row| row.get::<_, String>(0)).map_err(self.failed())?;
        let mut endpoints = Vec::new();
        for name in names {
            endpoints.extend(name.map_err(self.failed())?.parse::<EndpointKey>().ok());
        }
        Ok(endpoints)
    }

    /// The last event before `time`. Their times are in the order of their numbers, so halving finds it.
    pub(super) fn last_event_before(&self, clock: Clock, time: Micros) -> Result<Option<i64>> {
        let sql = match clock {
            Clock::Recorded => "SELECT seq, recorded_at FROM event WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1",
            Clock::Commit => "SELECT seq, commit_time FROM event WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1",
        };
        let (mut low, mut high) = (0, self.last_event()?);
        let mut found = None;
        while low <= high {
            let middle = low + (high - low) / 2;
            let at: Option<(i64, i64)> = self
                .connection()
                .prepare_cached(sql)
                .and_then(|mut s| s.query_row([middle], |row| Ok((row.get(0)?, row.get(1)?))).optional())
                .map_err(self.failed())?;
            match at {
                Some((seq, at)) if at >= time.0 => high = seq - 1,
                Some((seq, _)) => {
                    found = Some(seq);
                    low = middle + 1;
                }
                None => low = middle + 1,
            }
        }
        Ok(found)
    }
}
