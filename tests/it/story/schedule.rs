//! Change requests outside versions (SEMANTICS.md §5, "Scheduled changes"): made, committed for now or for later, put off, withdrawn;
//! and the moments that clicks are aimed at.

use flagpost::change::{Key, Micros};
use flagpost::schema::{Table, change_request, feature_state, feature_version};
use proptest::prelude::*;

use super::clicks::{Action, Pick, nth, states};
use super::database::{Database, Record, Write, int, record};
use super::desk::{Content, Desk, Holder};
use super::oracle::{environment_is_alive, is_versioned, moment};
use super::telling::content;
use super::versions::patch;

/// When a change goes live.
#[derive(Debug, Clone, Copy)]
pub(super) enum Plan {
    /// Nobody has said so yet.
    Draft,
    Now,
    /// In so many milliseconds.
    Ahead(u32),
    /// With what else goes live next.
    Beside,
}

#[derive(Debug, Clone)]
pub(super) enum RequestAction {
    Make {
        state: Pick,
        toggle: bool,
        content: Option<Content>,
        plan: Plan,
    },
    Commit {
        which: Pick,
    },
    /// By SQL.
    Reschedule {
        which: Pick,
        plan: Plan,
    },
    /// Deleted before its moment, with its states, or by SQL without.
    Withdraw {
        which: Pick,
        by_sql: bool,
    },
}

/// Where in time a click begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start {
    /// Whenever it comes.
    Any,
    /// So many milliseconds after the next moment at which something goes live.
    Aimed(i8),
    /// Its first commit has a time just before what the daemon has heard already: of the server's own clock, or from another commit.
    Late { aimed: bool, by_traffic: bool },
}

pub(super) fn start() -> impl Strategy<Value = Start> {
    prop_oneof![
        6 => Just(Start::Any),
        2 => (-3..4_i8).prop_map(Start::Aimed),
        1 => (proptest::bool::weighted(0.8), any::<bool>())
            .prop_map(|(aimed, by_traffic)| Start::Late { aimed, by_traffic }),
    ]
}

pub(super) fn plan() -> impl Strategy<Value = Plan> {
    prop_oneof![
        2 => Just(Plan::Draft),
        3 => Just(Plan::Now),
        3 => (100..3_000_u32).prop_map(Plan::Ahead),
        2 => (3_000..20_000_u32).prop_map(Plan::Ahead),
        // After the story.
        1 => (7_200_000..7_210_000_u32).prop_map(Plan::Ahead),
        1 => Just(Plan::Beside),
    ]
}

pub(super) fn request_action() -> BoxedStrategy<Action> {
    let pick = || 0..16 as Pick;
    let make = (pick(), any::<bool>(), proptest::option::of(content()), plan());
    prop_oneof![
        8 => make.prop_map(|(state, toggle, content, plan)| {
            RequestAction::Make { state, toggle, content, plan }
        }),
        4 => pick().prop_map(|which| RequestAction::Commit { which }),
        4 => (pick(), plan()).prop_map(|(which, plan)| RequestAction::Reschedule { which, plan }),
        5 => (pick(), any::<bool>()).prop_map(|(which, by_sql)| RequestAction::Withdraw { which, by_sql }),
    ]
    .prop_map(Action::Request)
    .boxed()
}

/// Whether a row waits for a moment after `now`.
pub(super) fn is_scheduled(record: &Record, live_from: usize, now: i64) -> bool {
    moment(record, live_from).is_some_and(|at| at.0 > now)
}

/// The next moment after `now` at which something goes live.
pub(super) fn next_moment(database: &Database, now: i64) -> Option<Micros> {
    let states = database
        .rows(Table::FeatureState)
        .filter(|s| s[feature_state::DELETED_AT].is_none() && s[feature_state::CHANGE_REQUEST_ID].is_some());
    let versions = database.rows(Table::FeatureVersion).filter(|v| v[feature_version::DELETED_AT].is_none());
    let states = states.filter_map(|s| moment(s, feature_state::LIVE_FROM));
    let versions = versions.filter_map(|v| moment(v, feature_version::LIVE_FROM));
    states.chain(versions).filter(|at| at.0 > now).min()
}

impl Desk<'_> {
    pub(super) fn act_on_requests(&mut self, action: &RequestAction) -> Option<()> {
        match *action {
            RequestAction::Make { state, toggle, content, plan } => {
                let all = states(self.database, |s| self.may_be_requested(s));
                self.request(nth(&all, state)?, toggle, content, plan);
            }
            RequestAction::Commit { which } => {
                let open = self.database.rows(Table::ChangeRequest).filter(|r| {
                    r[change_request::COMMITTED_AT].is_none() && r[change_request::DELETED_AT].is_none()
                });
                let open: Vec<i64> = open.filter_map(|r| int(r, change_request::ID)).collect();
                self.commit_request(nth(&open, which)?);
            }
            RequestAction::Reschedule { which, plan } => {
                let live_from = vec![(feature_state::LIVE_FROM, Some(self.moment_of(plan)?))];
                let state = self.scheduled_state(which)?;
                self.then(vec![Write::Update(Table::FeatureState, Key::Int(state), live_from)]);
            }
            RequestAction::Withdraw { which, by_sql } => {
                let state = self.scheduled_state(which)?;
                let row = self.database.by_id(Table::FeatureState, state)?;
                let request = int(row, feature_state::CHANGE_REQUEST_ID)?;
                let mark = vec![(change_request::DELETED_AT, Some(self.stamp()))];
                self.then(vec![Write::Update(Table::ChangeRequest, Key::Int(request), mark)]);
                if !by_sql {
                    self.soft_delete_state(state);
                }
            }
        }
        Some(())
    }

    /// What is in force, or was, outside versions.
    fn may_be_requested(&self, state: &Record) -> bool {
        let environment = int(state, feature_state::ENVIRONMENT_ID).unwrap();
        state[feature_state::IDENTITY_ID].is_none()
            && state[feature_state::VERSION].is_some()
            && !is_versioned(self.database, environment)
            && environment_is_alive(self.database, environment)
    }

    pub(super) fn committed_at(&self, request: i64) -> Option<String> {
        let request = self.database.by_id(Table::ChangeRequest, request)?;
        let is_there = request[change_request::DELETED_AT].is_none();
        request[change_request::COMMITTED_AT].clone().filter(|_| is_there)
    }

    /// The states outside versions that a committed change request has scheduled.
    pub(super) fn scheduled_states(&self) -> Vec<Record> {
        let all = self.database.rows(Table::FeatureState).filter(|s| {
            s[feature_state::DELETED_AT].is_none()
                && s[feature_state::VERSION].is_some()
                && s[feature_state::ENVIRONMENT_FEATURE_VERSION_ID].is_none()
                && is_scheduled(s, feature_state::LIVE_FROM, self.now)
                && int(s, feature_state::CHANGE_REQUEST_ID)
                    .and_then(|r| self.committed_at(r))
                    .is_some_and(|at| moment(s, feature_state::LIVE_FROM) > Micros::parse(&at))
        });
        all.cloned().collect()
    }

    fn scheduled_state(&self, pick: Pick) -> Option<i64> {
        let all: Vec<i64> =
            self.scheduled_states().iter().filter_map(|s| int(s, feature_state::ID)).collect();
        nth(&all, pick)
    }

    /// The state is copied with the request that it had, then gets its own, then its content; the commit gives it its version.
    fn request(&mut self, source: i64, toggle: bool, content: Option<Content>, plan: Plan) {
        let row = self.database.by_id(Table::FeatureState, source).unwrap().clone();
        let of = |column| int(&row, column).unwrap();
        let (feature, environment) = (of(feature_state::FEATURE_ID), of(feature_state::ENVIRONMENT_ID));
        let request = self.database.next_id(Table::ChangeRequest);
        let new = [
            (change_request::ID, request.to_string()),
            (change_request::TITLE, format!("Change {request}")),
            (change_request::ENVIRONMENT_ID, environment.to_string()),
        ];
        self.then(vec![Write::Insert(Table::ChangeRequest, record(Table::ChangeRequest, &new))]);
        let parent = int(&row, feature_state::FEATURE_SEGMENT_ID);
        let holder = parent.map_or(Holder::Everybody, Holder::Override);
        let enabled = row[feature_state::ENABLED].as_deref() == Some("t");
        let (state, mut writes) = self.state(feature, environment, holder, enabled);
        let set = [
            (feature_state::LIVE_FROM, self.moment_of(plan)),
            (feature_state::VERSION, None),
            (feature_state::CHANGE_REQUEST_ID, row[feature_state::CHANGE_REQUEST_ID].clone()),
        ];
        patch(&mut writes, Table::FeatureState, &set);
        self.then(writes);
        let value = self.copied_value(source, state);
        let id = value.iter().find_map(|write| match write {
            Write::Insert(Table::StateValue, record) => int(record, 0),
            _ => None,
        });
        self.then(value);
        let set = vec![
            (feature_state::ENABLED, Some(if enabled != toggle { "t" } else { "f" }.to_owned())),
            (feature_state::CHANGE_REQUEST_ID, Some(request.to_string())),
        ];
        let update = Write::Update(Table::FeatureState, Key::Int(state), set);
        self.then(vec![update, self.state_history(state, "~")]);
        if let (Some(content), Some(id)) = (content, id) {
            self.then(vec![Desk::new_content(id, content), self.value_history(state, "~")]);
        }
        let variants = self.copied_variants(source, state, None);
        if !variants.is_empty() {
            self.then(variants);
        }
        if !matches!(plan, Plan::Draft) {
            self.commit_request(request);
        }
    }

    fn commit_request(&mut self, request: i64) {
        self.then(vec![Write::CommitStates { request, now: self.stamp() }]);
        let set = vec![(change_request::COMMITTED_AT, Some(self.stamp()))];
        self.then(vec![Write::Update(Table::ChangeRequest, Key::Int(request), set)]);
    }
}
