//! Histories that the stories found, each shrunk to what it needs, and what is right in it.

use flagpost::change::{Field, Lsn, Micros, Op, Row, RowChange, Transaction};
use flagpost::schema::{Table, change_request, feature_segment, feature_state, mv_value};

use super::clicks::Action;
use super::database::{Database, Record, record, row, time};
use super::play::{Daemon, Told};
use super::telling::{BEGIN, Click, Story, beginning};
use super::{restarted, same};

fn click(action: Action) -> Click {
    Click { action, user: 1, at_once: false, interleaves: false, wait: 0, gaps: [0; 3] }
}

fn insert(table: Table, record: &Record) -> RowChange {
    RowChange { table, op: Op::Insert { new: row(record) } }
}

/// Commits these changes one after the other, so many milliseconds apart, and tells what came of it until long after.
fn told_of(begin: &Database, milliseconds: i64, all: Vec<Vec<RowChange>>) -> Vec<Told> {
    let mut daemon = Daemon::new(begin);
    for (number, changes) in (1_u64..).zip(all) {
        let time = BEGIN + i64::try_from(number).unwrap() * milliseconds * 1_000;
        let transaction =
            Transaction { end_lsn: Lsn(number), xid: number, commit_time: Micros(time), changes };
        daemon.transaction(&transaction, begin);
    }
    daemon.silence(Micros(BEGIN + 3_600_000_000));
    daemon.told()
}

fn actions(told: &[Told]) -> Vec<&str> {
    told.iter().map(|told| told.action.as_str()).collect()
}

/// The default state of the first feature in the first environment, with these columns set.
fn state(id: i64, set: &[(usize, String)]) -> Record {
    let mut fields = vec![
        (feature_state::ID, id.to_string()),
        (feature_state::ENABLED, "f".to_owned()),
        (feature_state::ENVIRONMENT_ID, "1".to_owned()),
        (feature_state::FEATURE_ID, "1".to_owned()),
        (feature_state::VERSION, "1".to_owned()),
    ];
    fields.extend_from_slice(set);
    record(Table::FeatureState, &fields)
}

/// SEMANTICS.md §5, 1: the states born together with a new environment give no event. After a restart between the
/// environment's transaction and its states' the engine takes them for new flags.
#[test]
fn a_restart_in_the_middle_of_the_birth_of_an_environment_tells_nothing() {
    let story = Story::tell(&[click(Action::CreateEnvironment { project: 0, enabled: false })]);
    assert!(story.beats.len() > 1, "the environment is born in several transactions");
    let uninterrupted = restarted(&story, |_| false);
    assert_eq!(actions(&uninterrupted), [""; 0]);
    assert_eq!(same(&uninterrupted, &restarted(&story, |number| number == 0)), Ok(()));
}

/// SEMANTICS.md §5, Scheduled changes: at `live_from` the event. Two change requests of one flag for the same moment are one
/// change of that flag: from what was live until then to the state of the later one.
#[test]
fn two_changes_of_a_flag_scheduled_for_one_moment_are_one_event() {
    let moment = time(Micros(BEGIN + 60_000_000));
    let committed = time(Micros(BEGIN + 500_000));
    let scheduled = |id: i64, request: &str, version: &str| {
        let request_row = [
            (change_request::ID, request.to_owned()),
            (change_request::COMMITTED_AT, committed.clone()),
            (change_request::ENVIRONMENT_ID, "1".to_owned()),
        ];
        let state = state(
            id,
            &[
                (feature_state::ENABLED, "t".to_owned()),
                (feature_state::CHANGE_REQUEST_ID, request.to_owned()),
                (feature_state::LIVE_FROM, moment.clone()),
                (feature_state::VERSION, version.to_owned()),
            ],
        );
        let request = record(Table::ChangeRequest, &request_row);
        vec![insert(Table::ChangeRequest, &request), insert(Table::FeatureState, &state)]
    };
    let told = told_of(&beginning(), 1_000, vec![scheduled(90, "1", "2"), scheduled(91, "2", "3")]);
    assert_eq!(actions(&told), ["scheduled;scope=default"]);
}

/// SEMANTICS.md §5: a flag value is a feature in an environment for a target. An override that names another segment is gone
/// for the one and new for the other.
#[test]
fn an_override_that_sql_moves_to_another_segment_is_removed_from_one_and_created_for_the_other() {
    let override_of = |segment: &str| {
        let fields = [
            (feature_segment::ID, "1".to_owned()),
            (feature_segment::PRIORITY, "0".to_owned()),
            (feature_segment::FEATURE_ID, "1".to_owned()),
            (feature_segment::SEGMENT_ID, segment.to_owned()),
            (feature_segment::ENVIRONMENT_ID, "1".to_owned()),
        ];
        record(Table::FeatureSegment, &fields)
    };
    let state = state(90, &[(feature_state::FEATURE_SEGMENT_ID, "1".to_owned())]);
    let made = vec![insert(Table::FeatureSegment, &override_of("1")), insert(Table::FeatureState, &state)];
    let moved = Op::Update { old_key: None, new: row(&override_of("2")) };
    let moved = vec![RowChange { table: Table::FeatureSegment, op: moved }];
    let told = told_of(&beginning(), 1_000, vec![made, moved]);
    let mut actions = actions(&told);
    actions.sort_unstable();
    assert_eq!(actions, ["created;scope=segment", "created;scope=segment", "removed;scope=segment"]);
}

/// SEMANTICS.md §5, 3: equal, no event. PostgreSQL's `double precision` can be NaN, which Rust's never equals.
#[test]
fn a_percentage_that_is_no_number_is_no_change_of_itself() {
    let variant = |percentage| {
        let fields = [Field::Text("1"), Field::Text(percentage), Field::Text("3"), Field::Text("1")];
        let new = Row::pack(&fields);
        vec![RowChange { table: Table::MvValue, op: Op::Update { old_key: None, new } }]
    };
    assert_eq!(mv_value::PERCENTAGE_ALLOCATION, 1);
    let told = told_of(&beginning(), 1_000, vec![variant("NaN"), variant("NaN")]);
    assert_eq!(actions(&told), ["updated;scope=default"]);
}
