//! The oracle: what every flag value is, read from the tables by the rules of SEMANTICS.md §3 and §5.
//!
//! Its own code on purpose: it asks the whole database each time and knows no mirror, no groups and no indices.

use std::collections::{BTreeMap, BTreeSet};

use flagpost::change::Micros;
use flagpost::event::{EndpointKey, Format, Recipient};
use flagpost::schema::{
    Table, change_request, environment, environment_webhook, feature, feature_segment, feature_state,
    feature_version, mv_option, mv_value, organisation, organisation_webhook, project, state_value,
};
use serde_json::Value as Json;

use super::database::{Database, Record, int};
use super::play::CLASSIC_URL;

/// The longest time, in microseconds, that the changes of one click are collected.
const ONE_CLICK: i64 = 1_200_000;

/// For whom a flag value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum For {
    Everybody,
    Segment(i64),
    Identity(i64),
}

/// A feature in an environment for somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FlagValue {
    pub(super) feature: i64,
    pub(super) environment: i64,
    pub(super) whom: For,
}

/// The part of a flag value whose change is an event.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Visible {
    pub(super) enabled: bool,
    pub(super) value: Json,
    /// Option, its value, percentage; in id order of the percentages.
    pub(super) variants: Vec<(Option<i64>, Json, Option<f64>)>,
    pub(super) priority: Option<i64>,
}

/// All flag values that are alive at `now`.
pub(super) fn flag_values(database: &Database, now: Micros) -> BTreeMap<FlagValue, Visible> {
    let states = states_in_force(database, now).into_iter();
    states.filter_map(|(_, state)| flag_of(database, state)).collect()
}

/// The states that are in force at `now`.
pub(super) fn states_in_force(database: &Database, now: Micros) -> BTreeMap<FlagValue, &Record> {
    let mut best: BTreeMap<FlagValue, &Record> = BTreeMap::new();
    for state in database.rows(Table::FeatureState).filter(|state| is_in_force(database, state, now)) {
        let Some((flag, _)) = flag_of(database, state) else { continue };
        if best.get(&flag).is_none_or(|other| rank(state) > rank(other)) {
            best.insert(flag, state);
        }
    }
    best
}

fn rank(state: &Record) -> (Option<Micros>, Option<i64>) {
    (moment(state, feature_state::LIVE_FROM), int(state, feature_state::VERSION))
}

/// Whether an environment, its project and its organisation are there.
pub(super) fn environment_is_alive(database: &Database, id: i64) -> bool {
    let alive = |table: Table, id: Option<i64>, deleted_at: usize| {
        id.and_then(|id| database.by_id(table, id)).filter(|record| record[deleted_at].is_none())
    };
    alive(Table::Environment, Some(id), environment::DELETED_AT)
        .and_then(|e| alive(Table::Project, int(e, environment::PROJECT_ID), project::DELETED_AT))
        .and_then(|p| alive(Table::Organisation, int(p, project::ORGANISATION_ID), organisation::DELETED_AT))
        .is_some()
}

fn feature_is_alive(database: &Database, id: i64) -> bool {
    database.by_id(Table::Feature, id).is_some_and(|f| f[feature::DELETED_AT].is_none())
}

fn is_in_force(database: &Database, state: &Record, now: Micros) -> bool {
    let feature = int(state, feature_state::FEATURE_ID).unwrap();
    let environment = int(state, feature_state::ENVIRONMENT_ID).unwrap();
    if state[feature_state::DELETED_AT].is_some()
        || !feature_is_alive(database, feature)
        || !environment_is_alive(database, environment)
    {
        return false;
    }
    let live = live_version(database, feature, environment, now);
    if let Some(own) = state[feature_state::ENVIRONMENT_FEATURE_VERSION_ID].as_deref() {
        return live.is_some_and(|live| live[feature_version::UUID].as_deref() == Some(own));
    }
    let is_outside_versions =
        state[feature_state::IDENTITY_ID].is_some() || !is_versioned(database, environment) || live.is_none();
    is_outside_versions && is_committed(database, state, now)
}

/// Whether an environment has versions.
pub(super) fn is_versioned(database: &Database, environment: i64) -> bool {
    let environment = database.by_id(Table::Environment, environment);
    environment.is_some_and(|e| e[environment::USE_V2_FEATURE_VERSIONING].as_deref() == Some("t"))
}

/// A state of a change request is in force when that is committed and its time has come, unless it was deleted before. Whatever was to
/// come when it was committed came by the application's clock, which may be ahead of the database's.
fn is_committed(database: &Database, state: &Record, now: Micros) -> bool {
    if state[feature_state::VERSION].is_none() {
        return false;
    }
    let Some(request) = int(state, feature_state::CHANGE_REQUEST_ID) else { return true };
    let request = database.by_id(Table::ChangeRequest, request).unwrap();
    let Some(committed) = moment(request, change_request::COMMITTED_AT) else { return false };
    let Some(live_from) = moment(state, feature_state::LIVE_FROM) else { return false };
    let deleted = moment(request, change_request::DELETED_AT);
    (live_from <= now || live_from <= committed) && deleted.is_none_or(|deleted| deleted >= live_from)
}

/// The version of a feature that is live in an environment.
pub(super) fn live_version(
    database: &Database,
    feature: i64,
    environment: i64,
    now: Micros,
) -> Option<&Record> {
    database
        .with(Table::FeatureVersion, feature_version::FEATURE_ID, feature)
        .filter(|version| int(version, feature_version::ENVIRONMENT_ID) == Some(environment))
        .filter(|version| is_published(version, now))
        .max_by_key(|version| (moment(version, feature_version::LIVE_FROM), &version[feature_version::UUID]))
}

fn is_published(version: &Record, now: Micros) -> bool {
    let published = moment(version, feature_version::PUBLISHED_AT);
    let live_from = moment(version, feature_version::LIVE_FROM);
    version[feature_version::DELETED_AT].is_none()
        && published.zip(live_from).is_some_and(|(published, at)| at <= now || at <= published)
}

/// A version that is live, and whether it must have been told: Flagsmith makes the first one of a flag by itself, and what follows it
/// within one click belongs to that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) uuid: String,
    pub(super) follows_another: bool,
}

/// The versions that are live, by feature and environment.
pub(super) fn live_versions(database: &Database, now: Micros) -> BTreeMap<(i64, i64), Live> {
    let flags: BTreeSet<(i64, i64)> = database
        .rows(Table::FeatureVersion)
        .filter_map(|v| {
            Some((int(v, feature_version::FEATURE_ID)?, int(v, feature_version::ENVIRONMENT_ID)?))
        })
        .filter(|(feature, environment)| {
            feature_is_alive(database, *feature) && environment_is_alive(database, *environment)
        })
        .collect();
    let mut all = BTreeMap::new();
    for (feature, environment) in flags {
        let Some(live) = live_version(database, feature, environment, now) else { continue };
        let earlier = moment(live, feature_version::LIVE_FROM).map(|at| Micros(at.0 - ONE_CLICK));
        let other = earlier.and_then(|at| live_version(database, feature, environment, at));
        let other = other.filter(|other| moment(other, feature_version::LIVE_FROM) <= earlier);
        let uuid = live[feature_version::UUID].clone().unwrap();
        all.insert((feature, environment), Live { uuid, follows_another: other.is_some() });
    }
    all
}

/// The features of which nothing is told.
pub(super) fn dead_features(database: &Database) -> Vec<i64> {
    let dead = database.rows(Table::Feature).filter(|f| f[feature::DELETED_AT].is_some());
    dead.filter_map(|f| int(f, feature::ID)).collect()
}

pub(super) fn moment(record: &Record, column: usize) -> Option<Micros> {
    Micros::parse(record[column].as_deref()?)
}

fn flag_of(database: &Database, state: &Record) -> Option<(FlagValue, Visible)> {
    let id = int(state, feature_state::ID)?;
    let mut priority = None;
    let whom = if let Some(identity) = int(state, feature_state::IDENTITY_ID) {
        database.by_id(Table::Identity, identity)?;
        For::Identity(identity)
    } else if let Some(segment) = int(state, feature_state::FEATURE_SEGMENT_ID) {
        let segment = database.by_id(Table::FeatureSegment, segment)?;
        priority = int(segment, feature_segment::PRIORITY);
        For::Segment(int(segment, feature_segment::SEGMENT_ID)?)
    } else {
        For::Everybody
    };
    let value = database
        .with(Table::StateValue, state_value::FEATURE_STATE_ID, id)
        .filter(|value| value[state_value::DELETED_AT].is_none())
        .last();
    let variants = database.with(Table::MvValue, mv_value::FEATURE_STATE_ID, id).map(|variant| {
        let option = int(variant, mv_value::MULTIVARIATE_FEATURE_OPTION_ID)
            .and_then(|option| database.by_id(Table::MvOption, option));
        let percentage =
            variant[mv_value::PERCENTAGE_ALLOCATION].as_deref().and_then(|text| text.parse().ok());
        let shown = option.map_or(Json::Null, |option| typed(option, mv_option::TYPE));
        (option.and_then(|option| int(option, mv_option::ID)), shown, percentage)
    });
    let flag = FlagValue {
        feature: int(state, feature_state::FEATURE_ID)?,
        environment: int(state, feature_state::ENVIRONMENT_ID)?,
        whom,
    };
    let visible = Visible {
        enabled: state[feature_state::ENABLED].as_deref() == Some("t"),
        value: value.map_or(Json::Null, |value| typed(value, state_value::TYPE)),
        variants: variants.collect(),
        priority,
    };
    Some((flag, visible))
}

/// A value by its type: both tables have `type`, `boolean_value`, `integer_value`, `string_value` one after the other.
fn typed(record: &Record, kind: usize) -> Json {
    let text = |column: usize| record[column].as_deref();
    match text(kind) {
        Some("bool") => text(kind + 1).map_or(Json::Null, |b| Json::from(b == "t")),
        Some("int") => text(kind + 2).map_or(Json::Null, |n| Json::from(n.parse::<i64>().unwrap())),
        _ => text(kind + 3).map_or(Json::Null, Json::from),
    }
}

/// The environments below which nothing may be told.
pub(super) fn dead_environments(database: &Database) -> Vec<i64> {
    let ids = database.rows(Table::Environment).filter_map(|record| int(record, environment::ID));
    ids.filter(|id| !environment_is_alive(database, *id)).collect()
}

/// Who gets a flag event of each environment: its enabled endpoints, and its organisation's that get what Flagsmith sends
/// today (SEMANTICS.md §1).
pub(super) fn recipients(database: &Database) -> BTreeMap<i64, Vec<Recipient>> {
    let of = |table: Table, column: usize, id: i64| {
        database
            .with(table, column, id)
            .filter(|hook| hook[environment_webhook::ENABLED].as_deref() == Some("t"))
            .filter_map(move |hook| {
                let is_classic = hook[environment_webhook::URL].as_deref() == Some(CLASSIC_URL);
                let format = if is_classic { Format::Classic } else { Format::Current };
                Some(Recipient { endpoint: EndpointKey::of(table, int(hook, 0)?)?, format })
            })
    };
    let mut all = BTreeMap::new();
    for record in database.rows(Table::Environment) {
        let id = int(record, environment::ID).unwrap();
        let project = int(record, environment::PROJECT_ID).unwrap();
        let organisation = int(database.by_id(Table::Project, project).unwrap(), project::ORGANISATION_ID);
        let organisation_column = organisation_webhook::ORGANISATION_ID;
        let own = of(Table::EnvironmentWebhook, environment_webhook::ENVIRONMENT_ID, id);
        let above = of(Table::OrganisationWebhook, organisation_column, organisation.unwrap());
        all.insert(id, own.chain(above.filter(|to| to.format == Format::Current)).collect());
    }
    all
}
