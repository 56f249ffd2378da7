//! Histories that the stories found, each shrunk to what it needs, and what is right in it.

use flagpost::change::{Field, Key, Lsn, Micros, Op, Row, RowChange, Transaction};
use flagpost::event::Kind;
use flagpost::schema::{
    Table, change_request, environment, feature, feature_segment, feature_state, feature_version, mv_value,
    state_history, state_value,
};

use super::clicks::Action;
use super::database::{Database, Record, record, row, time};
use super::desk::Content;
use super::play::{Daemon, Told};
use super::schedule::{Plan, RequestAction, Start};
use super::telling::{BEGIN, Click, Story, beginning};
use super::versions::{Edit, VersionAction};
use super::{judged, restarted, same};

fn click(action: Action) -> Click {
    let (start, clock) = (Start::Any, 0);
    Click { action, user: 1, at_once: false, interleaves: false, wait: 0, gaps: [0; 3], start, clock }
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
    let story =
        Story::tell(&[click(Action::CreateEnvironment { project: 0, enabled: false, is_versioned: false })]);
    assert!(story.beats.len() > 1, "the environment is born in several transactions");
    let uninterrupted = restarted(&story, |_| false);
    assert_eq!(actions(&uninterrupted), [""; 0]);
    assert_eq!(same(&uninterrupted, &restarted(&story, |number| number == 0)), Ok(()));
}

/// SEMANTICS.md §5, 2: a feature created is one event per environment, also in one that was born a moment before.
#[test]
fn a_feature_that_comes_right_after_an_environment_is_told_there_too() {
    let environment = record(
        Table::Environment,
        &[
            (environment::ID, "90".to_owned()),
            (environment::NAME, "Born".to_owned()),
            (environment::PROJECT_ID, "1".to_owned()),
        ],
    );
    let feature = record(
        Table::Feature,
        &[
            (feature::ID, "90".to_owned()),
            (feature::NAME, "younger".to_owned()),
            (feature::PROJECT_ID, "1".to_owned()),
        ],
    );
    let state_of = |id, environment: &str, feature: &str| {
        let set = [
            (feature_state::ENVIRONMENT_ID, environment.to_owned()),
            (feature_state::FEATURE_ID, feature.to_owned()),
        ];
        vec![insert(Table::FeatureState, &state(id, &set))]
    };
    let all = vec![
        vec![insert(Table::Environment, &environment)],
        state_of(90, "90", "1"),
        vec![insert(Table::Feature, &feature)],
        state_of(91, "1", "90"),
        state_of(92, "90", "90"),
        state_of(93, "90", "2"),
    ];
    let told = told_of(&beginning(), 20, all);
    let flags: Vec<_> =
        told.iter().filter_map(|told| told.flag).map(|f| (f.feature, f.environment)).collect();
    assert_eq!(actions(&told), ["created;scope=default", "created;scope=default"]);
    assert_eq!(flags, [(90, 1), (90, 90)]);
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

fn delete(table: Table, id: i64) -> RowChange {
    RowChange { table, op: Op::Delete { key: Key::Int(id) } }
}

/// SEMANTICS.md §5, 4: `changed_by` and `timestamp` of a removal are those of its own history row. The override's row goes
/// first; after a restart it must still be known which segment its state was for.
#[test]
fn a_segment_override_deleted_across_a_restart_is_told_with_its_author() {
    let override_row = record(
        Table::FeatureSegment,
        &[
            (feature_segment::ID, "1".to_owned()),
            (feature_segment::PRIORITY, "0".to_owned()),
            (feature_segment::FEATURE_ID, "1".to_owned()),
            (feature_segment::SEGMENT_ID, "1".to_owned()),
            (feature_segment::ENVIRONMENT_ID, "1".to_owned()),
        ],
    );
    let state = state(90, &[(feature_state::FEATURE_SEGMENT_ID, "1".to_owned())]);
    let removal = record(
        Table::StateHistory,
        &[
            (state_history::HISTORY_ID, "1".to_owned()),
            (state_history::ID, "90".to_owned()),
            (state_history::HISTORY_TYPE, "-".to_owned()),
            (state_history::HISTORY_DATE, time(Micros(BEGIN))),
            (state_history::HISTORY_USER_ID, "1".to_owned()),
        ],
    );
    let steps = [
        (0, vec![insert(Table::FeatureSegment, &override_row), insert(Table::FeatureState, &state)]),
        (5_000, vec![delete(Table::FeatureSegment, 1)]),
        (5_020, vec![delete(Table::FeatureState, 90), insert(Table::StateHistory, &removal)]),
    ];
    let told = |restarts: bool| {
        let begin = beginning();
        let mut daemon = Daemon::new(&begin);
        for (number, (after, changes)) in (1_u64..).zip(steps.clone()) {
            let commit_time = Micros(BEGIN + after * 1_000);
            let transaction = Transaction { end_lsn: Lsn(number), xid: number, commit_time, changes };
            daemon.transaction(&transaction, &begin);
            if restarts {
                daemon.restart();
            }
        }
        daemon.silence(Micros(BEGIN + 3_600_000_000));
        daemon.told()
    };
    let uninterrupted = told(false);
    assert_eq!(actions(&uninterrupted), ["created;scope=segment", "removed;scope=segment"]);
    let changed_by = |told: &Told| {
        let body: serde_json::Value = serde_json::from_str(&told.current).unwrap();
        body["data"]["changed_by"].clone()
    };
    assert_eq!(changed_by(&uninterrupted[1]), "Acme");
    assert_eq!(same(&uninterrupted, &told(true)), Ok(()));
}

/// A state scheduled for a minute after the beginning goes live on the stream's clock; then these changes are committed with a
/// time just before that moment.
fn told_when_a_commit_comes_late(late: Vec<RowChange>) -> Vec<Told> {
    let moment = BEGIN + 60_000_000;
    let request = record(
        Table::ChangeRequest,
        &[
            (change_request::ID, "1".to_owned()),
            (change_request::COMMITTED_AT, time(Micros(BEGIN))),
            (change_request::ENVIRONMENT_ID, "1".to_owned()),
        ],
    );
    let value = [
        (state_value::ID, "90".to_owned()),
        (state_value::FEATURE_STATE_ID, "90".to_owned()),
        (state_value::TYPE, "unicode".to_owned()),
        (state_value::STRING_VALUE, "scheduled".to_owned()),
    ];
    let changes = vec![
        insert(Table::ChangeRequest, &request),
        insert(Table::FeatureState, &state(90, &scheduled(Micros(moment)))),
        insert(Table::StateValue, &record(Table::StateValue, &value)),
    ];
    let begin = beginning();
    let mut daemon = Daemon::new(&begin);
    let mut commit = |number: u64, at: i64, changes| {
        let commit_time = Micros(at);
        daemon.transaction(&Transaction { end_lsn: Lsn(number), xid: number, commit_time, changes }, &begin);
    };
    commit(1, BEGIN + 1_000_000, changes);
    commit(2, moment + 500, Vec::new());
    commit(3, moment - 500, late);
    daemon.silence(Micros(BEGIN + 3_600_000_000));
    daemon.told()
}

fn scheduled(moment: Micros) -> [(usize, String); 3] {
    [
        (feature_state::CHANGE_REQUEST_ID, "1".to_owned()),
        (feature_state::LIVE_FROM, time(moment)),
        (feature_state::VERSION, "2".to_owned()),
    ]
}

/// SEMANTICS.md §5, Scheduled changes: the event comes once.
#[test]
fn a_no_op_that_comes_late_does_not_tell_the_scheduled_change_again() {
    let same_state = state(90, &scheduled(Micros(BEGIN + 60_000_000)));
    let op = Op::Update { old_key: None, new: row(&same_state) };
    let told = told_when_a_commit_comes_late(vec![RowChange { table: Table::FeatureState, op }]);
    assert_eq!(actions(&told), ["scheduled;scope=default"]);
}

/// SEMANTICS.md §5: an event's previous state is what was told before.
#[test]
fn an_edit_that_comes_late_goes_on_from_the_scheduled_change() {
    let value = [
        (state_value::ID, "90".to_owned()),
        (state_value::FEATURE_STATE_ID, "90".to_owned()),
        (state_value::TYPE, "unicode".to_owned()),
        (state_value::STRING_VALUE, "edited".to_owned()),
    ];
    let op = Op::Update { old_key: None, new: row(&record(Table::StateValue, &value)) };
    let told = told_when_a_commit_comes_late(vec![RowChange { table: Table::StateValue, op }]);
    assert_eq!(actions(&told), ["scheduled;scope=default", "updated;scope=default"]);
    let body: serde_json::Value = serde_json::from_str(&told[1].current).unwrap();
    assert_eq!(body["data"]["previous_state"]["feature_state_value"], "scheduled");
    assert_eq!(body["data"]["new_state"]["feature_state_value"], "edited");
}

/// A commit that comes late and schedules a change for a moment that the stream's clock has passed: told at once, as scheduled.
#[test]
fn a_schedule_that_comes_late_is_told_at_once() {
    let moment = Micros(BEGIN + 60_000_000);
    let mut other = scheduled(moment);
    other[2].1 = "3".to_owned();
    let told = told_when_a_commit_comes_late(vec![insert(Table::FeatureState, &state(91, &other))]);
    assert_eq!(actions(&told), ["scheduled;scope=default", "scheduled;scope=default"]);
}

fn make(flag: u8, plan: Plan) -> Click {
    let edit =
        Edit { segment: None, toggle: true, content: None, percentage: None, drops: false, priority: None };
    click(Action::Version(VersionAction::Make { flag, edit, plan, apart: false }))
}

/// SEMANTICS.md §5, Scheduled changes: nothing when written. The window of the writing ends at the very moment at which the version
/// goes live: what has changed until then belongs to before.
#[test]
fn a_version_that_goes_live_when_the_window_of_its_writing_ends_is_told_once_as_scheduled() {
    let story = Story::tell(&[make(0, Plan::Ahead(100))]);
    assert_eq!(judged(&story), Ok(()));
    assert_eq!(actions(&restarted(&story, |_| false)), ["scheduled;scope=default", "scheduled"]);
}

/// SEMANTICS.md §5, Scheduled changes. While versioning is turned on, a scheduled state already has a version for its moment but does
/// not belong to it yet. Both go live at once: the flag changes once.
#[test]
fn a_state_and_a_version_scheduled_for_one_moment_tell_of_a_flag_once() {
    let moment = Micros(BEGIN + 60_000_000);
    let request = record(
        Table::ChangeRequest,
        &[(change_request::ID, "1".to_owned()), (change_request::COMMITTED_AT, time(Micros(BEGIN)))],
    );
    let mut set = scheduled(moment).to_vec();
    set.push((feature_state::ENABLED, "t".to_owned()));
    let version = record(
        Table::FeatureVersion,
        &[
            (feature_version::UUID, "u".to_owned()),
            (feature_version::PUBLISHED_AT, time(Micros(BEGIN))),
            (feature_version::LIVE_FROM, time(moment)),
            (feature_version::FEATURE_ID, "1".to_owned()),
            (feature_version::ENVIRONMENT_ID, "1".to_owned()),
        ],
    );
    let all = vec![
        insert(Table::ChangeRequest, &request),
        insert(Table::FeatureState, &state(90, &set)),
        insert(Table::FeatureVersion, &version),
    ];
    let told = told_of(&beginning(), 1_000, vec![all]);
    assert_eq!(actions(&told), ["scheduled;scope=default"]);
}

/// DESIGN.md, Settling: a replay groups the same way. A feature's options follow it in transactions of their own; a version published
/// meanwhile supersedes the first one, whose states are touched all the same until the window ends.
#[test]
fn a_restart_forgets_a_superseded_version_no_sooner_than_its_window_ends() {
    let content = Content::Int(0);
    let mut create = click(Action::CreateFeature { project: 0, options: 1, content, enabled: false });
    create.gaps = [30; 3];
    let publish = Click { interleaves: true, ..make(2, Plan::Now) };
    let story = Story::tell(&[create, publish]);
    assert_eq!(story.beats.len(), 3, "the version is published before the option comes");
    let uninterrupted = restarted(&story, |_| false);
    assert_eq!(same(&uninterrupted, &restarted(&story, |_| true)), Ok(()));
}

/// SEMANTICS.md §5, Scheduled changes. The state that a change request has scheduled for a segment hangs on the same override as the
/// state in force; when versioning is turned on they come to two versions. What another version supersedes goes, the override stays.
#[test]
fn a_scheduled_state_keeps_the_override_that_it_shares_with_a_superseded_version() {
    let (content, enabled) = (Content::Int(1), false);
    let story = Story::tell(&[
        click(Action::CreateSegmentOverride { feature: 0, environment: 0, segment: 0, content, enabled }),
        click(Action::Request(RequestAction::Make {
            state: 2,
            toggle: true,
            content: None,
            plan: Plan::Ahead(5_000),
        })),
        click(Action::Version(VersionAction::Enable { environment: 0 })),
        make(2, Plan::Now),
    ]);
    assert_eq!(judged(&story), Ok(()));
    let told = restarted(&story, |_| false);
    assert!(actions(&told).contains(&"scheduled;scope=segment"), "{:?}", actions(&told));
}

/// SEMANTICS.md §5, Versioned environments: a state outside the live version is not in force. A version made of an override that a
/// change request had scheduled has no state for everybody; the state that an earlier request had superseded does not come back.
#[test]
fn a_version_of_an_override_alone_brings_no_superseded_state_back() {
    let (content, enabled) = (Content::Int(1), false);
    let request = |state, plan| {
        let content = None;
        click(Action::Request(RequestAction::Make { state, toggle: true, content, plan }))
    };
    let story = Story::tell(&[
        click(Action::CreateSegmentOverride { feature: 0, environment: 0, segment: 0, content, enabled }),
        request(0, Plan::Now),
        request(2, Plan::Ahead(5_000)),
        click(Action::Version(VersionAction::Enable { environment: 0 })),
    ]);
    assert_eq!(judged(&story), Ok(()));
    let told = restarted(&story, |_| false);
    let deleted = told.iter().filter(|told| told.kind == Kind::FlagDeleted).map(|told| told.action.as_str());
    assert_eq!(deleted.collect::<Vec<_>>(), ["scheduled;scope=default"]);
}
