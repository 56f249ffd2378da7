//! A Flagsmith database in memory: tables, foreign keys, unique constraints, transactions that roll back.
//!
//! Every table counts its ids from 1, so that whoever takes the id of one table for that of another is found out.

use std::collections::{BTreeMap, BTreeSet};

use flagpost::change::{Field, Key, Micros, Op, Row, RowChange};
use flagpost::schema::{
    Table, change_request, environment, environment_webhook, feature, feature_segment, feature_state,
    feature_version, identity, mv_history, mv_option, mv_value, organisation_webhook, project, segment,
    state_history, state_value, value_history,
};

/// A row: a text or NULL per column. In a statement the text `@N` stands for the moment of its commit and N microseconds.
pub(super) type Record = Vec<Option<String>>;

/// One statement.
#[derive(Debug, Clone)]
pub(super) enum Write {
    Insert(Table, Record),
    /// Sets these columns of one row; no row, no change.
    Update(Table, Key, Vec<(usize, Option<String>)>),
    Delete(Table, Key),
    /// Deletes a row and all that refers to it, as Django does: rows by rows, the row itself first or last.
    Cascade {
        table: Table,
        key: Key,
        user: i64,
        parent_first: bool,
    },
    /// A history row of a state, its value or its variants.
    History {
        table: Table,
        state: i64,
        sign: &'static str,
        user: i64,
    },
    /// `UPDATE features_featurestate SET enabled = NOT enabled WHERE environment_id = …`
    ToggleAll {
        environment: i64,
    },
    /// A version is published, unless it is live already.
    Publish {
        version: Key,
        set: Vec<(usize, Option<String>)>,
    },
    /// The states of a change request get the next version of their flag, and `live_from` where they have none that is to come.
    CommitStates {
        request: i64,
        now: String,
    },
}

/// Columns that refer to other tables.
const FOREIGN_KEYS: &[(Table, usize, Table)] = &[
    (Table::Project, project::ORGANISATION_ID, Table::Organisation),
    (Table::Environment, environment::PROJECT_ID, Table::Project),
    (Table::EnvironmentWebhook, environment_webhook::ENVIRONMENT_ID, Table::Environment),
    (Table::OrganisationWebhook, organisation_webhook::ORGANISATION_ID, Table::Organisation),
    (Table::Segment, segment::PROJECT_ID, Table::Project),
    (Table::Feature, feature::PROJECT_ID, Table::Project),
    (Table::Identity, identity::ENVIRONMENT_ID, Table::Environment),
    (Table::MvOption, mv_option::FEATURE_ID, Table::Feature),
    (Table::ChangeRequest, change_request::ENVIRONMENT_ID, Table::Environment),
    (Table::FeatureVersion, feature_version::CHANGE_REQUEST_ID, Table::ChangeRequest),
    (Table::FeatureVersion, feature_version::FEATURE_ID, Table::Feature),
    (Table::FeatureVersion, feature_version::ENVIRONMENT_ID, Table::Environment),
    (Table::FeatureSegment, feature_segment::FEATURE_ID, Table::Feature),
    (Table::FeatureSegment, feature_segment::SEGMENT_ID, Table::Segment),
    (Table::FeatureSegment, feature_segment::ENVIRONMENT_ID, Table::Environment),
    (Table::FeatureSegment, feature_segment::ENVIRONMENT_FEATURE_VERSION_ID, Table::FeatureVersion),
    (Table::FeatureState, feature_state::FEATURE_ID, Table::Feature),
    (Table::FeatureState, feature_state::ENVIRONMENT_ID, Table::Environment),
    (Table::FeatureState, feature_state::IDENTITY_ID, Table::Identity),
    (Table::FeatureState, feature_state::FEATURE_SEGMENT_ID, Table::FeatureSegment),
    (Table::FeatureState, feature_state::CHANGE_REQUEST_ID, Table::ChangeRequest),
    (Table::FeatureState, feature_state::ENVIRONMENT_FEATURE_VERSION_ID, Table::FeatureVersion),
    (Table::StateValue, state_value::FEATURE_STATE_ID, Table::FeatureState),
    (Table::MvValue, mv_value::FEATURE_STATE_ID, Table::FeatureState),
    (Table::MvValue, mv_value::MULTIVARIATE_FEATURE_OPTION_ID, Table::MvOption),
];

/// What must differ between two rows that are there (not soft-deleted).
const UNIQUE: &[(Table, &[usize], Option<usize>)] = &[
    (
        Table::FeatureSegment,
        &[
            feature_segment::FEATURE_ID,
            feature_segment::SEGMENT_ID,
            feature_segment::ENVIRONMENT_ID,
            feature_segment::ENVIRONMENT_FEATURE_VERSION_ID,
        ],
        None,
    ),
    (
        Table::FeatureState,
        &[
            feature_state::FEATURE_ID,
            feature_state::ENVIRONMENT_ID,
            feature_state::IDENTITY_ID,
            feature_state::FEATURE_SEGMENT_ID,
            feature_state::CHANGE_REQUEST_ID,
            feature_state::ENVIRONMENT_FEATURE_VERSION_ID,
            feature_state::VERSION,
        ],
        Some(feature_state::DELETED_AT),
    ),
    (Table::StateValue, &[state_value::FEATURE_STATE_ID], Some(state_value::DELETED_AT)),
    (Table::MvValue, &[mv_value::FEATURE_STATE_ID, mv_value::MULTIVARIATE_FEATURE_OPTION_ID], None),
];

/// A text of this length is stored out of line: the stream leaves it out where it did not change.
const TOASTED: usize = 24;

/// Whether a column is of a type that can be stored out of line; moments and uuids are not.
fn is_text(column: &str) -> bool {
    matches!(
        column,
        "name"
            | "description"
            | "initial_value"
            | "string_value"
            | "url"
            | "secret"
            | "identifier"
            | "title"
            | "log"
    )
}

/// What goes live sooner than this, in microseconds, is not published anew: it could be live before that is committed.
pub(super) const SOON: i64 = 50_000;

#[derive(Debug, Clone, Default)]
pub(super) struct Database {
    tables: BTreeMap<Table, BTreeMap<Key, Record>>,
    last_id: BTreeMap<Table, i64>,
}

/// What a transaction has done so far.
struct Session {
    now: Micros,
    changes: Vec<RowChange>,
    undo: Vec<(Table, Key, Option<Record>)>,
}

/// A row with these columns, all others NULL.
pub(super) fn record(table: Table, fields: &[(usize, String)]) -> Record {
    let mut record = vec![None; table.columns().len()];
    for (column, text) in fields {
        record[*column] = Some(text.clone());
    }
    record
}

/// A moment as PostgreSQL writes it.
pub(super) fn time(at: Micros) -> String {
    jiff::Timestamp::from_microsecond(at.0).unwrap().strftime("%F %T%.6f+00").to_string()
}

/// What a text of a statement stands for.
fn at(text: &str, now: Micros) -> String {
    match text.strip_prefix('@').map(str::parse::<i64>) {
        Some(Ok(offset)) => time(Micros(now.0 + offset)),
        _ => text.to_owned(),
    }
}

pub(super) fn int(record: &Record, column: usize) -> Option<i64> {
    record[column].as_ref()?.parse().ok()
}

pub(super) fn row(record: &Record) -> Row {
    let fields: Vec<Field<'_>> =
        record.iter().map(|text| text.as_deref().map_or(Field::Null, Field::Text)).collect();
    Row::pack(&fields)
}

fn key(record: &Record) -> Key {
    Key::parse(record[0].as_deref().unwrap())
}

impl Database {
    /// The next id of a table's sequence.
    pub(super) fn next_id(&mut self, table: Table) -> i64 {
        let last = self.last_id.entry(table).or_default();
        *last += 1;
        *last
    }

    pub(super) fn get(&self, table: Table, key: &Key) -> Option<&Record> {
        self.tables.get(&table)?.get(key)
    }

    pub(super) fn by_id(&self, table: Table, id: i64) -> Option<&Record> {
        self.get(table, &Key::Int(id))
    }

    pub(super) fn rows(&self, table: Table) -> impl Iterator<Item = &Record> + '_ {
        self.tables.get(&table).into_iter().flat_map(BTreeMap::values)
    }

    /// The rows that have this number in a column.
    pub(super) fn with(&self, table: Table, column: usize, id: i64) -> impl Iterator<Item = &Record> + '_ {
        self.rows(table).filter(move |record| int(record, column) == Some(id))
    }

    /// One transaction; `None` when a constraint stopped it: then nothing has happened.
    pub(super) fn commit(&mut self, writes: &[Write], now: Micros) -> Option<Vec<RowChange>> {
        let mut session = Session { now, changes: Vec::new(), undo: Vec::new() };
        let is_done = writes.iter().all(|write| self.write(write, &mut session)) && self.is_whole(&session);
        if is_done {
            return Some(session.changes);
        }
        for (table, key, before) in session.undo.into_iter().rev() {
            self.put(table, key, before);
        }
        None
    }

    fn write(&mut self, write: &Write, session: &mut Session) -> bool {
        match write {
            Write::Insert(table, record) => self.insert(*table, record.clone(), session),
            Write::Update(table, key, columns) => {
                self.update(*table, key, columns, session);
                true
            }
            Write::Delete(table, key) => {
                self.delete(*table, key, session);
                true
            }
            Write::Cascade { table, key, user, parent_first } => {
                self.cascade(*table, key, *user, *parent_first, session);
                true
            }
            Write::History { table, state, sign, user } => self.history(*table, *state, sign, *user, session),
            Write::ToggleAll { environment } => {
                let states: Vec<(Key, bool)> = self
                    .with(Table::FeatureState, feature_state::ENVIRONMENT_ID, *environment)
                    .filter(|state| state[feature_state::DELETED_AT].is_none())
                    .map(|state| (key(state), state[feature_state::ENABLED].as_deref() == Some("t")))
                    .collect();
                for (key, is_enabled) in states {
                    let enabled = if is_enabled { "f" } else { "t" };
                    let set = [(feature_state::ENABLED, Some(enabled.to_owned()))];
                    self.update(Table::FeatureState, &key, &set, session);
                }
                true
            }
            Write::Publish { version, set } => {
                let row = self.get(Table::FeatureVersion, version);
                let live_from =
                    row.and_then(|row| Micros::parse(row[feature_version::LIVE_FROM].as_deref()?));
                if live_from.is_none_or(|live_from| live_from.0 > session.now.0 + SOON) {
                    self.update(Table::FeatureVersion, version, set, session);
                }
                true
            }
            Write::CommitStates { request, now } => {
                self.commit_states(*request, &at(now, session.now), session);
                true
            }
        }
    }

    fn put(&mut self, table: Table, key: Key, record: Option<Record>) {
        let rows = self.tables.entry(table).or_default();
        match record {
            Some(record) => rows.insert(key, record),
            None => rows.remove(&key),
        };
    }

    fn set(&mut self, table: Table, key: &Key, record: Option<Record>, session: &mut Session) {
        let before = self.get(table, key).cloned();
        session.undo.push((table, key.clone(), before));
        self.put(table, key.clone(), record);
    }

    fn commit_states(&mut self, request: i64, now: &str, session: &mut Session) {
        let states = self.with(Table::FeatureState, feature_state::CHANGE_REQUEST_ID, request);
        for state in states.cloned().collect::<Vec<_>>() {
            let of_flag = |other: &&Record| {
                [feature_state::ENVIRONMENT_ID, feature_state::IDENTITY_ID, feature_state::FEATURE_SEGMENT_ID]
                    .into_iter()
                    .all(|column| other[column] == state[column])
            };
            let feature = int(&state, feature_state::FEATURE_ID).unwrap();
            let all = self.with(Table::FeatureState, feature_state::FEATURE_ID, feature).filter(of_flag);
            let last = all.filter_map(|other| int(other, feature_state::VERSION)).max().unwrap_or(0);
            let moment = |text: &str| Micros::parse(text).unwrap();
            let live_from = state[feature_state::LIVE_FROM].as_deref().filter(|at| moment(at) > moment(now));
            let set = [
                (feature_state::VERSION, Some((last + 1).to_string())),
                (feature_state::LIVE_FROM, Some(live_from.unwrap_or(now).to_owned())),
            ];
            self.update(Table::FeatureState, &key(&state), &set, session);
        }
    }

    fn insert(&mut self, table: Table, record: Record, session: &mut Session) -> bool {
        let record: Record = record.into_iter().map(|text| Some(at(&text?, session.now))).collect();
        let key = key(&record);
        if self.get(table, &key).is_some() || self.conflicts(table, &record) {
            return false;
        }
        session.changes.push(RowChange { table, op: Op::Insert { new: row(&record) } });
        self.set(table, &key, Some(record), session);
        true
    }

    fn conflicts(&self, table: Table, record: &Record) -> bool {
        UNIQUE.iter().filter(|(of, ..)| *of == table).any(|(_, columns, deleted_at)| {
            self.rows(table).any(|other| {
                deleted_at.is_none_or(|column| other[column].is_none())
                    && columns.iter().all(|column| other[*column] == record[*column])
            })
        })
    }

    fn update(&mut self, table: Table, key: &Key, set: &[(usize, Option<String>)], session: &mut Session) {
        let Some(old) = self.get(table, key) else { return };
        let mut new = old.clone();
        for (column, text) in set {
            new[*column] = text.as_deref().map(|text| at(text, session.now));
        }
        let fields: Vec<Field<'_>> = new
            .iter()
            .enumerate()
            .map(|(column, text)| match text.as_deref() {
                None => Field::Null,
                Some(text)
                    if text.len() >= TOASTED
                        && is_text(table.columns()[column].name)
                        && set.iter().all(|(c, _)| *c != column) =>
                {
                    Field::Unchanged
                }
                Some(text) => Field::Text(text),
            })
            .collect();
        let op = Op::Update { old_key: None, new: Row::pack(&fields) };
        session.changes.push(RowChange { table, op });
        self.set(table, key, Some(new), session);
    }

    fn delete(&mut self, table: Table, key: &Key, session: &mut Session) {
        if self.get(table, key).is_some() {
            session.changes.push(RowChange { table, op: Op::Delete { key: key.clone() } });
            self.set(table, key, None, session);
        }
    }

    fn cascade(&mut self, table: Table, key: &Key, user: i64, parent_first: bool, session: &mut Session) {
        if self.get(table, key).is_none() {
            return;
        }
        let state = if let (Table::FeatureState, Key::Int(id)) = (table, key) { Some(*id) } else { None };
        if parent_first {
            self.delete(table, key, session);
        }
        for (child, child_key) in self.children(table, key) {
            self.cascade(child, &child_key, user, parent_first, session);
        }
        self.delete(table, key, session);
        if let Some(state) = state {
            self.history(Table::ValueHistory, state, "-", user, session);
            self.history(Table::StateHistory, state, "-", user, session);
        }
    }

    fn children(&self, table: Table, parent: &Key) -> Vec<(Table, Key)> {
        let text = parent.to_string();
        FOREIGN_KEYS
            .iter()
            .filter(|(_, _, of)| *of == table)
            .flat_map(|(child, column, _)| {
                let text = text.clone();
                let refers = move |record: &&Record| record[*column].as_deref() == Some(text.as_str());
                self.rows(*child).filter(refers).map(|record| (*child, key(record)))
            })
            .collect()
    }

    fn history(
        &mut self,
        table: Table,
        state: i64,
        sign: &'static str,
        user: i64,
        session: &mut Session,
    ) -> bool {
        // The same columns in all three tables, but for the state's.
        let (id, subject, date, kind, author) = match table {
            Table::StateHistory => (
                state_history::HISTORY_ID,
                state_history::ID,
                state_history::HISTORY_DATE,
                state_history::HISTORY_TYPE,
                state_history::HISTORY_USER_ID,
            ),
            Table::ValueHistory => (
                value_history::HISTORY_ID,
                value_history::FEATURE_STATE_ID,
                value_history::HISTORY_DATE,
                value_history::HISTORY_TYPE,
                value_history::HISTORY_USER_ID,
            ),
            _ => (
                mv_history::HISTORY_ID,
                mv_history::FEATURE_STATE_ID,
                mv_history::HISTORY_DATE,
                mv_history::HISTORY_TYPE,
                mv_history::HISTORY_USER_ID,
            ),
        };
        let new = [
            (id, self.next_id(table).to_string()),
            (subject, state.to_string()),
            (date, time(Micros(session.now.0 - 500))),
            (kind, sign.to_owned()),
            (author, user.to_string()),
        ];
        let new = row(&record(table, &new));
        session.changes.push(RowChange { table, op: Op::Insert { new } });
        true
    }

    /// Whether every row that the transaction wrote has what it refers to, and nothing refers to what it deleted.
    fn is_whole(&self, session: &Session) -> bool {
        let touched: BTreeSet<(Table, &Key)> = session.undo.iter().map(|(t, k, _)| (*t, k)).collect();
        touched.into_iter().all(|(table, key)| match self.get(table, key) {
            None => self.children(table, key).is_empty(),
            Some(record) => FOREIGN_KEYS
                .iter()
                .filter(|(of, ..)| *of == table)
                .filter_map(|(_, column, parent)| Some((parent, record[*column].as_deref()?)))
                .all(|(parent, text)| self.get(*parent, &Key::parse(text)).is_some()),
        })
    }
}
