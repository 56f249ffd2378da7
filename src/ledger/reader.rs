//! Reading the ledger: what is due, and what an operator asks. Never writes, never waits for the writer.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};

use super::Identity;
use super::operator::OPERATOR_MARK;
use super::record::{BreakerState, Due, LaneState, Owner, Pause};
use super::schema::{self, SHADOWED};
use super::seal::Seal;
use crate::change::{Lsn, Micros, Row};
use crate::error::{Error, Result};
use crate::event::EndpointKey;
use crate::schema::{Table, environment, environment_webhook, organisation, organisation_webhook, project};

/// Where to send, and the secret to sign with. Not `Debug`: both are secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// As it is in Flagsmith's table.
    pub url: String,
    /// Empty where there is none.
    pub secret: String,
    /// Secrets that it had a short while ago, the latest first: receivers may still verify with them.
    pub old_secrets: Vec<String>,
    /// Whether new events are sent to it.
    pub enabled: bool,
}

/// In which column of a webhook table's row the secret is.
pub(super) fn secret_column(table: Table) -> usize {
    match table {
        Table::OrganisationWebhook => organisation_webhook::SECRET,
        _ => environment_webhook::SECRET,
    }
}

/// A connection for reading.
pub struct Reader {
    connection: Connection,
    seal: Seal,
    path: PathBuf,
}

impl Reader {
    /// Opens an existing ledger in `directory`.
    pub fn open(directory: &Path) -> Result<Reader> {
        let path = directory.join(super::FILE);
        Ok(Reader {
            connection: schema::open_for_reading(&path)?,
            seal: Seal::read(&directory.join(super::KEY_FILE))?,
            path,
        })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn failed(&self) -> impl Fn(rusqlite::Error) -> Error + '_ {
        |e| schema::unusable(&self.path, e)
    }

    /// The deliveries to `endpoint` that are due at `now`, oldest due first, at most `limit`, without those whose event
    /// is in `except`.
    pub fn due(&self, endpoint: EndpointKey, now: Micros, limit: usize, except: &[i64]) -> Result<Vec<Due>> {
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT d.event, e.id, e.action, e.feature, d.lane, b.body, d.attempts, e.commit_time, e.recorded_at,
                        e.sequence, e.change_request_id, e.change_request, d.attempts_before, d.replay, d.queued_at,
                        e.environment_id, e.reconstructed
                 FROM delivery d JOIN event e ON e.seq = d.event
                 JOIN body b ON b.event = d.event AND b.format = d.format
                 WHERE d.endpoint = ?1 AND d.status = 0 AND d.next_at <= ?2
                 ORDER BY d.next_at, d.event LIMIT ?3",
            )
            .map_err(self.failed())?;
        let wanted = i64::try_from(limit + except.len()).unwrap_or(i64::MAX);
        let rows = statement
            .query_map(params![endpoint.to_string(), now.0, wanted], |row| due(endpoint, row))
            .map_err(self.failed())?;
        let mut all = Vec::with_capacity(limit);
        for row in rows {
            let due = row.map_err(self.failed())?;
            if all.len() < limit && !except.contains(&due.event) {
                all.push(due);
            }
        }
        Ok(all)
    }

    /// The deliveries to `endpoint` that were recorded in shadow mode ([`super::Purpose::Shadow`]), of events after `after`
    /// (`event.seq`), in order, at most `limit`.
    pub fn shadowed(&self, endpoint: EndpointKey, after: i64, limit: usize) -> Result<Vec<Due>> {
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT d.event, e.id, e.action, e.feature, d.lane, b.body, d.attempts, e.commit_time, e.recorded_at,
                        e.sequence, e.change_request_id, e.change_request, d.attempts_before, d.replay, d.queued_at,
                        e.environment_id, e.reconstructed
                 FROM delivery d JOIN event e ON e.seq = d.event
                 JOIN body b ON b.event = d.event AND b.format = d.format
                 WHERE d.endpoint = ?1 AND d.event > ?2 AND d.status = ?3 ORDER BY d.event LIMIT ?4",
            )
            .map_err(self.failed())?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement
            .query_map(params![endpoint.to_string(), after, SHADOWED, limit], |row| due(endpoint, row))
            .map_err(self.failed())?;
        rows.collect::<rusqlite::Result<_>>().map_err(self.failed())
    }

    /// Gives the bodies in format `current` of the last `limit` events to `each`, oldest first, with their commit times.
    pub fn recall(&self, limit: usize, mut each: impl FnMut(&[u8], Micros)) -> Result<()> {
        let mut statement = self
            .connection
            .prepare(
                "SELECT b.body, e.commit_time FROM event e JOIN body b ON b.event = e.seq AND b.format = 'current'
                 WHERE e.seq > (SELECT max(seq) FROM event) - ?1 AND e.feature_id IS NOT NULL ORDER BY e.seq",
            )
            .map_err(self.failed())?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = statement.query([limit]).map_err(self.failed())?;
        while let Some(row) = rows.next().map_err(self.failed())? {
            let body = row.get_ref(0).and_then(|v| Ok(v.as_str()?)).map_err(self.failed())?;
            each(body.as_bytes(), Micros(row.get(1).map_err(self.failed())?));
        }
        Ok(())
    }

    /// Whether an environment has v2 versions, as of the last commit.
    pub fn is_versioned(&self, id: i64) -> Result<bool> {
        let bytes: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT row FROM mirror WHERE tbl = ?1 AND key = ?2")
            .and_then(|mut s| {
                s.query_row(params![Table::Environment.name(), id], |row| row.get(0)).optional()
            })
            .map_err(self.failed())?;
        let row = bytes.and_then(|bytes| Row::from_bytes(&bytes));
        Ok(row.is_some_and(|row| row.flag(environment::USE_V2_FEATURE_VERSIONING)))
    }

    /// The newest event's `event.seq`; 0 where there is none.
    pub fn last_event(&self) -> Result<i64> {
        self.connection
            .query_row("SELECT coalesce(max(seq), 0) FROM event", [], |row| row.get(0))
            .map_err(self.failed())
    }

    /// The delivery to `endpoint` that has waited longest, whenever it is due: what a breaker probes with.
    pub fn probe(&self, endpoint: EndpointKey, except: &[i64]) -> Result<Option<Due>> {
        let first = self.due(endpoint, Micros(i64::MAX), 1, except)?;
        Ok(first.into_iter().next())
    }

    /// How many deliveries are to be sent, or to be tried again.
    pub fn waiting(&self) -> Result<u64> {
        self.connection
            .query_row("SELECT count(*) FROM delivery WHERE status IN (0, 1)", [], |row| row.get(0))
            .map_err(self.failed())
    }

    /// When the next delivery to `endpoint` becomes due, after `now`.
    pub fn next_due(&self, endpoint: EndpointKey, now: Micros) -> Result<Option<Micros>> {
        self.connection
            .prepare_cached(
                "SELECT min(next_at) FROM delivery WHERE endpoint = ?1 AND status = 0 AND next_at > ?2",
            )
            .and_then(|mut s| {
                s.query_row(params![endpoint.to_string(), now.0], |row| row.get::<_, Option<i64>>(0))
            })
            .map(|at| at.map(Micros))
            .map_err(self.failed())
    }

    /// The endpoints that have anything pending.
    pub fn endpoints_with_work(&self) -> Result<Vec<EndpointKey>> {
        // One seek an endpoint: the queue of each may be long.
        let mut all = Vec::new();
        let mut last = String::new();
        loop {
            let next: Option<String> = self
                .connection
                .prepare_cached("SELECT min(endpoint) FROM delivery WHERE endpoint > ?1 AND status = 0")
                .and_then(|mut s| s.query_row([&last], |row| row.get(0)))
                .map_err(self.failed())?;
            let Some(endpoint) = next else { return Ok(all) };
            if let Ok(key) = endpoint.parse() {
                all.push(key);
            }
            last = endpoint;
        }
    }

    /// What is kept of an endpoint's lane beside its deliveries.
    pub fn lane(&self, endpoint: EndpointKey) -> Result<LaneState> {
        self.connection
            .prepare_cached(&format!("{LANE} WHERE endpoint = ?1"))
            .and_then(|mut s| s.query_row([endpoint.to_string()], lane_state).optional())
            .map(Option::unwrap_or_default)
            .map_err(self.failed())
    }

    /// Every endpoint of which something is kept beside its deliveries.
    pub fn lanes(&self) -> Result<Vec<(EndpointKey, LaneState)>> {
        let mut statement = self.connection.prepare_cached(LANE).map_err(self.failed())?;
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, String>(11)?, lane_state(row)?)))
            .map_err(self.failed())?;
        let mut lanes = Vec::new();
        for row in rows {
            let (endpoint, state) = row.map_err(self.failed())?;
            lanes.extend(endpoint.parse().ok().map(|endpoint| (endpoint, state)));
        }
        Ok(lanes)
    }

    /// Whose endpoint it is.
    pub fn owner(&self, endpoint: EndpointKey) -> Result<Owner> {
        let Some((table, id)) = endpoint.row() else { return Ok(Owner::default()) };
        let id_in = |row: Option<&Row>, column: usize| row.and_then(|row| row.int(column));
        let hook = self.mirror_row(table, Some(id))?;
        let (organisation_id, environment) = match endpoint {
            EndpointKey::Environment(_) => {
                let id = id_in(hook.as_ref(), environment_webhook::ENVIRONMENT_ID);
                let environment = self.mirror_row(Table::Environment, id)?;
                let project_id = id_in(environment.as_ref(), environment::PROJECT_ID);
                let project = self.mirror_row(Table::Project, project_id)?;
                (id_in(project.as_ref(), project::ORGANISATION_ID), environment)
            }
            EndpointKey::Organisation(_) => {
                (id_in(hook.as_ref(), organisation_webhook::ORGANISATION_ID), None)
            }
            EndpointKey::Configured(_) => (None, None),
        };
        let organisation = self.mirror_row(Table::Organisation, organisation_id)?;
        let text = |row: &Option<Row>, column: usize| {
            row.as_ref().and_then(|row| row.text(column)).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        Ok(Owner {
            organisation: text(&organisation, organisation::NAME),
            email: text(&organisation, organisation::WEBHOOK_NOTIFICATION_EMAIL),
            environment: text(&environment, environment::NAME),
        })
    }

    /// A row of the mirror, its secrets sealed.
    fn mirror_row(&self, table: Table, id: Option<i64>) -> Result<Option<Row>> {
        let Some(id) = id else { return Ok(None) };
        let bytes: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT row FROM mirror WHERE tbl = ?1 AND key = ?2")
            .and_then(|mut s| s.query_row(params![table.name(), id], |row| row.get(0)).optional())
            .map_err(self.failed())?;
        Ok(bytes.and_then(|bytes| Row::from_bytes(&bytes)))
    }

    /// Counts up with everything that an operator's command changes in the queues ([`super::Operator`]).
    pub fn operator_mark(&self) -> Result<i64> {
        Ok(self.meta(OPERATOR_MARK)?.and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// The secrets that `endpoint` had until after `since`, the latest first.
    fn old_secrets(&self, endpoint: EndpointKey, since: Micros) -> Result<Vec<String>> {
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT secret FROM old_secret WHERE endpoint = ?1 AND retired_at > ?2 ORDER BY retired_at DESC",
            )
            .map_err(self.failed())?;
        let rows = statement
            .query_map(params![endpoint.to_string(), since.0], |row| row.get::<_, Vec<u8>>(0))
            .map_err(self.failed())?;
        let mut secrets = Vec::new();
        let Some((table, _)) = endpoint.row() else { return Ok(secrets) };
        for bytes in rows {
            let bytes = bytes.map_err(self.failed())?;
            if let Some(row) = Row::from_bytes(&bytes) {
                let row = self.seal.unseal(table, &row)?;
                secrets.extend(row.text(secret_column(table)).map(str::to_owned));
            }
        }
        Ok(secrets)
    }

    /// The endpoint's row, as of the last commit, with the secrets that it had until after `old_since`; `None` when it was
    /// deleted.
    pub fn endpoint_with_old(&self, key: EndpointKey, old_since: Micros) -> Result<Option<Endpoint>> {
        let Some(mut endpoint) = self.endpoint(key)? else { return Ok(None) };
        endpoint.old_secrets = self.old_secrets(key, old_since)?;
        Ok(Some(endpoint))
    }

    /// The endpoint's row, as of the last commit, without its old secrets; `None` when it was deleted.
    pub fn endpoint(&self, key: EndpointKey) -> Result<Option<Endpoint>> {
        let Some((table, id)) = key.row() else { return Ok(None) };
        let Some(row) = self.mirror_row(table, Some(id))? else { return Ok(None) };
        let row = self.seal.unseal(table, &row)?;
        let text = |column: usize| row.text(column).unwrap_or_default().to_owned();
        Ok(Some(match key {
            EndpointKey::Environment(_) => Endpoint {
                url: text(environment_webhook::URL),
                secret: text(environment_webhook::SECRET),
                old_secrets: Vec::new(),
                enabled: row.flag(environment_webhook::ENABLED),
            },
            EndpointKey::Organisation(_) => Endpoint {
                url: text(organisation_webhook::URL),
                secret: text(organisation_webhook::SECRET),
                old_secrets: Vec::new(),
                enabled: row.flag(organisation_webhook::ENABLED),
            },
            EndpointKey::Configured(_) => return Ok(None),
        }))
    }

    /// All endpoints that the mirror holds.
    pub fn endpoints(&self) -> Result<Vec<(EndpointKey, Endpoint)>> {
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT tbl, key FROM mirror WHERE tbl IN ('environments_webhook', 'organisations_organisationwebhook')
                 ORDER BY tbl, key",
            )
            .map_err(self.failed())?;
        let keys = statement
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))
            .map_err(self.failed())?;
        let mut all = Vec::new();
        for key in keys {
            let (table, id) = key.map_err(self.failed())?;
            let key = Table::by_name(&table).and_then(|table| EndpointKey::of(table, id));
            if let Some(key) = key
                && let Some(endpoint) = self.endpoint(key)?
            {
                all.push((key, endpoint));
            }
        }
        Ok(all)
    }

    /// How many deliveries wait for an endpoint.
    pub fn pending(&self, endpoint: EndpointKey) -> Result<u64> {
        self.connection
            .prepare_cached(
                "SELECT count(*) FROM delivery INDEXED BY delivery_lane WHERE endpoint = ?1 AND status IN (0, 1)",
            )
            .and_then(|mut s| s.query_row([endpoint.to_string()], |row| row.get(0)))
            .map_err(self.failed())
    }

    /// Why the latest attempt failed of what is pending or given up.
    pub fn last_error(&self, endpoint: &str) -> Result<Option<String>> {
        self.connection
            .prepare_cached(
                "SELECT a.error FROM delivery d JOIN attempt a ON a.endpoint = d.endpoint AND a.event = d.event
                 WHERE d.endpoint = ?1 AND d.status IN (0, 3) AND d.attempts > 0 ORDER BY a.at DESC LIMIT 1",
            )
            .and_then(|mut s| s.query_row([endpoint], |row| row.get(0)).optional())
            .map(Option::flatten)
            .map_err(self.failed())
    }

    /// How many events are on record.
    pub fn event_count(&self) -> Result<u64> {
        self.connection.query_row("SELECT count(*) FROM event", [], |row| row.get(0)).map_err(self.failed())
    }

    /// The position up to which everything is in the ledger.
    pub fn checkpoint(&self) -> Result<Option<Lsn>> {
        Ok(self.meta("checkpoint")?.and_then(|text| text.parse().ok()))
    }

    /// What the ledger belongs to; `None` when it is new.
    pub fn identity(&self) -> Result<Option<Identity>> {
        let (system_id, database, slot) =
            (self.meta("system_id")?, self.meta("database")?, self.meta("slot")?);
        Ok(system_id.zip(database).zip(slot).map(|((system_id, database), slot)| Identity {
            system_id,
            database,
            slot,
        }))
    }

    /// Whether the mirror's rows are made of the columns that this flagpost reads.
    pub fn fits_columns(&self) -> Result<bool> {
        Ok(self.meta("columns")?.is_none_or(|columns| columns == super::columns_fingerprint()))
    }

    /// A value of the table `meta`.
    pub fn meta(&self, key: &str) -> Result<Option<String>> {
        self.connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
            .optional()
            .map_err(self.failed())
    }
}

const LANE: &str = "
    SELECT paused_at, paused_by, paused_why, failures, failing_since, opened_at, probe_at, probes, dead, notified_at,
           notified_dead, endpoint
    FROM lane";

fn lane_state(row: &SqlRow<'_>) -> rusqlite::Result<LaneState> {
    let time = |column: usize| row.get::<_, Option<i64>>(column).map(|at| at.map(Micros));
    let pause = match time(0)? {
        Some(at) => Some(Pause { at, by: row.get(1)?, why: row.get(2)? }),
        None => None,
    };
    let breaker = BreakerState {
        failures: row.get(3)?,
        failing_since: time(4)?,
        opened_at: time(5)?,
        probe_at: time(6)?,
        probes: row.get(7)?,
    };
    Ok(LaneState { pause, breaker, dead: row.get(8)?, notified_at: time(9)?, notified_dead: row.get(10)? })
}

fn due(endpoint: EndpointKey, row: &SqlRow<'_>) -> rusqlite::Result<Due> {
    Ok(Due {
        endpoint,
        event: row.get(0)?,
        event_id: row.get(1)?,
        action: row.get(2)?,
        feature: row.get(3)?,
        lane: row.get(4)?,
        body: row.get(5)?,
        attempts: row.get(6)?,
        commit_time: Micros(row.get(7)?),
        recorded_at: Micros(row.get(8)?),
        sequence: row.get(9)?,
        change_request: row.get::<_, Option<i64>>(10)?.zip(row.get(11)?),
        attempts_before: row.get(12)?,
        replay: row.get(13)?,
        queued_at: Micros(row.get(14)?),
        environment: row.get(15)?,
        reconstructed: row.get(16)?,
    })
}
