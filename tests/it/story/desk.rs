//! The desk of Flagsmith where a click becomes statements: rows with their history, in one transaction after the other.

use flagpost::change::Key;
use flagpost::schema::{Table, feature_segment, feature_state, mv_option, mv_value, state_value};

use super::database::{Database, Record, Write, int, record};

/// What a flag value is set to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content {
    Int(i8),
    Bool(bool),
    Text(u8),
    /// So long that PostgreSQL stores it out of line.
    Long(u8),
    Null,
}

impl Content {
    /// `type`, `boolean_value`, `integer_value`, `string_value`
    pub(super) fn columns(self) -> [Option<String>; 4] {
        let some = |text: &str| Some(text.to_owned());
        match self {
            Content::Int(n) => [some("int"), None, Some(n.to_string()), None],
            Content::Bool(b) => [some("bool"), some(if b { "t" } else { "f" }), None, None],
            Content::Text(n) => [some("unicode"), None, None, Some(format!("\"v\" {n}"))],
            Content::Long(n) => {
                [some("unicode"), None, None, Some(format!("{n} is a väry long text 🚩 {n}"))]
            }
            Content::Null => [some("unicode"), None, None, None],
        }
    }
}

/// For whom a state is: the identity or the override that it names.
#[derive(Debug, Clone, Copy)]
pub(super) enum Holder {
    Everybody,
    Override(i64),
    Identity(i64),
}

pub(super) struct Desk<'a> {
    pub(super) database: &'a mut Database,
    pub(super) user: i64,
    /// The commit time of the click's first transaction.
    pub(super) now: i64,
    /// How far the application's clock is ahead of the database's, in microseconds.
    pub(super) clock: i16,
    /// The whole click in one transaction.
    pub(super) at_once: bool,
    pub(super) steps: Vec<Vec<Write>>,
}

fn flag(is_set: bool) -> String {
    if is_set { "t" } else { "f" }.to_owned()
}

/// The date that Flagsmith writes into `live_from` of ordinary states.
const LIVE_SINCE: &str = "2026-01-01 00:00:00+00";

impl Desk<'_> {
    /// The application's clock at the commit of a statement.
    pub(super) fn stamp(&self) -> String {
        format!("@{}", self.clock)
    }

    /// The next transaction of the click.
    pub(super) fn then(&mut self, writes: Vec<Write>) {
        match self.steps.last_mut() {
            Some(last) if self.at_once => last.extend(writes),
            _ => self.steps.push(writes),
        }
    }

    pub(super) fn state_history(&self, state: i64, sign: &'static str) -> Write {
        Write::History { table: Table::StateHistory, state, sign, user: self.user }
    }

    pub(super) fn value_history(&self, state: i64, sign: &'static str) -> Write {
        Write::History { table: Table::ValueHistory, state, sign, user: self.user }
    }

    pub(super) fn variant_history(&self, state: i64, sign: &'static str) -> Write {
        Write::History { table: Table::MvHistory, state, sign, user: self.user }
    }

    /// A new state with its history; its value follows.
    pub(super) fn state(
        &mut self,
        feature: i64,
        environment: i64,
        holder: Holder,
        enabled: bool,
    ) -> (i64, Vec<Write>) {
        let id = self.database.next_id(Table::FeatureState);
        let mut new = record(
            Table::FeatureState,
            &[
                (feature_state::ID, id.to_string()),
                (feature_state::ENABLED, flag(enabled)),
                (feature_state::ENVIRONMENT_ID, environment.to_string()),
                (feature_state::FEATURE_ID, feature.to_string()),
                (feature_state::LIVE_FROM, LIVE_SINCE.to_owned()),
                (feature_state::VERSION, "1".to_owned()),
            ],
        );
        match holder {
            Holder::Everybody => {}
            Holder::Override(id) => new[feature_state::FEATURE_SEGMENT_ID] = Some(id.to_string()),
            Holder::Identity(id) => new[feature_state::IDENTITY_ID] = Some(id.to_string()),
        }
        (id, vec![Write::Insert(Table::FeatureState, new), self.state_history(id, "+")])
    }

    /// A new value of a state, with its history.
    pub(super) fn value(&mut self, state: i64, content: Content) -> Vec<Write> {
        let id = self.database.next_id(Table::StateValue);
        let mut new = record(
            Table::StateValue,
            &[(state_value::ID, id.to_string()), (state_value::FEATURE_STATE_ID, state.to_string())],
        );
        new[state_value::TYPE..=state_value::STRING_VALUE].clone_from_slice(&content.columns());
        vec![Write::Insert(Table::StateValue, new), self.value_history(state, "+")]
    }

    /// The percentages of a feature's options in a new state.
    pub(super) fn variants(&mut self, state: i64, options: &[(i64, u8)]) -> Vec<Write> {
        let mut writes = Vec::new();
        for (option, percentage) in options {
            writes.push(self.variant(state, *option, *percentage));
            writes.push(self.variant_history(state, "+"));
        }
        writes
    }

    fn variant(&mut self, state: i64, option: i64, percentage: u8) -> Write {
        let new = [
            (mv_value::ID, self.database.next_id(Table::MvValue).to_string()),
            (mv_value::PERCENTAGE_ALLOCATION, percentage.to_string()),
            (mv_value::FEATURE_STATE_ID, state.to_string()),
            (mv_value::MULTIVARIATE_FEATURE_OPTION_ID, option.to_string()),
        ];
        Write::Insert(Table::MvValue, record(Table::MvValue, &new))
    }

    pub(super) fn option(&mut self, feature: i64, content: Content) -> (i64, Write) {
        let id = self.database.next_id(Table::MvOption);
        let mut new = record(
            Table::MvOption,
            &[(mv_option::ID, id.to_string()), (mv_option::FEATURE_ID, feature.to_string())],
        );
        new[mv_option::TYPE..=mv_option::STRING_VALUE].clone_from_slice(&content.columns());
        (id, Write::Insert(Table::MvOption, new))
    }

    pub(super) fn feature_segment(
        &mut self,
        feature: i64,
        environment: i64,
        segment: i64,
        priority: i64,
    ) -> (i64, Write) {
        let id = self.database.next_id(Table::FeatureSegment);
        let new = [
            (feature_segment::ID, id.to_string()),
            (feature_segment::PRIORITY, priority.to_string()),
            (feature_segment::FEATURE_ID, feature.to_string()),
            (feature_segment::SEGMENT_ID, segment.to_string()),
            (feature_segment::ENVIRONMENT_ID, environment.to_string()),
        ];
        (id, Write::Insert(Table::FeatureSegment, record(Table::FeatureSegment, &new)))
    }

    /// Sets the value of a state that has one.
    pub(super) fn set_value(&self, state: i64, content: Content) -> Vec<Write> {
        let ids = self.ids_with(Table::StateValue, state_value::FEATURE_STATE_ID, state);
        ids.into_iter().map(|id| Desk::new_content(id, content)).collect()
    }

    /// Sets the value with this id.
    pub(super) fn new_content(value: i64, content: Content) -> Write {
        let columns = content.columns().into_iter().enumerate();
        let set = columns.map(|(i, text)| (state_value::TYPE + i, text)).collect();
        Write::Update(Table::StateValue, Key::Int(value), set)
    }

    /// The value of a state as it is: what undoes a change of it.
    pub(super) fn value_as_it_is(&self, state: i64) -> Vec<Write> {
        self.database
            .with(Table::StateValue, state_value::FEATURE_STATE_ID, state)
            .map(|value| {
                let set = (state_value::TYPE..=state_value::STRING_VALUE).map(|c| (c, value[c].clone()));
                let id = Key::parse(value[0].as_deref().unwrap());
                Write::Update(Table::StateValue, id, set.collect())
            })
            .collect()
    }

    /// A save that writes nothing but the type that the value has: a long text is left out of the stream then.
    pub(super) fn value_left_out(&self, state: i64) -> Vec<Write> {
        let mut writes = self.value_as_it_is(state);
        for write in &mut writes {
            if let Write::Update(_, _, set) = write {
                set.truncate(1);
            }
        }
        writes
    }

    pub(super) fn set_enabled(&self, state: i64, enabled: bool) -> Write {
        let set = vec![(feature_state::ENABLED, Some(flag(enabled)))];
        Write::Update(Table::FeatureState, Key::Int(state), set)
    }

    /// A soft deletion: `deleted_at` is set.
    pub(super) fn mark(table: Table, id: i64, deleted_at: usize) -> Write {
        let set = vec![(deleted_at, Some("2026-11-24 02:00:00+00".to_owned()))];
        Write::Update(table, Key::Int(id), set)
    }

    pub(super) fn ids_with(&self, table: Table, column: usize, id: i64) -> Vec<i64> {
        self.database.with(table, column, id).filter_map(|record| int(record, 0)).collect()
    }

    /// The options of a feature, and the percentage that each gets.
    pub(super) fn options_of(&self, feature: i64, percentage: u8) -> Vec<(i64, u8)> {
        let ids = self.ids_with(Table::MvOption, mv_option::FEATURE_ID, feature);
        ids.into_iter().map(|id| (id, percentage)).collect()
    }

    /// The states of a feature that are there.
    pub(super) fn states_of(&self, feature: i64) -> Vec<Record> {
        let states = self.database.with(Table::FeatureState, feature_state::FEATURE_ID, feature);
        states.filter(|state| state[feature_state::DELETED_AT].is_none()).cloned().collect()
    }
}
