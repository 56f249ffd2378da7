//! Replays what a running Flagsmith did: the same row changes in the same transactions, with the same gaps between
//! the commits.
//!
//! One connection, so the commits come in the recorded order. A transaction is written a moment before its commit is
//! due, and only the `COMMIT` waits, so that a gap is as exact as the runtime's timer (a millisecond). A statement
//! that does not touch exactly one row is a failure.
//!
//! Times in rows stay as recorded, but for `live_from`, which decides whether a change is live: each keeps its distance
//! from the commit that brought it (all of them, not only those that lay ahead: which of two versions is live depends
//! on their order), and stays the same in all later rows that have it. A commit that came after a `live_from` comes
//! after it in the replay too, however much the gap is cut.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value as Json};
use tokio::time::{Instant, sleep_until};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::flagsmith::{self, Schema};

/// How fast a replay goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Longer gaps between commits are cut to this.
    pub(crate) max_gap: Duration,
    /// A `live_from` further ahead of its commit is brought as near as this.
    pub(crate) max_ahead: SignedDuration,
}

impl Pace {
    /// As recorded, but for gaps in which nothing but time passes (no settle window is longer).
    pub(crate) const AS_RECORDED: Pace =
        Pace { max_gap: Duration::from_millis(250), max_ahead: SignedDuration::from_hours(1) };
    /// As fast as the database goes; nothing is scheduled.
    pub(crate) const AT_ONCE: Pace = Pace { max_gap: Duration::ZERO, max_ahead: SignedDuration::ZERO };
}

/// How long before its commit a transaction is written.
const AHEAD: Duration = Duration::from_millis(15);

/// A transaction of the replay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commit {
    /// Its 64-bit transaction id.
    #[allow(dead_code, reason = "for the tests of event ids")]
    pub(crate) xid: u64,
    /// Its commit time, as the server has it in the WAL.
    pub(crate) at: Timestamp,
}

/// The recorded case files, in order.
pub(crate) fn cases() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(super::golden().join("cases")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Replays cases on a database that [`Schema`] made.
pub(crate) struct Replay<'a> {
    schema: &'a Schema,
    client: &'a Client,
    receiver: SocketAddr,
    pace: Pace,
    /// Recorded `live_from` → the replay's.
    moved: HashMap<Timestamp, Timestamp>,
}

impl<'a> Replay<'a> {
    /// The recorded receiver is replaced by `receiver`.
    pub(crate) fn new(schema: &'a Schema, client: &'a Client, receiver: SocketAddr, pace: Pace) -> Self {
        Replay { schema, client, receiver, pace, moved: HashMap::new() }
    }

    /// Reads a case file, the receiver replaced.
    pub(crate) fn read(&self, path: &std::path::Path) -> Json {
        flagsmith::read(path, self.receiver)
    }

    /// Replays one case (as [`Replay::read`] gave it) and says when each of its transactions was committed.
    pub(crate) async fn case(&mut self, case: &Json) -> Vec<Commit> {
        let mut xids = Vec::new();
        let mut last: Option<(Timestamp, Instant)> = None;
        for transaction in case["transactions"].as_array().unwrap() {
            let recorded = timestamp(&transaction["commit_time"]);
            let due = match last {
                None => Instant::now(),
                Some((before, at)) => at + self.gap(before, recorded),
            };
            let due = due.max(self.not_before(recorded));
            if due > Instant::now() + AHEAD {
                sleep_until(due - AHEAD).await;
            }
            let commit = Timestamp::now() + due.saturating_duration_since(Instant::now());
            let name = case["case"].as_str().unwrap();
            xids.push(self.write(name, &transaction["changes"], recorded, commit).await);
            sleep_until(due).await;
            // The server stamps a commit when it gets it; what it does afterwards is no part of the gap.
            let sent = Instant::now();
            self.client.batch_execute("COMMIT").await.unwrap();
            last = Some((recorded, sent));
        }
        self.commits(&xids).await
    }

    /// Waits until everything that was scheduled so far is live.
    pub(crate) async fn until_live(&self) {
        if let Some(last) = self.moved.values().max() {
            let wait = Duration::try_from(last.duration_since(Timestamp::now())).unwrap_or_default();
            tokio::time::sleep(wait).await;
        }
    }

    fn gap(&self, before: Timestamp, after: Timestamp) -> Duration {
        Duration::try_from(after.duration_since(before)).unwrap_or_default().min(self.pace.max_gap)
    }

    /// When a commit recorded at this time may come at the earliest: after what was live by then is live.
    fn not_before(&self, recorded: Timestamp) -> Instant {
        let now = (Instant::now(), Timestamp::now());
        let live = self.moved.iter().filter(|(live_from, _)| **live_from < recorded);
        let after = live.map(|(live_from, moved)| {
            let wait = Duration::try_from(moved.duration_since(now.1)).unwrap_or_default();
            if wait.is_zero() { now.0 } else { now.0 + wait + self.gap(*live_from, recorded) }
        });
        after.max().unwrap_or(now.0)
    }

    /// Writes a transaction's changes, without the commit.
    async fn write(&mut self, case: &str, changes: &Json, recorded: Timestamp, commit: Timestamp) -> u64 {
        let mut sql = String::from("BEGIN; SELECT pg_current_xact_id();\n");
        let changes = changes.as_array().unwrap();
        for change in changes {
            let table = change["table"].as_str().unwrap();
            let object = |name: &str| change[name].as_object().unwrap();
            sql.push_str(&match change["op"].as_str().unwrap() {
                "insert" => self.schema.insert(table, &self.in_replay_time(object("new"), recorded, commit)),
                "update" => {
                    let new = self.in_replay_time(object("new"), recorded, commit);
                    self.schema.update(table, object("key"), &new)
                }
                "delete" => self.schema.delete(table, object("key")),
                other => panic!("{case}: unknown operation {other}"),
            });
        }
        let answers = self.client.simple_query(&sql).await.unwrap_or_else(|e| panic!("{case}: {e:?}"));
        let mut xid = None;
        let mut counts = Vec::new();
        for answer in &answers {
            match answer {
                SimpleQueryMessage::Row(row) => xid = row.get(0).map(|text| text.parse().unwrap()),
                SimpleQueryMessage::CommandComplete(count) => counts.push(*count),
                _ => {}
            }
        }
        for (change, count) in changes.iter().zip(&counts[2..]) {
            assert_eq!(*count, 1, "{case}: rows touched by {change}");
        }
        xid.unwrap()
    }

    fn in_replay_time(
        &mut self,
        row: &Map<String, Json>,
        recorded: Timestamp,
        commit: Timestamp,
    ) -> Map<String, Json> {
        let mut row = row.clone();
        if let Some(value @ Json::String(_)) = row.get_mut("live_from") {
            let live_from = timestamp(value);
            let ahead = live_from.duration_since(recorded).min(self.pace.max_ahead);
            *value = self.moved.entry(live_from).or_insert(commit + ahead).to_string().into();
        }
        row
    }

    async fn commits(&self, xids: &[u64]) -> Vec<Commit> {
        let mut commits = Vec::new();
        for &xid in xids {
            // A server that does not keep it was asked right after.
            let sql = format!(
                "SELECT (extract(epoch FROM CASE WHEN current_setting('track_commit_timestamp') = 'on'
                     THEN pg_xact_commit_timestamp('{xid}'::xid8::xid) ELSE clock_timestamp() END) * 1000000)::bigint"
            );
            let row = self.client.query_one(&sql, &[]).await.unwrap();
            commits.push(Commit { xid, at: Timestamp::from_microsecond(row.get(0)).unwrap() });
        }
        commits
    }
}

/// A time in PostgreSQL's notation (`2026-11-24 02:38:27.134877+00`) or in ISO 8601.
pub(crate) fn timestamp(value: &Json) -> Timestamp {
    value.as_str().unwrap().parse().unwrap_or_else(|e| panic!("{value}: {e}"))
}
