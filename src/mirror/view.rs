//! What a receiver sees of a flag: the state in force in a slot, with the rows that its payload is made of.

use serde::{Deserialize, Serialize};

use crate::change::{Field, Key, Micros, Row};
use crate::schema::{
    Table, change_request, environment, environment_history, feature, feature_segment, feature_state,
    feature_version, mv_option, mv_value, organisation, project, state_value,
};

use super::{Mirror, Slot, flag_of_version};

/// A typed value (`features_featurestatevalue`, `multivariate_multivariatefeatureoption`): the column that `type` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// No row, or NULL in the column.
    Null,
    /// `type = 'int'`
    Int(i64),
    /// `type = 'bool'`
    Bool(bool),
    /// Any other `type`.
    Text(&'a str),
}

impl<'a> Value<'a> {
    fn of(row: &'a Row, kind: usize, boolean: usize, integer: usize, string: usize) -> Value<'a> {
        match row.text(kind) {
            Some("int") => row.int(integer).map_or(Value::Null, Value::Int),
            Some("bool") if !row.is_null(boolean) => Value::Bool(row.flag(boolean)),
            Some("bool") => Value::Null,
            _ => row.text(string).map_or(Value::Null, Value::Text),
        }
    }
}

/// The state in force in a slot with everything that its payload shows. The rows are shared with the mirror, so a view
/// of the state before a change stays as it was and costs little.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StateView {
    /// `features_featurestate`
    pub state: Row,
    /// `features_featurestatevalue`, if there is one.
    pub value: Option<Row>,
    /// `features_feature`
    pub feature: Row,
    /// `projects_project`
    pub project: Row,
    /// `environments_environment`
    pub environment: Row,
    /// `environments_identity`, of an identity override whose identity is known.
    pub identity: Option<Row>,
    /// `features_featuresegment`, of a segment override.
    pub feature_segment: Option<Row>,
    /// `segments_segment`, of a segment override.
    pub segment: Option<Row>,
    /// `feature_versioning_environmentfeatureversion`, of a state in a versioned environment.
    pub version: Option<Row>,
    /// `multivariate_multivariatefeaturestatevalue` with its option, in id order.
    pub variants: Vec<(Row, Option<Row>)>,
}

impl StateView {
    /// `features_featurestate.id`
    pub fn state_id(&self) -> i64 {
        self.state.int(feature_state::ID).unwrap_or(0)
    }

    /// The state's value. Where it has none of its own, that of the override (databases of 2020).
    pub fn value(&self) -> Value<'_> {
        let Some(row) = self.value.as_ref() else { return self.override_value() };
        Value::of(
            row,
            state_value::TYPE,
            state_value::BOOLEAN_VALUE,
            state_value::INTEGER_VALUE,
            state_value::STRING_VALUE,
        )
    }

    fn override_value(&self) -> Value<'_> {
        let Some(row) = &self.feature_segment else { return Value::Null };
        let Some(text) = row.text(feature_segment::VALUE) else { return Value::Null };
        match row.text(feature_segment::VALUE_TYPE) {
            Some("int") => text.parse().map_or(Value::Null, Value::Int),
            Some("bool") => Value::Bool(text.eq_ignore_ascii_case("true")),
            _ => Value::Text(text),
        }
    }

    /// The value of a variant.
    pub fn option_value(option: &Row) -> Value<'_> {
        Value::of(
            option,
            mv_option::TYPE,
            mv_option::BOOLEAN_VALUE,
            mv_option::INTEGER_VALUE,
            mv_option::STRING_VALUE,
        )
    }

    /// Whether a receiver would see the same flag: enabled, value, variants with their percentages, the override's
    /// priority. Not the metadata of feature, segment, environment or project (SEMANTICS.md §5).
    pub fn looks_like(&self, other: &StateView) -> bool {
        let priority = |view: &StateView| {
            view.feature_segment.as_ref().and_then(|row| row.int(feature_segment::PRIORITY))
        };
        self.state.flag(feature_state::ENABLED) == other.state.flag(feature_state::ENABLED)
            && self.value() == other.value()
            && priority(self) == priority(other)
            && self.variants.len() == other.variants.len()
            && self.variants.iter().zip(&other.variants).all(|(a, b)| same_variant(a, b))
    }

    /// Whether the feature's own metadata (name, description, initial value, type, default) is the same.
    pub fn same_feature_metadata(&self, other: &StateView) -> bool {
        [feature::NAME, feature::DESCRIPTION, feature::INITIAL_VALUE, feature::DEFAULT_ENABLED, feature::TYPE]
            .into_iter()
            .all(|column| self.feature.get(column) == other.feature.get(column))
    }
}

fn same_variant(a: &(Row, Option<Row>), b: &(Row, Option<Row>)) -> bool {
    // The same text, or the same number in another text: NaN, which the column can hold, equals nothing as a number.
    let text = |row: &Row| row.text(mv_value::PERCENTAGE_ALLOCATION).map(str::to_owned);
    let number = |row: &Row| text(row).and_then(|t| t.parse::<f64>().ok());
    (text(&a.0) == text(&b.0) || number(&a.0) == number(&b.0))
        && a.0.int(mv_value::MULTIVARIATE_FEATURE_OPTION_ID)
            == b.0.int(mv_value::MULTIVARIATE_FEATURE_OPTION_ID)
        && a.1.as_ref().map(StateView::option_value) == b.1.as_ref().map(StateView::option_value)
}

impl Mirror {
    /// Whether an environment, its project and its organisation are all there and not soft-deleted.
    pub fn environment_is_alive(&self, environment: i64) -> bool {
        let Some(row) = self.row_by_id(Table::Environment, environment) else { return false };
        let Some(project_row) = self.project_of(row) else { return false };
        let organisation_is_alive = project_row
            .int(project::ORGANISATION_ID)
            .and_then(|id| self.row_by_id(Table::Organisation, id))
            .is_none_or(|row| row.is_null(organisation::DELETED_AT));
        row.is_null(environment::DELETED_AT)
            && project_row.is_null(project::DELETED_AT)
            && organisation_is_alive
    }

    /// Whether an environment is still being filled by a clone.
    pub fn environment_is_being_created(&self, environment: i64) -> bool {
        self.row_by_id(Table::Environment, environment).is_some_and(|row| row.flag(environment::IS_CREATING))
    }

    /// The project of an environment.
    pub fn project_of(&self, environment_row: &Row) -> Option<&Row> {
        self.row_by_id(Table::Project, environment_row.int(environment::PROJECT_ID)?)
    }

    /// The state in force in `slot` at `at`, with all that its payload shows; `None` where there is none, or where its
    /// feature, environment or project is gone.
    pub fn in_force(&self, slot: &Slot, at: Micros) -> Option<StateView> {
        if !self.environment_is_alive(slot.environment) {
            return None;
        }
        let feature = self.row_by_id(Table::Feature, slot.feature)?;
        if !feature.is_null(feature::DELETED_AT) {
            return None;
        }
        let environment = self.row_by_id(Table::Environment, slot.environment)?;
        let live = self.live_version(slot.feature, slot.environment, at);
        let live = live.and_then(|row| row.text(feature_version::UUID));
        let state = self
            .slots
            .states(slot)
            .filter_map(|id| self.row_by_id(Table::FeatureState, id))
            .filter(|state| self.is_in_force(state, slot, live, at))
            .max_by_key(|state| precedence(state))?;
        self.view(state, feature, environment)
    }

    fn view(&self, state: &Row, feature: &Row, environment: &Row) -> Option<StateView> {
        let id = state.int(feature_state::ID)?;
        let identity = match state.int(feature_state::IDENTITY_ID) {
            Some(identity) => Some(self.row_by_id(Table::Identity, identity)?.clone()),
            None => None,
        };
        let feature_segment = match state.int(feature_state::FEATURE_SEGMENT_ID) {
            Some(override_id) => Some(self.row_by_id(Table::FeatureSegment, override_id)?.clone()),
            None => None,
        };
        let segment = feature_segment
            .as_ref()
            .and_then(|row| self.row_by_id(Table::Segment, row.int(feature_segment::SEGMENT_ID)?).cloned());
        let value = self.values.get(id).next_back().and_then(|v| self.row_by_id(Table::StateValue, v));
        let variants = self
            .variants
            .get(id)
            .filter_map(|variant| self.row_by_id(Table::MvValue, variant))
            .map(|variant| {
                let option = variant
                    .int(mv_value::MULTIVARIATE_FEATURE_OPTION_ID)
                    .and_then(|option| self.row_by_id(Table::MvOption, option));
                (variant.clone(), option.cloned())
            })
            .collect();
        Some(StateView {
            state: state.clone(),
            value: value.cloned(),
            feature: feature.clone(),
            project: self.project_of(environment)?.clone(),
            environment: environment.clone(),
            identity,
            feature_segment,
            segment,
            version: self.version_of(state).cloned(),
            variants,
        })
    }

    fn version_of(&self, state: &Row) -> Option<&Row> {
        let uuid = state.text(feature_state::ENVIRONMENT_FEATURE_VERSION_ID)?;
        self.row(Table::FeatureVersion, &Key::Text(uuid.into()))
    }

    /// A state that names a version is in force while that version is live. One that names none follows the rules of v1; in a
    /// versioned environment that is true of identity overrides, which are outside versions, and of everything as long as no
    /// live version has states (while versioning is being turned on or off, in many transactions).
    fn is_in_force(&self, state: &Row, slot: &Slot, live: Option<&str>, at: Micros) -> bool {
        if let Some(own) = state.text(feature_state::ENVIRONMENT_FEATURE_VERSION_ID) {
            return live == Some(own);
        }
        let is_versioned = self
            .row_by_id(Table::Environment, slot.environment)
            .is_some_and(|row| row.flag(environment::USE_V2_FEATURE_VERSIONING));
        let is_superseded = is_versioned
            && state.is_null(feature_state::IDENTITY_ID)
            && live.is_some_and(|live| self.has_states(slot, live));
        !is_superseded && self.state_goes_live(state).is_some_and(|live_from| live_from <= at)
    }

    /// Whether a version has states. Most have one for everybody; one that was made of a scheduled override has only that.
    fn has_states(&self, slot: &Slot, version: &str) -> bool {
        self.slots_of(slot.feature, Some(slot.environment))
            // They come last, a great many, and are outside versions.
            .take_while(|slot| !matches!(slot.target, super::Target::Identity(_)))
            .flat_map(|slot| self.slots.states(&slot))
            .filter_map(|id| self.row_by_id(Table::FeatureState, id))
            .any(|state| state.text(feature_state::ENVIRONMENT_FEATURE_VERSION_ID) == Some(version))
    }

    /// From when on a state outside versions is in force; `None` for a draft. A state that no change request schedules is in
    /// force at once: its `live_from` is the application's clock, which may be ahead of the database's.
    pub fn state_goes_live(&self, state: &Row) -> Option<Micros> {
        const AT_ONCE: Micros = Micros(i64::MIN);
        if !self.capabilities.state_versions {
            return Some(AT_ONCE);
        }
        if state.is_null(feature_state::VERSION) {
            return None;
        }
        let Some(request) = state.int(feature_state::CHANGE_REQUEST_ID) else { return Some(AT_ONCE) };
        let live_from = time(state, feature_state::LIVE_FROM)?;
        let Some(request) = self.row_by_id(Table::ChangeRequest, request) else { return Some(live_from) };
        let committed = time(request, change_request::COMMITTED_AT)?;
        if time(request, change_request::DELETED_AT).is_some_and(|deleted| deleted < live_from) {
            return None;
        }
        Some(if live_from <= committed { AT_ONCE } else { live_from })
    }

    /// From when on a version is live; `None` for a draft, or when it is deleted.
    pub fn version_goes_live(version: &Row) -> Option<Micros> {
        let published = time(version, feature_version::PUBLISHED_AT)?;
        let live_from = time(version, feature_version::LIVE_FROM)?;
        let is_there = version.is_null(feature_version::DELETED_AT);
        // Published at once: both times are the application's clock, which may be ahead of the database's.
        is_there.then_some(if live_from <= published { Micros(i64::MIN) } else { live_from })
    }

    /// The version of a feature that is live in an environment at `at`.
    pub fn live_version(&self, feature: i64, environment: i64, at: Micros) -> Option<&Row> {
        self.versions
            .get(&(feature, environment))?
            .iter()
            .filter_map(|uuid| self.row(Table::FeatureVersion, &Key::Text(uuid.clone())))
            .filter(|row| Self::version_goes_live(row).is_some_and(|live_from| live_from <= at))
            .max_by_key(|row| (time(row, feature_version::LIVE_FROM), row.text(feature_version::UUID)))
    }

    /// The states of a version with all that a payload shows, in id order.
    pub fn states_of_version(&self, version: &Row) -> Vec<StateView> {
        let (feature, environment) = flag_of_version(version);
        let uuid = version.text(feature_version::UUID);
        let (Some(feature_row), Some(environment_row)) =
            (self.row_by_id(Table::Feature, feature), self.row_by_id(Table::Environment, environment))
        else {
            return Vec::new();
        };
        let mut states: Vec<StateView> = self
            .slots_of(feature, Some(environment))
            .flat_map(|slot| self.slots.states(&slot))
            .filter_map(|id| self.row_by_id(Table::FeatureState, id))
            .filter(|state| state.text(feature_state::ENVIRONMENT_FEATURE_VERSION_ID) == uuid)
            .filter_map(|state| self.view(state, feature_row, environment_row))
            .collect();
        states.sort_by_key(StateView::state_id);
        states
    }

    /// The versions of a feature in an environment that were live before the one that is live at `at`, and that no clock will
    /// make live again.
    pub fn superseded_versions(&self, feature: i64, environment: i64, at: Micros) -> Vec<Row> {
        let Some(live) = self.live_version(feature, environment, at) else { return Vec::new() };
        let since = time(live, feature_version::LIVE_FROM);
        self.versions
            .get(&(feature, environment))
            .into_iter()
            .flatten()
            .filter_map(|uuid| self.row(Table::FeatureVersion, &Key::Text(uuid.clone())))
            .filter(|row| {
                !row.is_null(feature_version::PUBLISHED_AT)
                    && row.text(feature_version::UUID) != live.text(feature_version::UUID)
                    && time(row, feature_version::LIVE_FROM) <= since
            })
            .cloned()
            .collect()
    }

    /// An environment as one of its history records has it; columns that the history lacks come from the environment.
    pub fn environment_in_history(&self, history_id: i64) -> Option<Row> {
        let record = self.row_by_id(Table::EnvironmentHistory, history_id)?;
        let now = self.row_by_id(Table::Environment, record.int(environment_history::ID)?)?;
        let history_columns = Table::EnvironmentHistory.columns();
        let fields: Vec<Field<'_>> = Table::Environment
            .columns()
            .iter()
            .enumerate()
            .map(|(i, column)| {
                let in_history = history_columns.iter().position(|c| c.name == column.name);
                in_history.map_or(now.get(i), |at| record.get(at))
            })
            .collect();
        Some(Row::pack(&fields))
    }

    /// The slots that a version of a feature may change.
    pub fn slots_of_version(&self, version: &Row) -> impl Iterator<Item = Slot> + '_ {
        let (feature, environment) = flag_of_version(version);
        self.slots_of(feature, Some(environment))
    }
}

fn time(row: &Row, column: usize) -> Option<Micros> {
    row.text(column).and_then(Micros::parse)
}

/// Of several states in a slot the one that went live last is in force; of those the highest version.
fn precedence(state: &Row) -> (Option<Micros>, Option<i64>, Option<i64>) {
    (time(state, feature_state::LIVE_FROM), state.int(feature_state::VERSION), state.int(feature_state::ID))
}
