//! Finding events and deliveries by what they are about.
//!
//! A ledger can hold millions of events, and none of these questions reads more of them than it must: events are found from the
//! newest on, by their number or along the deliveries of one endpoint, and times are turned into ranges of numbers first.

use rusqlite::{Row as SqlRow, named_params};

use super::Reader;
use super::retention::Clock;
use super::schema::{BEHIND, DEAD, DELIVERED, DROPPED, READY, SHADOWED};
use crate::change::Micros;
use crate::error::Result;
use crate::event::EndpointKey;

/// Commit times are in the order of the events' numbers but for this: a group of changes is recorded a moment after its commit,
/// and clocks are set.
const DISORDER: i64 = 3600 * 1_000_000;

/// What has become of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeliveryState {
    /// Answered with 2xx.
    Delivered,
    /// To be sent.
    Pending,
    /// Failed, and to be tried again.
    Retrying,
    /// Given up.
    Dead,
    /// Its endpoint was deleted.
    Dropped,
    /// Recorded in shadow mode: never sent.
    Shadowed,
}

impl DeliveryState {
    /// All of them.
    pub const ALL: [DeliveryState; 6] = [
        DeliveryState::Delivered,
        DeliveryState::Pending,
        DeliveryState::Retrying,
        DeliveryState::Dead,
        DeliveryState::Dropped,
        DeliveryState::Shadowed,
    ];

    /// The name in output and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            DeliveryState::Delivered => "delivered",
            DeliveryState::Pending => "pending",
            DeliveryState::Retrying => "retrying",
            DeliveryState::Dead => "dead",
            DeliveryState::Dropped => "dropped",
            DeliveryState::Shadowed => "shadowed",
        }
    }

    /// The state with this name. `Err` names all of them.
    pub fn named(text: &str) -> Result<DeliveryState, String> {
        let known = DeliveryState::ALL.into_iter().find(|state| state.name() == text);
        known.ok_or_else(|| format!("use one of {}", DeliveryState::ALL.map(DeliveryState::name).join(", ")))
    }

    /// Whether it is found where `other` is asked for: what is to be tried again is pending, too.
    pub fn is(self, other: DeliveryState) -> bool {
        self == other || (self, other) == (DeliveryState::Retrying, DeliveryState::Pending)
    }

    /// Of `delivery.status`, and whether it was tried since it was queued.
    pub(super) fn of(status: i64, was_tried: bool) -> DeliveryState {
        match status {
            DELIVERED => DeliveryState::Delivered,
            DEAD => DeliveryState::Dead,
            DROPPED => DeliveryState::Dropped,
            SHADOWED => DeliveryState::Shadowed,
            READY | BEHIND if was_tried => DeliveryState::Retrying,
            _ => DeliveryState::Pending,
        }
    }

    /// How SQL finds them, and by which index. Only dead letters have one of their own: of all the others there are either few
    /// among the newest, or many, and both are found by walking back from the newest.
    fn sql(self) -> (&'static str, &'static str) {
        match self {
            DeliveryState::Delivered => ("", "d.status = 2"),
            DeliveryState::Pending => ("", "d.status IN (0, 1)"),
            DeliveryState::Retrying => ("", "d.status = 0 AND d.attempts > d.attempts_before"),
            DeliveryState::Dead => ("INDEXED BY delivery_dead", "d.status = 3"),
            DeliveryState::Dropped => ("", "d.status = 4"),
            DeliveryState::Shadowed => ("", "d.status = 5"),
        }
    }
}

/// Which events are asked for. What is `None` asks for nothing in particular.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Those that were for this endpoint.
    pub endpoint: Option<EndpointKey>,
    /// Those that have a delivery (to that endpoint) of this kind.
    pub state: Option<DeliveryState>,
    /// Of one of these organisations.
    pub organisations: Option<Vec<i64>>,
    /// Of one of these environments.
    pub environments: Option<Vec<i64>>,
    /// Of the feature with this name, or with this id.
    pub feature: Option<String>,
    /// `event.kind`
    pub kind: Option<&'static str>,
    /// Committed at this moment or later.
    pub since: Option<Micros>,
    /// Committed before this moment.
    pub until: Option<Micros>,
    /// With a lower number (`event.seq`).
    pub before: Option<i64>,
}

/// The part of a query that looks at the event.
const ABOUT: &str = "
    e.seq > :after AND e.seq <= :until_seq
    AND (:since IS NULL OR e.commit_time >= :since) AND (:until IS NULL OR e.commit_time < :until)
    AND (:organisations IS NULL OR e.organisation_id IN (SELECT value FROM json_each(:organisations)))
    AND (:environments IS NULL OR e.environment_id IN (SELECT value FROM json_each(:environments)))
    AND (:feature IS NULL OR e.feature = :feature OR e.feature_id = :feature_id)
    AND (:kind IS NULL OR e.kind = :kind)";

/// What [`Reader::replayable`] found of one endpoint.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replayable {
    /// Events (`event.seq`) that were delivered to it or given up, oldest first.
    pub events: Vec<i64>,
    /// Deliveries that are still to be sent.
    pub pending: u64,
    /// Deliveries that were dropped with their endpoint.
    pub dropped: u64,
    /// Deliveries that were recorded in shadow mode.
    pub shadowed: u64,
}

impl Replayable {
    /// Adds a delivery to what it belongs to.
    pub fn add(&mut self, event: i64, state: DeliveryState) {
        match state {
            DeliveryState::Delivered | DeliveryState::Dead => self.events.push(event),
            DeliveryState::Pending | DeliveryState::Retrying => self.pending += 1,
            DeliveryState::Dropped => self.dropped += 1,
            DeliveryState::Shadowed => self.shadowed += 1,
        }
    }
}

impl Reader {
    /// The newest events (`event.seq`) after `after` that `filter` lets through, at most `limit`, oldest first.
    pub fn search(&self, filter: &Filter, after: i64, limit: usize) -> Result<Vec<i64>> {
        let limit_text = i64::try_from(limit).unwrap_or(i64::MAX);
        let number = |row: &SqlRow<'_>| row.get(0);
        if filter.endpoint.is_none() && filter.state.is_none() {
            let sql = format!(
                "SELECT e.seq FROM event e WHERE {ABOUT} AND :endpoint IS NULL ORDER BY e.seq DESC LIMIT :limit"
            );
            let mut found = self.rows(&sql, filter, after, None, limit_text, number)?;
            found.reverse();
            return Ok(found);
        }
        let endpoints = match filter.endpoint {
            Some(endpoint) => vec![endpoint],
            None => self.endpoints_with_deliveries()?,
        };
        let (index, state) = filter.state.map_or(("", "TRUE"), DeliveryState::sql);
        let sql = format!(
            "SELECT d.event FROM delivery d {index} CROSS JOIN event e ON e.seq = d.event
             WHERE d.endpoint = :endpoint AND d.event > :after AND d.event <= :until_seq AND {state} AND {ABOUT}
             ORDER BY d.event DESC LIMIT :limit"
        );
        let mut found: Vec<i64> = Vec::new();
        for endpoint in endpoints {
            found.extend(self.rows(&sql, filter, after, Some(endpoint), limit_text, number)?);
        }
        found.sort_unstable();
        found.dedup();
        Ok(found.split_off(found.len().saturating_sub(limit)))
    }

    /// The deliveries to `endpoint` that `filter` lets through, as far as they can be made again. The filter's own endpoint is
    /// not looked at.
    pub fn replayable(&self, endpoint: EndpointKey, filter: &Filter) -> Result<Replayable> {
        let (index, state) = filter.state.map_or(("", "TRUE"), DeliveryState::sql);
        let sql = format!(
            "SELECT d.event, d.status FROM delivery d {index} CROSS JOIN event e ON e.seq = d.event
             WHERE d.endpoint = :endpoint AND d.event > :after AND d.event <= :until_seq AND {state} AND {ABOUT}
             ORDER BY d.event LIMIT :limit"
        );
        let all = self.rows(&sql, filter, 0, Some(endpoint), i64::MAX, |row| {
            Ok((row.get::<_, i64>(0)?, DeliveryState::of(row.get(1)?, false)))
        })?;
        let mut found = Replayable::default();
        all.into_iter().for_each(|(event, state)| found.add(event, state));
        Ok(found)
    }

    /// Runs a query that has every parameter of [`ABOUT`], `:endpoint` and `:limit`.
    fn rows<T>(
        &self,
        sql: &str,
        filter: &Filter,
        after: i64,
        endpoint: Option<EndpointKey>,
        limit: i64,
        read: impl FnMut(&SqlRow<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let ids = |ids: &Option<Vec<i64>>| ids.as_ref().map(|ids| format!("{ids:?}"));
        let (after, until_seq) = self.range(filter, after)?;
        let mut statement = self.connection().prepare_cached(sql).map_err(self.failed())?;
        let rows = statement
            .query_map(
                named_params! {
                    ":after": after,
                    ":until_seq": until_seq,
                    ":since": filter.since.map(|at| at.0),
                    ":until": filter.until.map(|at| at.0),
                    ":organisations": ids(&filter.organisations),
                    ":environments": ids(&filter.environments),
                    ":feature": filter.feature,
                    ":feature_id": filter.feature.as_ref().and_then(|text| text.parse::<i64>().ok()),
                    ":kind": filter.kind,
                    ":endpoint": endpoint.map(|endpoint| endpoint.to_string()),
                    ":limit": limit,
                },
                read,
            )
            .map_err(self.failed())?;
        rows.collect::<rusqlite::Result<_>>().map_err(self.failed())
    }

    /// Between which numbers (above the first, up to the second) everything lies that `filter` can let through.
    fn range(&self, filter: &Filter, after: i64) -> Result<(i64, i64)> {
        let before = |at: Micros| self.last_event_before(Clock::Commit, at);
        let low = match filter.since {
            Some(since) => before(Micros(since.0.saturating_sub(DISORDER)))?.unwrap_or(0),
            None => 0,
        };
        let high = match filter.until {
            Some(until) => before(Micros(until.0.saturating_add(DISORDER)))?.unwrap_or(0),
            None => i64::MAX,
        };
        let high = filter.before.map_or(high, |before| high.min(before.saturating_sub(1)));
        Ok((low.max(after), high))
    }
}
