//! The one thread that writes. Group commit: what has gathered while the last fsync ran goes into the next one.
//!
//! Invariants: the durable LSN is published after the COMMIT that made it durable, and only here; a COMMIT that failed
//! ends the thread (an fsync that failed is not tried again, PITFALLS 32) and with it the daemon.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::Identity;
use super::reader::secret_column;
use super::record::{BreakerState, EventRecord, Outcome, Purpose, Verdict, Write};
use super::schema::{self, BEHIND, DEAD, DELIVERED, DROPPED, READY, SHADOWED};
use super::seal::Seal;
use crate::change::{Key, Lsn, Micros, Row};
use crate::error::{Error, Kind};
use crate::event::EndpointKey;
use crate::fact::{Recorded, meters, trace};
use crate::mirror::Persist;
use crate::pulse::{Pulse, Stage};
use crate::schema::Table;

/// Why the writer cannot go on. What it had not committed is read again from the checkpoint.
#[derive(Debug)]
pub(super) enum Stopped {
    /// There is no room on the disk.
    Full,
    /// Anything else.
    Failed(String),
}

impl From<rusqlite::Error> for Stopped {
    fn from(error: rusqlite::Error) -> Stopped {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Stopped::Full,
            _ => Stopped::Failed(error.to_string()),
        }
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Stopped {
        Stopped::Failed(error.to_string())
    }
}

impl Stopped {
    /// The error for the operator.
    pub(super) fn told(self, path: &Path) -> Error {
        match self {
            Stopped::Full => schema::full(path),
            Stopped::Failed(reason) => Error::new(
                Kind::LedgerIo,
                format!(
                    "the ledger {} could not be written: {reason}: check the disk, then start flagpost again; \
                     nothing was confirmed that is not in it",
                    path.display()
                ),
            ),
        }
    }
}

/// So many writes at most go into one SQLite transaction, unless one source transaction has more.
const BATCH: usize = 4_096;

/// What the last commits mean for those who send.
#[derive(Debug, Default)]
pub struct News {
    /// Endpoints that have something new to be sent, or to be compared.
    pub ready: HashSet<EndpointKey>,
    /// Endpoints whose row must be read again (or is gone).
    pub changed: HashSet<EndpointKey>,
    /// Deliveries (`event.seq`) whose outcome is durable.
    pub settled: HashMap<EndpointKey, Vec<i64>>,
}

/// Hands [`News`] from the writer to the dispatcher: never blocks, never grows beyond what is new.
#[derive(Debug, Default)]
pub struct Newsstand {
    news: Mutex<News>,
    notify: Notify,
}

impl Newsstand {
    fn publish(&self, fresh: &mut News) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        news.ready.extend(fresh.ready.drain());
        news.changed.extend(fresh.changed.drain());
        for (endpoint, mut events) in fresh.settled.drain() {
            news.settled.entry(endpoint).or_default().append(&mut events);
        }
        drop(news);
        self.notify.notify_one();
    }

    /// Waits until there is news.
    pub async fn wait(&self) {
        self.notify.notified().await;
    }

    /// Takes what is new.
    pub fn take(&self) -> News {
        std::mem::take(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) seal: Seal,
    pub(super) writes: mpsc::Receiver<Write>,
    pub(super) durable: watch::Sender<Lsn>,
    pub(super) newsstand: Arc<Newsstand>,
    pub(super) purpose: Purpose,
    /// Who waits for the next COMMIT.
    pub(super) answers: Vec<oneshot::Sender<()>>,
    /// Events that the next COMMIT records.
    pub(super) recorded: Vec<(Recorded, Micros)>,
    pub(super) pulse: Arc<Pulse>,
}

impl Writer {
    /// Writes until every sender is gone.
    pub(super) fn run(mut self) -> Result<(), Stopped> {
        let mut news = News::default();
        while let Some(first) = self.writes.blocking_recv() {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
            let checkpoint = self.batch(first, &mut news)?;
            let began = Instant::now();
            self.connection.execute_batch("COMMIT")?;
            meters().ledger_commit_seconds.observe(began.elapsed().as_secs_f64());
            self.pulse.beat(Stage::Writer);
            if let Some(lsn) = checkpoint {
                self.durable.send_if_modified(|durable| {
                    let moved = lsn > *durable;
                    *durable = lsn.max(*durable);
                    moved
                });
            }
            self.newsstand.publish(&mut news);
            // Told after the COMMIT: what it undoes was never recorded, and comes again.
            self.recorded.drain(..).for_each(|(recorded, committed)| told(&recorded, committed));
            for recorded in self.answers.drain(..) {
                // Whoever asked may have gone.
                recorded.send(()).ok();
            }
        }
        Ok(())
    }

    /// Writes what is there, and goes on until the source transaction that has begun is complete.
    fn batch(&mut self, first: Write, news: &mut News) -> Result<Option<Lsn>, Stopped> {
        let mut checkpoint = None;
        let mut cursor = None;
        let mut is_complete = true;
        let mut next = first;
        for count in 1.. {
            match &next {
                Write::Checkpoint(lsn, clock) => {
                    checkpoint = checkpoint.max(Some((*lsn, *clock)));
                    is_complete = true;
                }
                Write::Outcome(_)
                | Write::Nothing
                | Write::Broken(..)
                | Write::Expire(_)
                | Write::Purge(..)
                | Write::ForgetSecrets(_)
                | Write::Notified(..) => {}
                _ => is_complete = false,
            }
            match next {
                // Like the checkpoint, only the last of a commit counts.
                Write::Cursor(at) => cursor = Some(at),
                next => self.write(next, news)?,
            }
            self.pulse.beat(Stage::Writer);
            let received = if is_complete {
                if count >= BATCH { None } else { self.writes.try_recv().ok() }
            } else {
                // It will be read again from the checkpoint when the source goes away in the middle of it.
                let rest = self.writes.blocking_recv();
                Some(rest.ok_or_else(|| {
                    Stopped::Failed("the change stream ended in the middle of a transaction".into())
                })?)
            };
            let Some(write) = received else { break };
            next = write;
        }
        if let Some(cursor) = cursor {
            self.put_meta("cursor", &cursor)?;
        }
        if let Some((lsn, clock)) = checkpoint {
            self.put_meta("checkpoint", &lsn.to_string())?;
            self.put_meta("clock", &clock.0.to_string())?;
        }
        Ok(checkpoint.map(|(lsn, _)| lsn))
    }

    fn put_meta(&self, key: &str, value: &str) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2")?
            .execute([key, value])?;
        Ok(())
    }

    fn write(&mut self, write: Write, news: &mut News) -> Result<(), Stopped> {
        match write {
            Write::Mirror(persist) => self.mirror(persist)?,
            Write::KeepGroup(slot, bytes) => {
                self.connection
                    .prepare_cached("INSERT OR REPLACE INTO open_group VALUES (?1, ?2)")?
                    .execute(params![format!("{slot:?}"), bytes])?;
            }
            Write::DropGroup(slot) => {
                self.connection
                    .prepare_cached("DELETE FROM open_group WHERE slot = ?1")?
                    .execute([format!("{slot:?}")])?;
            }
            Write::Event(record) => self.event(&record, news)?,
            Write::EndpointChanged(endpoint) => {
                news.changed.insert(endpoint);
            }
            Write::EndpointGone(endpoint) => {
                news.changed.insert(endpoint);
                self.drop_queue(endpoint)?;
            }
            // Written at the end of the batch.
            Write::Checkpoint(..) | Write::Cursor(_) | Write::Nothing => {}
            Write::Purpose(purpose, recorded) => {
                self.purpose = purpose;
                self.answers.push(recorded);
                self.put_meta("purpose", purpose.name())?;
            }
            Write::Broken(reason, recorded) => {
                self.answers.push(recorded);
                self.put_meta("broken", &reason)?;
            }
            Write::Rebase(identity) => self.rebase(&identity)?,
            Write::Outcome(outcome) => self.outcome(outcome, news)?,
            Write::Expire(deliveries) => self.expire(&deliveries, news)?,
            Write::Notified(endpoint, at, dead) => {
                self.connection
                    .prepare_cached(
                        "UPDATE lane SET notified_at = ?2, notified_dead = ?3 WHERE endpoint = ?1",
                    )?
                    .execute(params![endpoint.to_string(), at.0, i64::try_from(dead).unwrap_or(i64::MAX)])?;
            }
            Write::ForgetSecrets(before) => {
                self.connection
                    .prepare_cached("DELETE FROM old_secret WHERE retired_at < ?1")?
                    .execute([before.0])?;
            }
            Write::Purge(events, purged) => {
                self.answers.push(purged);
                self.purge(&events)?;
            }
        }
        Ok(())
    }

    fn rebase(&self, identity: &Identity) -> rusqlite::Result<()> {
        self.connection
            .execute_batch("DELETE FROM open_group; DELETE FROM meta WHERE key IN ('broken', 'cursor')")?;
        for (key, value) in
            [("system_id", &identity.system_id), ("database", &identity.database), ("slot", &identity.slot)]
        {
            self.put_meta(key, value)?;
        }
        Ok(())
    }

    fn mirror(&self, persist: Persist) -> Result<(), Stopped> {
        match persist {
            Persist::Put { table, key, row } => {
                self.retire_secret(table, &key, &row)?;
                let row = self.seal.seal(table, &row)?;
                self.connection
                    .prepare_cached("INSERT OR REPLACE INTO mirror VALUES (?1, ?2, ?3)")?
                    .execute(params![table.name(), sql_key(&key), row.as_bytes()])?;
            }
            Persist::Remove { table, key } => {
                self.connection
                    .prepare_cached("DELETE FROM mirror WHERE tbl = ?1 AND key = ?2")?
                    .execute(params![table.name(), sql_key(&key)])?;
            }
        }
        Ok(())
    }

    /// Keeps the secret that an endpoint had until now, if it is given another one: receivers may still verify with it.
    fn retire_secret(&self, table: Table, key: &Key, new: &Row) -> Result<(), Stopped> {
        let Key::Int(id) = key else { return Ok(()) };
        let Some(endpoint) = EndpointKey::of(table, *id) else { return Ok(()) };
        let bytes: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT row FROM mirror WHERE tbl = ?1 AND key = ?2")
            .and_then(|mut s| s.query_row(params![table.name(), id], |row| row.get(0)).optional())?;
        let Some(sealed) = bytes.and_then(|bytes| Row::from_bytes(&bytes)) else { return Ok(()) };
        let old = self.seal.unseal(table, &sealed)?;
        let secret = |row: &Row| row.text(secret_column(table)).unwrap_or_default().to_owned();
        if secret(&old).is_empty() || secret(&old) == secret(new) {
            return Ok(());
        }
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO old_secret VALUES (?1, ?2, ?3)")?
            .execute(params![endpoint.to_string(), Micros::now().0, sealed.as_bytes()])?;
        Ok(())
    }

    fn event(&mut self, event: &EventRecord, news: &mut News) -> rusqlite::Result<()> {
        let now = Micros::now();
        let inserted = self
            .connection
            .prepare_cached(
                "INSERT INTO event (id, kind, action, organisation_id, project_id, environment_id, feature_id, feature,
                     sequence, change_request_id, change_request, lsn, xid, commit_time, recorded_at, reconstructed)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8,
                     1 + coalesce((SELECT last FROM sequence WHERE name = ?9), 0), ?10, ?11, ?12, ?13, ?14, ?15, ?16)
                 ON CONFLICT (id) DO NOTHING",
            )?
            .execute(params![
                event.id,
                event.kind,
                event.action,
                event.organisation,
                event.project,
                event.environment,
                event.feature,
                event.feature_name,
                event.sequence,
                event.change_request.as_ref().map(|request| request.id),
                event.change_request.as_ref().map(|request| &request.title),
                event.lsn.to_string(),
                i64::try_from(event.xid).unwrap_or(i64::MAX),
                event.commit_time.0,
                now.0,
                event.reconstructed
            ])?;
        if inserted == 0 {
            // The same change read twice: its event is on record.
            return Ok(());
        }
        let seq = self.connection.last_insert_rowid();
        self.connection
            .prepare_cached(
                "INSERT INTO sequence VALUES (?1, 1) ON CONFLICT (name) DO UPDATE SET last = last + 1",
            )?
            .execute([&event.sequence])?;
        for (format, body) in &event.bodies {
            self.connection.prepare_cached("INSERT INTO body VALUES (?1, ?2, ?3)")?.execute(params![
                seq,
                format.name(),
                body
            ])?;
        }
        for recipient in &event.recipients {
            let endpoint = recipient.endpoint.to_string();
            let is_first = self
                .connection
                .prepare_cached(
                    "SELECT 1 FROM delivery INDEXED BY delivery_lane
                     WHERE endpoint = ?1 AND lane = ?2 AND status IN (0, 1) LIMIT 1",
                )?
                .query_row(params![endpoint, event.lane], |_| Ok(()))
                .optional()?
                .is_none();
            let status = match self.purpose {
                Purpose::Shadow => SHADOWED,
                Purpose::Send if is_first => READY,
                Purpose::Send => BEHIND,
            };
            self.connection
                .prepare_cached(
                    "INSERT INTO delivery (endpoint, event, lane, format, status, attempts, next_at, queued_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?6)",
                )?
                .execute(params![endpoint, seq, event.lane, recipient.format.name(), status, now.0])?;
            if is_first || self.purpose == Purpose::Shadow {
                news.ready.insert(recipient.endpoint);
            }
        }
        let recorded = Recorded {
            event_id: event.id.clone(),
            kind: event.kind,
            action: event.action.clone(),
            organisation_id: event.organisation,
            environment_id: event.environment,
            feature: event.feature_name.clone(),
            lsn: event.lsn.to_string(),
            xid: event.xid,
            deliveries: u64::try_from(event.recipients.len()).unwrap_or(u64::MAX),
        };
        self.recorded.push((recorded, event.commit_time));
        Ok(())
    }

    fn drop_queue(&self, endpoint: EndpointKey) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("UPDATE delivery SET status = ?2 WHERE endpoint = ?1 AND status IN (0, 1)")?
            .execute(params![endpoint.to_string(), DROPPED])?;
        Ok(())
    }

    fn outcome(&self, outcome: Outcome, news: &mut News) -> rusqlite::Result<()> {
        let endpoint = outcome.endpoint.to_string();
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO attempt
                     (endpoint, event, number, at, http_status, milliseconds, error, answer, replay)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                endpoint,
                outcome.event,
                outcome.attempt,
                outcome.at.0,
                outcome.http_status,
                i64::try_from(outcome.milliseconds).unwrap_or(i64::MAX),
                outcome.error,
                outcome.answer,
                outcome.replay
            ])?;
        let (status, next_at) = match outcome.verdict {
            Verdict::Delivered => (DELIVERED, outcome.at),
            Verdict::Dead => {
                self.count_dead(&endpoint)?;
                (DEAD, outcome.at)
            }
            Verdict::Retry(at) => (READY, at),
            Verdict::Pause => {
                self.pause(&endpoint, outcome.at)?;
                (READY, outcome.at)
            }
        };
        // Only a delivery that is still pending: its endpoint may have been deleted meanwhile.
        self.connection
            .prepare_cached(
                "UPDATE delivery SET status = ?3, attempts = ?4, next_at = ?5
                 WHERE endpoint = ?1 AND event = ?2 AND status IN (0, 1)",
            )?
            .execute(params![endpoint, outcome.event, status, outcome.attempt, next_at.0])?;
        if status != READY {
            self.promote(&endpoint, &outcome.lane)?;
        }
        if let Some(breaker) = outcome.breaker {
            self.breaker(&endpoint, breaker)?;
        }
        if outcome.hasten {
            self.hasten(&endpoint)?;
        }
        news.ready.insert(outcome.endpoint);
        news.settled.entry(outcome.endpoint).or_default().push(outcome.event);
        Ok(())
    }

    /// The endpoint has said that it wants nothing more.
    fn pause(&self, endpoint: &str, at: Micros) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO lane (endpoint, paused_at, paused_by, paused_why)
                 VALUES (?1, ?2, 'endpoint', 'it answered HTTP 410 Gone')
                 ON CONFLICT (endpoint) DO UPDATE SET
                     paused_at = excluded.paused_at, paused_by = excluded.paused_by, paused_why = excluded.paused_why
                 WHERE paused_at IS NULL",
            )?
            .execute(params![endpoint, at.0])?;
        Ok(())
    }

    fn breaker(&self, endpoint: &str, breaker: BreakerState) -> rusqlite::Result<()> {
        let time = |at: Option<Micros>| at.map(|at| at.0);
        self.connection
            .prepare_cached(
                "INSERT INTO lane (endpoint, failures, failing_since, opened_at, probe_at, probes)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (endpoint) DO UPDATE SET
                     failures = ?2, failing_since = ?3, opened_at = ?4, probe_at = ?5, probes = ?6",
            )?
            .execute(params![
                endpoint,
                breaker.failures,
                time(breaker.failing_since),
                time(breaker.opened_at),
                time(breaker.probe_at),
                breaker.probes
            ])?;
        Ok(())
    }

    fn count_dead(&self, endpoint: &str) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO lane (endpoint, dead) VALUES (?1, 1) ON CONFLICT (endpoint) DO UPDATE SET dead = dead + 1",
            )?
            .execute([endpoint])?;
        Ok(())
    }

    /// What waits for its next attempt need not wait longer.
    fn hasten(&self, endpoint: &str) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "UPDATE delivery SET next_at = ?2 WHERE endpoint = ?1 AND status = 0 AND next_at > ?2",
            )?
            .execute(params![endpoint, Micros::now().0])?;
        Ok(())
    }

    fn expire(&self, deliveries: &[(EndpointKey, i64)], news: &mut News) -> rusqlite::Result<()> {
        for (endpoint, event) in deliveries {
            let name = endpoint.to_string();
            let pending: Option<(String, i64)> = self
                .connection
                .prepare_cached(
                    "SELECT lane, status FROM delivery WHERE endpoint = ?1 AND event = ?2 AND status IN (0, 1)",
                )?
                .query_row(params![name, event], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((lane, status)) = pending else { continue };
            self.connection
                .prepare_cached("UPDATE delivery SET status = ?3 WHERE endpoint = ?1 AND event = ?2")?
                .execute(params![name, event, DEAD])?;
            self.count_dead(&name)?;
            if status == READY {
                self.promote(&name, &lane)?;
                news.ready.insert(*endpoint);
            }
        }
        Ok(())
    }

    fn purge(&self, events: &[i64]) -> rusqlite::Result<()> {
        let endpoints: Vec<String> = self
            .connection
            .prepare_cached(super::retention::ENDPOINTS)?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for event in events {
            for endpoint in &endpoints {
                for table in ["attempt", "delivery"] {
                    self.connection
                        .prepare_cached(&format!("DELETE FROM {table} WHERE endpoint = ?1 AND event = ?2"))?
                        .execute(params![endpoint, event])?;
                }
            }
            self.connection.prepare_cached("DELETE FROM body WHERE event = ?1")?.execute([event])?;
            self.connection.prepare_cached("DELETE FROM event WHERE seq = ?1")?.execute([event])?;
        }
        // Gives the room back to the file system, a step at a time.
        self.connection.execute_batch("PRAGMA incremental_vacuum(1000)")
    }

    /// The next delivery of a lane becomes ready. Without the index named SQLite would walk through all deliveries ever made to
    /// the endpoint.
    fn promote(&self, endpoint: &str, lane: &str) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "UPDATE delivery SET status = ?3 WHERE endpoint = ?1 AND event =
                     (SELECT min(event) FROM delivery INDEXED BY delivery_lane
                      WHERE endpoint = ?1 AND lane = ?2 AND status IN (0, 1))",
            )?
            .execute(params![endpoint, lane, READY])?;
        Ok(())
    }
}

pub(super) fn sql_key(key: &Key) -> rusqlite::types::Value {
    match key {
        Key::Int(id) => rusqlite::types::Value::Integer(*id),
        Key::Text(text) => rusqlite::types::Value::Text(text.to_string()),
    }
}

fn told(recorded: &Recorded, committed: Micros) {
    recorded.tell();
    trace::recorded(&recorded.event_id, committed.0, Micros::now().0, || {
        let feature = recorded.feature.clone().map(|feature| ("flagpost.feature", feature));
        [("flagpost.kind", recorded.kind.to_owned()), ("flagpost.lsn", recorded.lsn.clone())]
            .into_iter()
            .chain(feature)
            .collect()
    });
}
