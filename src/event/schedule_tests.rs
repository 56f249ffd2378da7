//! Versions and scheduled changes with a stepped clock: what is told when, over restarts, and when it is put off.

use std::collections::HashMap;

use super::engine_tests::{Harness, SETTLE, cases, events, transaction};
use super::*;
use crate::change::{Field, Key, Op, RowChange, Transaction};
use crate::mirror::{Mirror, Persist, kept_key};
use crate::schema::{Capabilities, Table, environment, feature_state, feature_version};

/// Rows that the ledger would hold, by what the effects said of them.
#[derive(Default)]
struct Ledger(HashMap<(Table, Key), Row>);

impl Ledger {
    fn take(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Mirror(Persist::Put { table, key, row }) => {
                    self.0.insert((*table, key.clone()), row.clone());
                }
                Effect::Mirror(Persist::Remove { table, key }) => {
                    self.0.remove(&(*table, key.clone()));
                }
                _ => {}
            }
        }
    }

    /// An engine as it is after a restart at this clock.
    fn restart(&self, clock: Micros) -> Engine {
        let mut mirror = Mirror::new(Capabilities::default());
        self.0.iter().for_each(|((table, _), row)| mirror.load(*table, row.clone()));
        let formats = Formats { default: Format::Current, by_url: Vec::new() };
        let mut engine = Engine::new(mirror, "7351".into(), SETTLE, formats, false);
        engine.resume(clock, Lsn(1));
        engine
    }

    /// Everything that a harness's mirror holds.
    fn of(harness: &Harness) -> Ledger {
        let mut ledger = Ledger::default();
        let mirror = harness.engine.mirror();
        for table in Table::ALL {
            for key in mirror.keys(*table) {
                let row = mirror.row(*table, &key).unwrap().clone();
                ledger.0.insert((*table, kept_key(*table, &row)), row);
            }
        }
        ledger
    }
}

/// A harness that has played the cases before the one whose name begins so, and that case.
fn before(prefix: &str) -> (Harness, serde_json::Value) {
    let mut harness = Harness::new(Format::Current, SETTLE);
    for (name, case) in cases() {
        if name.starts_with(prefix) {
            return (harness, case);
        }
        harness.play(&case);
    }
    panic!("no case {prefix}");
}

/// The case without what came after its moment, and the moment.
fn schedule(prefix: &str) -> (Harness, Ledger, Micros) {
    let (mut harness, case) = before(prefix);
    let mut ledger = Ledger::of(&harness);
    let mut effects = Vec::new();
    let mut due = None;
    for json in case["transactions"].as_array().unwrap() {
        let commit = transaction(json);
        for change in json["changes"].as_array().unwrap() {
            let live_from = change["new"]["live_from"].as_str().and_then(Micros::parse);
            due = due.max(live_from);
        }
        if due.is_none_or(|due| commit.commit_time < due) {
            harness.engine.transaction(commit, &mut |e| effects.push(e));
        }
    }
    let due = due.unwrap();
    // The groups that the writing opened close without a word.
    harness.engine.silence(Micros(due.0 - 1), &mut |e| effects.push(e));
    ledger.take(&effects);
    let told = events(effects).into_iter().filter(|e| e.kind != Kind::AuditLogCreated).count();
    assert_eq!(told, 0, "{prefix}: a scheduled change is told when it is written");
    (harness, ledger, due)
}

fn told_by(engine: &mut Engine, now: Micros) -> Vec<Event> {
    let mut effects = Vec::new();
    engine.silence(now, &mut |e| effects.push(e));
    events(effects)
}

/// A version, and a state of a change request.
const SCHEDULED: [&str; 2] = ["078", "090"];

#[test]
fn a_scheduled_change_is_told_at_its_moment_and_not_before() {
    for prefix in SCHEDULED {
        let (mut harness, _, due) = schedule(prefix);
        assert_eq!(harness.engine.next_deadline(), Some(due));
        let told = told_by(&mut harness.engine, due);
        assert!(!told.is_empty(), "{prefix}");
        assert!(told.iter().all(|e| e.action.verb == Verb::Scheduled && e.commit.time == due), "{prefix}");
        assert!(told_by(&mut harness.engine, Micros(due.0 + 1_000_000)).is_empty(), "{prefix}: told twice");
    }
}

#[test]
fn after_a_restart_it_is_told_with_the_same_id_also_when_its_moment_has_passed() {
    for prefix in SCHEDULED {
        let (mut harness, ledger, due) = schedule(prefix);
        let ids: Vec<EventId> = told_by(&mut harness.engine, due).iter().map(|e| e.id).collect();
        // Restarted before the moment, and started again an hour after it.
        for now in [due, Micros(due.0 + 3_600_000_000)] {
            let mut engine = ledger.restart(Micros(due.0 - 1));
            let again: Vec<EventId> = told_by(&mut engine, now).iter().map(|e| e.id).collect();
            assert_eq!(again, ids, "{prefix}");
        }
        // A ledger whose clock has passed the moment has told it.
        assert!(told_by(&mut ledger.restart(due), Micros(due.0 + 1)).is_empty(), "{prefix}");
    }
}

fn with(row: &Row, column: usize, value: Field<'_>) -> Row {
    let fields: Vec<Field<'_>> =
        row.fields().enumerate().map(|(i, field)| if i == column { value } else { field }).collect();
    Row::pack(&fields)
}

fn commit(engine: &mut Engine, at: Micros, table: Table, row: Row) -> Vec<Event> {
    let changes = vec![RowChange { table, op: Op::Update { old_key: None, new: row } }];
    let transaction = Transaction { end_lsn: Lsn(9), xid: 9_000_000, commit_time: at, changes };
    let mut effects = Vec::new();
    engine.transaction(transaction, &mut |e| effects.push(e));
    events(effects)
}

/// The row that waits for its moment, in its table.
fn waiting_row(engine: &Engine, due: Micros) -> (Table, Row, usize) {
    for (table, column) in
        [(Table::FeatureVersion, feature_version::LIVE_FROM), (Table::FeatureState, feature_state::LIVE_FROM)]
    {
        for key in engine.mirror().keys(table) {
            let row = engine.mirror().row(table, &key).unwrap();
            if row.text(column).and_then(Micros::parse) == Some(due) {
                return (table, row.clone(), column);
            }
        }
    }
    panic!("nothing waits");
}

#[test]
fn what_is_put_off_is_told_at_the_new_moment_only_and_what_is_withdrawn_never() {
    for prefix in SCHEDULED {
        let (mut harness, _, due) = schedule(prefix);
        let (table, row, column) = waiting_row(&harness.engine, due);
        let later = "2030-01-01 00:00:00+00";
        let put_off = with(&row, column, Field::Text(later));
        assert!(commit(&mut harness.engine, Micros(due.0 - 1), table, put_off).is_empty());
        let later = Micros::parse(later).unwrap();
        assert!(
            told_by(&mut harness.engine, Micros(later.0 - 1)).is_empty(),
            "{prefix}: told at the old moment"
        );
        assert!(!told_by(&mut harness.engine, later).is_empty(), "{prefix}");

        let (mut harness, _, due) = schedule(prefix);
        let deleted = match table {
            Table::FeatureVersion => feature_version::DELETED_AT,
            _ => feature_state::DELETED_AT,
        };
        let withdrawn = with(&row, deleted, Field::Text("2026-11-24 02:38:22+00"));
        assert!(commit(&mut harness.engine, Micros(due.0 - 1), table, withdrawn).is_empty());
        assert!(told_by(&mut harness.engine, Micros(later.0)).is_empty(), "{prefix}: told though withdrawn");
    }
}

#[test]
fn a_commit_after_the_moment_finds_it_told_before_its_own_change() {
    let (mut harness, _, due) = schedule("090");
    let (_, row, _) = waiting_row(&harness.engine, due);
    let toggled = with(&row, feature_state::ENABLED, Field::Text("t"));
    let told = commit(&mut harness.engine, Micros(due.0 + 5), Table::FeatureState, toggled);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].action.verb, Verb::Scheduled);
    let told = told_by(&mut harness.engine, Micros(due.0 + 10_000_000));
    assert_eq!(told[0].action.verb, Verb::Updated);
}

#[test]
fn superseded_versions_leave_the_mirror_and_the_live_ones_stay() {
    let mut harness = Harness::new(Format::Current, SETTLE);
    for (name, case) in cases().into_iter().take_while(|(name, _)| !name.starts_with("082")) {
        harness.play(&case);
        let mirror = harness.engine.mirror();
        let mut published: HashMap<(i64, i64), usize> = HashMap::new();
        for key in mirror.keys(Table::FeatureVersion) {
            let version = mirror.row(Table::FeatureVersion, &key).unwrap();
            if !version.is_null(feature_version::PUBLISHED_AT) {
                *published.entry(crate::mirror::flag_of_version(version)).or_default() += 1;
            }
        }
        assert!(published.values().all(|count| *count == 1), "{name}: {published:?}");
        // No state, value or override is left of a version that is gone.
        for key in mirror.keys(Table::FeatureState) {
            let state = mirror.row(Table::FeatureState, &key).unwrap();
            if let Some(uuid) = state.text(feature_state::ENVIRONMENT_FEATURE_VERSION_ID) {
                assert!(mirror.row(Table::FeatureVersion, &Key::Text(uuid.into())).is_some(), "{name}");
            }
        }
    }
}

/// As Flagsmith turns versioning off: the states lose their version, the versions go, the environment's flag follows; each a
/// transaction of its own, further apart than the settle window.
#[test]
fn turning_versioning_off_is_silent_however_slow() {
    let (mut harness, _) = before("082");
    let production = 2;
    let mirror = harness.engine.mirror();
    let rows = |table: Table, column: usize| -> Vec<Row> {
        let rows = mirror.keys(table).into_iter().filter_map(|key| mirror.row(table, &key).cloned());
        rows.filter(|row| row.int(column) == Some(production)).collect()
    };
    let states = rows(Table::FeatureState, feature_state::ENVIRONMENT_ID);
    let versions = rows(Table::FeatureVersion, feature_version::ENVIRONMENT_ID);
    let environments = rows(Table::Environment, environment::ID);
    assert!(!states.is_empty() && !versions.is_empty());
    let mut at = Micros(harness.engine.clock().0 + 1_000_000);
    let mut steps: Vec<Vec<RowChange>> = Vec::new();
    let update = |table: Table, row: Row| RowChange { table, op: Op::Update { old_key: None, new: row } };
    let unversioned =
        states.iter().filter(|s| !s.is_null(feature_state::ENVIRONMENT_FEATURE_VERSION_ID)).map(|state| {
            let state = with(state, feature_state::ENVIRONMENT_FEATURE_VERSION_ID, Field::Null);
            update(Table::FeatureState, with(&state, feature_state::VERSION, Field::Text("1")))
        });
    steps.push(unversioned.collect());
    for version in &versions {
        let gone = with(version, feature_version::DELETED_AT, Field::Text("2026-11-24 02:40:00+00"));
        steps.push(vec![update(Table::FeatureVersion, gone)]);
    }
    let off = with(&environments[0], environment::USE_V2_FEATURE_VERSIONING, Field::Text("f"));
    steps.push(vec![update(Table::Environment, off)]);
    let mut effects = Vec::new();
    for changes in steps {
        at = Micros(at.0 + 500_000);
        let transaction = Transaction { end_lsn: Lsn(9), xid: 9_000_000, commit_time: at, changes };
        harness.engine.transaction(transaction, &mut |e| effects.push(e));
    }
    harness.engine.silence(Micros(at.0 + 10_000_000), &mut |e| effects.push(e));
    let told = events(effects);
    assert!(told.is_empty(), "{told:#?}");
}
