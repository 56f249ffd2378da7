//! A ledger as an operator meets it: of an older flagpost, with much in it, asked odd questions.

use std::path::Path;

use rusqlite::{Connection, params};

use super::*;
use crate::event::EndpointKey;

/// Format 1, as the first flagpost made it. Never edited: there are files like this.
const FORMAT_1: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE mirror (tbl TEXT NOT NULL, key NOT NULL, row BLOB NOT NULL, PRIMARY KEY (tbl, key)) WITHOUT ROWID;
CREATE TABLE open_group (slot TEXT PRIMARY KEY, bytes BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, action TEXT NOT NULL,
    organisation_id INTEGER, project_id INTEGER, environment_id INTEGER, feature_id INTEGER, feature TEXT,
    sequence INTEGER NOT NULL, change_request_id INTEGER, change_request TEXT, lsn TEXT NOT NULL, xid INTEGER NOT NULL,
    commit_time INTEGER NOT NULL, recorded_at INTEGER NOT NULL
);
CREATE TABLE sequence (name TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE body (
    event INTEGER NOT NULL, format TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (event, format)
) WITHOUT ROWID;
CREATE TABLE delivery (
    endpoint TEXT NOT NULL, event INTEGER NOT NULL, lane TEXT NOT NULL, format TEXT NOT NULL, status INTEGER NOT NULL,
    attempts INTEGER NOT NULL, next_at INTEGER NOT NULL, PRIMARY KEY (endpoint, event)
) WITHOUT ROWID;
CREATE INDEX delivery_due ON delivery (endpoint, next_at, event) WHERE status = 0;
CREATE INDEX delivery_lane ON delivery (endpoint, lane, event) WHERE status IN (0, 1);
CREATE TABLE attempt (
    endpoint TEXT NOT NULL, event INTEGER NOT NULL, number INTEGER NOT NULL, at INTEGER NOT NULL, http_status INTEGER,
    milliseconds INTEGER NOT NULL, error TEXT, PRIMARY KEY (endpoint, event, number)
) WITHOUT ROWID;
INSERT INTO meta VALUES ('system_id', '7'), ('database', 'flagsmith'), ('slot', 'flagpost'), ('checkpoint', '0/100');
INSERT INTO event VALUES
    (1, 'aaaa', 'FLAG_UPDATED', 'updated;scope=default', 1, 1, 1, 1, 'dark_mode', 1, NULL, NULL, '0/90', 700, 1000, 1001),
    (2, 'aabb', 'FLAG_UPDATED', 'updated;scope=default', 1, 1, 1, 1, 'dark_mode', 2, NULL, NULL, '0/98', 701, 2000, 2001);
INSERT INTO body VALUES (1, 'classic', '{\"n\": 1}'), (2, 'classic', '{\"n\": 2}');
INSERT INTO sequence VALUES ('flag 1/1', 2);
INSERT INTO delivery VALUES
    ('environment:1', 1, 'flag 1/1', 'classic', 3, 4, 1500),
    ('environment:1', 2, 'flag 1/1', 'classic', 0, 1, 2500),
    ('environment:2', 1, 'flag 1/1', 'classic', 2, 1, 1500);
INSERT INTO attempt VALUES ('environment:1', 2, 1, 2400, 500, 12, 'HTTP 500');
PRAGMA application_id = 1718380400;
PRAGMA user_version = 1;
";

const ENVIRONMENT: EndpointKey = EndpointKey::Environment(1);

fn outcome(event: i64, attempt: u32) -> Outcome {
    Outcome {
        endpoint: ENVIRONMENT,
        event,
        lane: "flag 1/1".into(),
        attempt,
        at: Micros(3000),
        http_status: Some(200),
        milliseconds: 5,
        error: None,
        answer: Some("thanks".into()),
        replay: event == 1,
        verdict: Verdict::Delivered,
        breaker: None,
        hasten: false,
    }
}

#[test]
fn a_ledger_of_format_1_keeps_what_it_has_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    Connection::open(dir.path().join(FILE)).unwrap().execute_batch(FORMAT_1).unwrap();
    // Commands say what to do; only the daemon changes the format.
    let refused = Reader::open(dir.path()).err().unwrap().to_string();
    assert!(refused.contains("flagpost run"), "{refused}");
    let refused = Operator::open(dir.path()).err().unwrap().to_string();
    assert!(refused.contains("flagpost run"), "{refused}");

    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!(ledger.checkpoint().unwrap(), Some(Lsn(0x100)));
    let reader = ledger.reader().unwrap();
    let due = reader.due(ENVIRONMENT, Micros(9000), 10, &[]).unwrap();
    let [due] = due.as_slice() else { panic!("{due:?}") };
    assert_eq!((due.event, due.attempts, due.attempts_before, due.replay), (2, 1, 0, false));
    assert_eq!((due.queued_at, due.body.as_str()), (Micros(2001), "{\"n\": 2}"));
    let counts = &reader.counts().unwrap()["environment:1"];
    assert_eq!((counts.pending, counts.retrying, counts.dead), (1, 1, 1));
    assert_eq!(counts.last_error.as_deref(), Some("HTTP 500"));

    // A dead letter of that time is sent again, after what is still to be sent of its flag.
    let mut operator = Operator::open(dir.path()).unwrap();
    assert_eq!(operator.requeue(&[(ENVIRONMENT, 1), (EndpointKey::Environment(2), 1)]).unwrap(), 2);
    let handle = ledger.start_writer().unwrap();
    handle.writes.blocking_send(Write::Outcome(outcome(2, 2))).unwrap();
    let now = || reader.due(ENVIRONMENT, Micros(i64::MAX), 10, &[]).unwrap();
    while now().iter().all(|due| due.event == 2) {
        std::thread::yield_now();
    }
    assert_eq!(now().iter().map(|due| (due.event, due.replay)).collect::<Vec<_>>(), [(1, true)]);
    handle.writes.blocking_send(Write::Outcome(outcome(1, 5))).unwrap();
    drop(handle.writes);
    handle.ended.blocking_recv().unwrap().unwrap();
    let attempts = reader.attempts(ENVIRONMENT, 1).unwrap();
    assert_eq!((attempts[0].number, attempts[0].answer.as_deref()), (5, Some("thanks")));
    let states: Vec<DeliveryState> = reader.deliveries(2).unwrap().iter().map(|d| d.state).collect();
    assert_eq!(states, [DeliveryState::Delivered]);
    // And it is not brought up to date again.
    drop(Ledger::open(dir.path()).unwrap());
    assert!(reader.faults(true).unwrap().is_empty());
}

/// A ledger with `count` events a second apart, delivered to one endpoint and waiting for another; every hundredth was given up.
fn filled(directory: &Path, count: i64) -> Ledger {
    let ledger = Ledger::open(directory).unwrap();
    let sql = Connection::open(directory.join(FILE)).unwrap();
    sql.execute_batch("BEGIN").unwrap();
    let mut event = sql
        .prepare(
            "INSERT INTO event VALUES (?1, ?2, 'FLAG_UPDATED', 'updated', 1, 1, ?3, ?4, 'f' || ?4, 1, NULL, NULL, '0/1', 1,
             ?5, ?5 + 1000000, 0)",
        )
        .unwrap();
    let mut delivery = sql
        .prepare("INSERT INTO delivery VALUES (?1, ?2, 'flag ' || ?2, 'classic', ?3, ?4, ?5, ?5, 0, 0)")
        .unwrap();
    for n in 1..=count {
        let time = n * 1_000_000;
        event.execute(params![n, format!("{n:08x}"), n % 3, n % 10, time]).unwrap();
        let status = if n % 100 == 0 { 3 } else { 2 };
        delivery.execute(params!["environment:1", n, status, 1, time]).unwrap();
        delivery.execute(params!["environment:2", n, 0, 0, time]).unwrap();
    }
    drop((event, delivery));
    sql.execute_batch("COMMIT").unwrap();
    ledger
}

#[test]
fn what_is_looked_for_is_what_a_look_at_every_event_finds() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = filled(dir.path(), 10_000);
    let reader = ledger.reader().unwrap();
    let at = |second: i64| Some(Micros(second * 1_000_000));
    let of = |endpoint: i64, state: DeliveryState| Filter {
        endpoint: Some(EndpointKey::Environment(endpoint)),
        state: Some(state),
        ..Filter::default()
    };
    type Fits = fn(i64) -> bool;
    let all: [(Filter, Fits); 8] = [
        (Filter::default(), |_| true),
        (Filter { since: at(4_000), until: at(4_500), ..Filter::default() }, |n| (4_000..4_500).contains(&n)),
        (Filter { environments: Some(vec![1, 2]), ..Filter::default() }, |n| n % 3 > 0),
        (Filter { feature: Some("f7".into()), ..Filter::default() }, |n| n % 10 == 7),
        (Filter { feature: Some("7".into()), ..Filter::default() }, |n| n % 10 == 7),
        (Filter { state: Some(DeliveryState::Dead), ..Filter::default() }, |n| n % 100 == 0),
        (Filter { until: at(500), ..of(1, DeliveryState::Delivered) }, |n| n % 100 != 0 && n < 500),
        (Filter { since: at(9_990), ..of(2, DeliveryState::Pending) }, |n| n >= 9_990),
    ];
    for (filter, fits) in all {
        let expected: Vec<i64> = (1..=10_000).filter(|n| fits(*n)).collect();
        assert_eq!(reader.search(&filter, 0, usize::MAX).unwrap(), expected, "{filter:?}");
        let newest: Vec<i64> = expected.iter().rev().take(5).rev().copied().collect();
        assert_eq!(reader.search(&filter, 0, 5).unwrap(), newest, "{filter:?}");
        let later: Vec<i64> = expected.iter().filter(|n| **n > 7_777).copied().collect();
        assert_eq!(reader.search(&filter, 7_777, usize::MAX).unwrap(), later, "{filter:?}");
    }
    assert!(reader.search(&of(1, DeliveryState::Retrying), 0, 5).unwrap().is_empty());
    let replayable = reader.replayable(ENVIRONMENT, &Filter { until: at(200), ..Filter::default() }).unwrap();
    assert_eq!((replayable.events.len(), replayable.pending), (199, 0));
    assert_eq!(reader.replayable(EndpointKey::Environment(2), &Filter::default()).unwrap().pending, 10_000);
    let counts = reader.counts().unwrap();
    assert_eq!((counts["environment:1"].delivered, counts["environment:1"].dead), (9_900, 100));
    assert_eq!(counts["environment:2"].oldest_pending, at(1));
    assert_eq!(reader.by_id("0000", 3).unwrap().len(), 3);
    assert_eq!(reader.by_id("00000010", 3).unwrap()[0].seq, 16);
}

#[test]
fn pausing_and_resuming_say_what_was() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = filled(dir.path(), 3);
    let reader = ledger.reader().unwrap();
    let mut operator = Operator::open(dir.path()).unwrap();
    let mark = reader.operator_mark().unwrap();
    assert_eq!(operator.resume(ENVIRONMENT).unwrap(), Resumed::default());
    operator.pause(ENVIRONMENT, "it moves").unwrap();
    let pause = reader.lane(ENVIRONMENT).unwrap().pause.unwrap();
    assert_eq!((pause.by.as_str(), pause.why.as_str()), ("operator", "it moves"));
    assert_eq!(operator.resume(ENVIRONMENT).unwrap(), Resumed { was_paused: true, was_open: false });
    assert_eq!(reader.lane(ENVIRONMENT).unwrap().pause, None);
    assert_eq!(reader.operator_mark().unwrap(), mark + 3);
}
