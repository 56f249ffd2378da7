//! What is on record of one event: the event, its bodies, its deliveries, their attempts.

use rusqlite::{OptionalExtension, Row as SqlRow, params};

use super::Reader;
use super::retention::ENDPOINTS;
use super::search::DeliveryState;
use crate::change::{Lsn, Micros};
use crate::error::Result;
use crate::event::EndpointKey;

/// An event on record.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// `event.seq`
    pub seq: i64,
    /// Its id.
    pub id: String,
    /// `FLAG_UPDATED` …
    pub kind: String,
    /// `updated;scope=segment` …
    pub action: String,
    /// `organisations_organisation.id`
    pub organisation: Option<i64>,
    /// `projects_project.id`
    pub project: Option<i64>,
    /// `environments_environment.id`
    pub environment: Option<i64>,
    /// `features_feature.id`
    pub feature_id: Option<i64>,
    /// The feature's name at that time.
    pub feature: Option<String>,
    /// Its number among those of its flag.
    pub sequence: i64,
    /// The change request that caused it: id and title.
    pub change_request: Option<(i64, String)>,
    /// End of the commit that completed it.
    pub lsn: Lsn,
    /// That commit's transaction; 0 where a moment was scheduled for it, or where it was reconstructed.
    pub xid: i64,
    /// When it was committed; of one that was reconstructed, when the difference was seen.
    pub commit_time: Micros,
    /// When it was recorded here.
    pub recorded_at: Micros,
    /// Whether it was made of a difference: the changes themselves were missed.
    pub reconstructed: bool,
}

/// A delivery on record.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// To whom.
    pub endpoint: EndpointKey,
    /// What has become of it.
    pub state: DeliveryState,
    /// The format of its body.
    pub format: String,
    /// Attempts made so far.
    pub attempts: u32,
    /// Whether an operator asked for it again.
    pub replay: bool,
    /// When the next attempt is due, of one that is pending.
    pub next_at: Micros,
}

/// An attempt on record.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Counted from 1.
    pub number: u32,
    /// When it began.
    pub at: Micros,
    /// The answer's status code, if there was an answer.
    pub http_status: Option<u16>,
    /// How long it took.
    pub milliseconds: u64,
    /// Why it failed.
    pub error: Option<String>,
    /// How the answer's body began.
    pub answer: Option<String>,
    /// Whether an operator had asked for it.
    pub replay: bool,
}

const EVENT: &str = "
    SELECT seq, id, kind, action, organisation_id, project_id, environment_id, feature_id, feature, sequence,
           change_request_id, change_request, lsn, xid, commit_time, recorded_at, reconstructed
    FROM event";

impl Reader {
    /// The event with this number (`event.seq`).
    pub fn recorded(&self, seq: i64) -> Result<Option<Recorded>> {
        self.connection()
            .prepare_cached(&format!("{EVENT} WHERE seq = ?1"))
            .and_then(|mut s| s.query_row([seq], recorded).optional())
            .map_err(self.failed())
    }

    /// The events whose id begins so, at most `limit`.
    pub fn by_id(&self, prefix: &str, limit: usize) -> Result<Vec<Recorded>> {
        let sql = format!("{EVENT} WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3");
        let mut statement = self.connection().prepare_cached(&sql).map_err(self.failed())?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // Ids consist of hexadecimal digits and hyphens, which all come before "g".
        let rows = statement
            .query_map(params![prefix, format!("{prefix}g"), limit], recorded)
            .map_err(self.failed())?;
        rows.collect::<rusqlite::Result<_>>().map_err(self.failed())
    }

    /// The bodies of an event: format and text.
    pub fn bodies(&self, seq: i64) -> Result<Vec<(String, String)>> {
        let mut statement = self
            .connection()
            .prepare_cached("SELECT format, body FROM body WHERE event = ?1 ORDER BY format")
            .map_err(self.failed())?;
        let rows = statement.query_map([seq], |row| Ok((row.get(0)?, row.get(1)?))).map_err(self.failed())?;
        rows.collect::<rusqlite::Result<_>>().map_err(self.failed())
    }

    /// The deliveries of an event.
    pub fn deliveries(&self, seq: i64) -> Result<Vec<Delivery>> {
        let sql = format!(
            "SELECT d.endpoint, d.status, d.format, d.attempts, d.attempts_before, d.replay, d.next_at
             FROM ({ENDPOINTS}) known CROSS JOIN delivery d ON d.endpoint = known.name AND d.event = ?1"
        );
        let mut statement = self.connection().prepare_cached(&sql).map_err(self.failed())?;
        let rows = statement.query_map([seq], delivery).map_err(self.failed())?;
        let mut all: Vec<Delivery> = Vec::new();
        for row in rows {
            all.extend(row.map_err(self.failed())?);
        }
        all.sort_by_key(|delivery| delivery.endpoint);
        Ok(all)
    }

    /// The attempts of a delivery, in order.
    pub fn attempts(&self, endpoint: EndpointKey, seq: i64) -> Result<Vec<Attempt>> {
        let mut statement = self
            .connection()
            .prepare_cached(
                "SELECT number, at, http_status, milliseconds, error, answer, replay FROM attempt
                 WHERE endpoint = ?1 AND event = ?2 ORDER BY number",
            )
            .map_err(self.failed())?;
        let rows = statement.query_map(params![endpoint.to_string(), seq], attempt).map_err(self.failed())?;
        rows.collect::<rusqlite::Result<_>>().map_err(self.failed())
    }

    /// Counts up with every commit of somebody else: nothing is new as long as it is the same.
    pub fn version(&self) -> Result<i64> {
        self.connection().query_row("PRAGMA data_version", [], |row| row.get(0)).map_err(self.failed())
    }
}

fn recorded(row: &SqlRow<'_>) -> rusqlite::Result<Recorded> {
    Ok(Recorded {
        seq: row.get(0)?,
        id: row.get(1)?,
        kind: row.get(2)?,
        action: row.get(3)?,
        organisation: row.get(4)?,
        project: row.get(5)?,
        environment: row.get(6)?,
        feature_id: row.get(7)?,
        feature: row.get(8)?,
        sequence: row.get(9)?,
        change_request: row.get::<_, Option<i64>>(10)?.zip(row.get(11)?),
        lsn: row.get::<_, String>(12)?.parse().unwrap_or_default(),
        xid: row.get(13)?,
        commit_time: Micros(row.get(14)?),
        recorded_at: Micros(row.get(15)?),
        reconstructed: row.get(16)?,
    })
}

/// `None` for an endpoint of a kind that this flagpost does not know.
fn delivery(row: &SqlRow<'_>) -> rusqlite::Result<Option<Delivery>> {
    let Ok(endpoint) = row.get::<_, String>(0)?.parse() else { return Ok(None) };
    let (attempts, before): (u32, u32) = (row.get(3)?, row.get(4)?);
    Ok(Some(Delivery {
        endpoint,
        state: DeliveryState::of(row.get(1)?, attempts > before),
        format: row.get(2)?,
        attempts,
        replay: row.get(5)?,
        next_at: Micros(row.get(6)?),
    }))
}

fn attempt(row: &SqlRow<'_>) -> rusqlite::Result<Attempt> {
    Ok(Attempt {
        number: row.get(0)?,
        at: Micros(row.get(1)?),
        http_status: row.get(2)?,
        milliseconds: row.get(3)?,
        error: row.get(4)?,
        answer: row.get(5)?,
        replay: row.get(6)?,
    })
}
