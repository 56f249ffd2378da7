//! The one thread that writes. Group commit: what has gathered while the last fsync ran goes into the next one.
//!
//! Invariants: the durable LSN is published after the COMMIT that made it durable, and only here; a COMMIT that failed
//! ends the thread (an fsync that failed is not tried again, PITFALLS 32) and with it the daemon.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::record::{EventRecord, Outcome, Purpose, Verdict, Write};
use super::schema::{BEHIND, DEAD, DELIVERED, DROPPED, READY, SHADOWED};
use super::seal::Seal;
use crate::change::{Key, Lsn, Micros};
use crate::event::EndpointKey;
use crate::mirror::Persist;

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
}

impl Writer {
    /// Writes until every sender is gone.
    pub(super) fn run(mut self) -> Result<(), String> {
        let mut news = News::default();
        while let Some(first) = self.writes.blocking_recv() {
            self.connection.execute_batch("BEGIN IMMEDIATE").map_err(|e| e.to_string())?;
            let checkpoint = self.batch(first, &mut news)?;
            self.connection.execute_batch("COMMIT").map_err(|e| format!("COMMIT failed: {e}"))?;
            if let Some(lsn) = checkpoint {
                self.durable.send_if_modified(|durable| {
                    let moved = lsn > *durable;
                    *durable = lsn.max(*durable);
                    moved
                });
            }
            self.newsstand.publish(&mut news);
            for recorded in self.answers.drain(..) {
                // Whoever asked may have gone.
                recorded.send(()).ok();
            }
        }
        Ok(())
    }

    /// Writes what is there, and goes on until the source transaction that has begun is complete.
    fn batch(&mut self, first: Write, news: &mut News) -> Result<Option<Lsn>, String> {
        let mut checkpoint = None;
        let mut is_complete = true;
        let mut next = first;
        for count in 1.. {
            match &next {
                Write::Checkpoint(lsn, clock) => {
                    checkpoint = checkpoint.max(Some((*lsn, *clock)));
                    is_complete = true;
                }
                Write::Outcome(_) | Write::Broken(..) => {}
                _ => is_complete = false,
            }
            self.write(next, news)?;
            let received = if is_complete {
                if count >= BATCH { None } else { self.writes.try_recv().ok() }
            } else {
                // It will be read again from the checkpoint when the source goes away in the middle of it.
                let rest = self.writes.blocking_recv();
                Some(rest.ok_or("the change stream ended in the middle of a transaction")?)
            };
            let Some(write) = received else { break };
            next = write;
        }
        if let Some((lsn, clock)) = checkpoint {
            self.put_meta("checkpoint", &lsn.to_string()).map_err(|e| e.to_string())?;
            self.put_meta("clock", &clock.0.to_string()).map_err(|e| e.to_string())?;
        }
        Ok(checkpoint.map(|(lsn, _)| lsn))
    }

    fn put_meta(&self, key: &str, value: &str) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2")?
            .execute([key, value])?;
        Ok(())
    }

    fn write(&mut self, write: Write, news: &mut News) -> Result<(), String> {
        match write {
            Write::Mirror(persist) => self.mirror(persist),
            Write::KeepGroup(slot, bytes) => self
                .connection
                .prepare_cached("INSERT OR REPLACE INTO open_group VALUES (?1, ?2)")
                .and_then(|mut s| s.execute(params![format!("{slot:?}"), bytes]))
                .map(drop)
                .map_err(|e| e.to_string()),
            Write::DropGroup(slot) => self
                .connection
                .prepare_cached("DELETE FROM open_group WHERE slot = ?1")
                .and_then(|mut s| s.execute([format!("{slot:?}")]))
                .map(drop)
                .map_err(|e| e.to_string()),
            Write::Event(record) => self.event(&record, news).map_err(|e| e.to_string()),
            Write::EndpointChanged(endpoint) => {
                news.changed.insert(endpoint);
                Ok(())
            }
            Write::EndpointGone(endpoint) => {
                news.changed.insert(endpoint);
                self.drop_queue(endpoint).map_err(|e| e.to_string())
            }
            Write::Checkpoint(..) => Ok(()),
            Write::Purpose(purpose, recorded) => {
                self.purpose = purpose;
                self.answers.push(recorded);
                self.put_meta("purpose", purpose.name()).map_err(|e| e.to_string())
            }
            Write::Broken(reason, recorded) => {
                self.answers.push(recorded);
                self.put_meta("broken", &reason).map_err(|e| e.to_string())
            }
            Write::Outcome(outcome) => self.outcome(outcome, news).map_err(|e| e.to_string()),
        }
    }

    fn mirror(&self, persist: Persist) -> Result<(), String> {
        match persist {
            Persist::Put { table, key, row } => {
                let row = self.seal.seal(table, &row).map_err(|e| e.to_string())?;
                self.connection
                    .prepare_cached("INSERT OR REPLACE INTO mirror VALUES (?1, ?2, ?3)")
                    .and_then(|mut s| s.execute(params![table.name(), sql_key(&key), row.as_bytes()]))
            }
            Persist::Remove { table, key } => self
                .connection
                .prepare_cached("DELETE FROM mirror WHERE tbl = ?1 AND key = ?2")
                .and_then(|mut s| s.execute(params![table.name(), sql_key(&key)])),
        }
        .map(drop)
        .map_err(|e| e.to_string())
    }

    fn event(&self, event: &EventRecord, news: &mut News) -> rusqlite::Result<()> {
        let now = Micros::now();
        let inserted = self
            .connection
            .prepare_cached(
                "INSERT INTO event (id, kind, action, organisation_id, project_id, environment_id, feature_id, feature,
                     sequence, change_request_id, change_request, lsn, xid, commit_time, recorded_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8,
                     1 + coalesce((SELECT last FROM sequence WHERE name = ?9), 0), ?10, ?11, ?12, ?13, ?14, ?15)
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
                now.0
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
                    "SELECT 1 FROM delivery WHERE endpoint = ?1 AND lane = ?2 AND status IN (0, 1) LIMIT 1",
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
                .prepare_cached("INSERT INTO delivery VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6)")?
                .execute(params![endpoint, seq, event.lane, recipient.format.name(), status, now.0])?;
            if is_first || self.purpose == Purpose::Shadow {
                news.ready.insert(recipient.endpoint);
            }
        }
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
            .prepare_cached("INSERT OR REPLACE INTO attempt VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
            .execute(params![
                endpoint,
                outcome.event,
                outcome.attempt,
                outcome.at.0,
                outcome.http_status,
                i64::try_from(outcome.milliseconds).unwrap_or(i64::MAX),
                outcome.error
            ])?;
        let (status, next_at) = match outcome.verdict {
            Verdict::Delivered => (DELIVERED, outcome.at),
            Verdict::Dead => (DEAD, outcome.at),
            Verdict::Retry(at) => (READY, at),
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
        news.ready.insert(outcome.endpoint);
        news.settled.entry(outcome.endpoint).or_default().push(outcome.event);
        Ok(())
    }

    /// The next delivery of a lane becomes ready.
    fn promote(&self, endpoint: &str, lane: &str) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "UPDATE delivery SET status = ?3 WHERE endpoint = ?1 AND event =
                     (SELECT min(event) FROM delivery WHERE endpoint = ?1 AND lane = ?2 AND status IN (0, 1))",
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
