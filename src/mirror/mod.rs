//! The mirror: a copy of the few Flagsmith tables that webhooks are made of, consistent at one LSN.
//!
//! It is filled from an exported snapshot and moved forward by the stream, so the state before and after a commit is
//! known without asking the database and without `REPLICA IDENTITY FULL`; a TOASTed value that a change left out is
//! taken from the row that the mirror has. It knows rows and how they hang together, not webhooks.
//!
//! Invariants: pure (no I/O, no clock); every change of a row is told to the caller as a [`Persist`], so that the ledger
//! holds the same rows; soft-deleted states and values are not kept; versions that another has superseded are forgotten; of
//! the history only what a change that is not in force yet will be told with; identities only where an override names them, and
//! the latest few that the stream brought (an override for one of them may follow).

mod difference;
mod index;
mod view;

use std::collections::{HashMap, HashSet, VecDeque};

use crate::change::{Key, Op, Row, RowChange, Transaction, key_of};
use crate::schema::{
    Capabilities, Table, environment_webhook, feature_segment, feature_state, feature_tag, feature_version,
    mv_value, organisation_webhook, state_history, state_value,
};

pub use index::{Slot, Target};
pub use view::{StateView, Value};

use index::{ByKey, Slots};

/// Identities that no override names are kept only for an override that may follow; so many at most.
const LOOSE_IDENTITIES: usize = 20_000;

/// History records of environments are kept until their audit row has come (0.2 to 2 s later); so many at most.
const ENVIRONMENT_HISTORY: usize = 1_000;

/// A change of the mirror that must be made in the ledger too.
#[derive(Debug, Clone)]
pub enum Persist {
    /// The row is now this one.
    Put {
        /// Its table.
        table: Table,
        /// Its primary key.
        key: Key,
        /// The whole row.
        row: Row,
    },
    /// The row is gone.
    Remove {
        /// Its table.
        table: Table,
        /// Its primary key.
        key: Key,
    },
}

#[derive(Debug, Default)]
struct Rows {
    ints: HashMap<i64, Row>,
    texts: HashMap<Box<str>, Row>,
}

impl Rows {
    fn get(&self, key: &Key) -> Option<&Row> {
        match key {
            Key::Int(id) => self.ints.get(id),
            Key::Text(text) => self.texts.get(text),
        }
    }

    fn insert(&mut self, key: Key, row: Row) -> Option<Row> {
        match key {
            Key::Int(id) => self.ints.insert(id, row),
            Key::Text(text) => self.texts.insert(text, row),
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Row> {
        match key {
            Key::Int(id) => self.ints.remove(id),
            Key::Text(text) => self.texts.remove(text),
        }
    }

    fn keys(&self) -> Vec<Key> {
        let ints = self.ints.keys().map(|id| Key::Int(*id));
        ints.chain(self.texts.keys().map(|text| Key::Text(text.clone()))).collect()
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Mirror {
    capabilities: Capabilities,
    tables: HashMap<Table, Rows>,
    slots: Slots,
    states_by_identity: ByKey,
    states_by_override: ByKey,
    states_by_request: ByKey,
    /// Which segment a `features_featuresegment` row is for; outlives the row while a state still names it.
    segment_of: HashMap<i64, i64>,
    values: ByKey,
    variants: ByKey,
    variants_by_option: ByKey,
    versions: HashMap<(i64, i64), HashSet<Box<str>>>,
    /// Rows of `features_feature_tags` by feature.
    taggings: ByKey,
    environment_hooks: ByKey,
    organisation_hooks: ByKey,
    loose_identities: VecDeque<i64>,
    environment_history: VecDeque<i64>,
}

impl Mirror {
    /// An empty mirror for a database with these capabilities.
    pub fn new(capabilities: Capabilities) -> Self {
        Mirror { capabilities, ..Mirror::default() }
    }

    /// Takes a row from a snapshot or from the ledger, where it is as it was kept.
    pub fn load(&mut self, table: Table, row: Row) {
        if table == Table::StateHistory || is_kept(table, &row) {
            self.put(table, kept_key(table, &row), row);
        }
    }

    /// Keeps a row of a state's history: who made a change that is not in force yet, and when. The latest of each state.
    pub fn keep_mark(&mut self, row: Row, out: &mut dyn FnMut(Persist)) {
        let key = kept_key(Table::StateHistory, &row);
        self.put(Table::StateHistory, key.clone(), row.clone());
        out(Persist::Put { table: Table::StateHistory, key, row });
    }

    /// The row that [`Mirror::keep_mark`] kept of a state.
    pub fn mark_of(&self, state: i64) -> Option<&Row> {
        self.row_by_id(Table::StateHistory, state)
    }

    /// The row with this key.
    pub fn row(&self, table: Table, key: &Key) -> Option<&Row> {
        self.tables.get(&table)?.get(key)
    }

    /// The row with this integer key.
    pub fn row_by_id(&self, table: Table, id: i64) -> Option<&Row> {
        self.tables.get(&table)?.ints.get(&id)
    }

    /// The keys of all rows of a table.
    pub fn keys(&self, table: Table) -> Vec<Key> {
        self.tables.get(&table).map(Rows::keys).unwrap_or_default()
    }

    /// How many rows of a table the mirror holds.
    pub fn count(&self, table: Table) -> usize {
        self.tables.get(&table).map_or(0, |rows| rows.ints.len() + rows.texts.len())
    }

    /// The slots of a feature, or of a feature in one environment, that have a state.
    pub fn slots_of(&self, feature: i64, environment: Option<i64>) -> impl Iterator<Item = Slot> + '_ {
        self.slots.of(feature, environment)
    }

    /// All slots that have a state, in order.
    pub fn all_slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.slots.all()
    }

    /// The slot of a state that the mirror holds.
    pub fn slot_of_state(&self, state: i64) -> Option<Slot> {
        self.row_by_id(Table::FeatureState, state).map(|row| self.slot_of_row(row))
    }

    /// The slot that a row of `features_featurestate` belongs to.
    pub fn slot_of_row(&self, state: &Row) -> Slot {
        let target = if let Some(identity) = state.int(feature_state::IDENTITY_ID) {
            Target::Identity(identity)
        } else if let Some(feature_segment) = state.int(feature_state::FEATURE_SEGMENT_ID) {
            Target::Segment(self.segment_of.get(&feature_segment).copied().unwrap_or(0))
        } else {
            Target::Default
        };
        Slot {
            feature: state.int(feature_state::FEATURE_ID).unwrap_or(0),
            environment: state.int(feature_state::ENVIRONMENT_ID).unwrap_or(0),
            target,
        }
    }

    /// The states of an identity's overrides.
    pub fn states_of_identity(&self, identity: i64) -> impl Iterator<Item = i64> + '_ {
        self.states_by_identity.get(identity)
    }

    /// The states that hang on a row of `features_featuresegment`.
    pub fn states_of_override(&self, feature_segment: i64) -> impl Iterator<Item = i64> + '_ {
        self.states_by_override.get(feature_segment)
    }

    /// The states that a change request is about.
    pub fn states_of_request(&self, request: i64) -> impl Iterator<Item = i64> + '_ {
        self.states_by_request.get(request)
    }

    /// All states that a change request is about.
    pub fn requested_states(&self) -> impl Iterator<Item = i64> + '_ {
        self.states_by_request.all()
    }

    /// The states that have a percentage for a variant.
    pub fn states_of_option(&self, option: i64) -> impl Iterator<Item = i64> + '_ {
        self.variants_by_option
            .get(option)
            .filter_map(|id| self.row_by_id(Table::MvValue, id)?.int(mv_value::FEATURE_STATE_ID))
    }

    /// The tags (ids in `tags_tag`) that a feature has.
    pub fn tags_of(&self, feature: i64) -> impl Iterator<Item = i64> + '_ {
        self.taggings
            .get(feature)
            .filter_map(|id| self.row_by_id(Table::FeatureTag, id)?.int(feature_tag::TAG_ID))
    }

    /// The endpoints (ids in `environments_webhook`) of an environment, enabled or not.
    pub fn environment_endpoints(&self, environment: i64) -> impl Iterator<Item = i64> + '_ {
        self.environment_hooks.get(environment)
    }

    /// The endpoints (ids in `organisations_organisationwebhook`) of an organisation, enabled or not.
    pub fn organisation_endpoints(&self, organisation: i64) -> impl Iterator<Item = i64> + '_ {
        self.organisation_hooks.get(organisation)
    }

    /// The rows that a transaction needs and the mirror lacks: identities that were there before flagpost and get their
    /// first override, and rows whose TOASTed column is left out though the mirror never had them. The caller fetches
    /// them from the database and gives them to [`Mirror::supply`] before the transaction is applied.
    pub fn lacks(&self, transaction: &Transaction) -> Vec<(Table, Key)> {
        let mut inserted: HashSet<(Table, Key)> = HashSet::new();
        let mut lacking = Vec::new();
        for change in &transaction.changes {
            let (Op::Insert { new } | Op::Update { new, .. }) = &change.op else { continue };
            if let Op::Insert { .. } = change.op
                && change.table == Table::Identity
            {
                inserted.insert((change.table, key_of(new)));
            }
            let mut need = |table: Table, key: Key| {
                if self.row(table, &key).is_none() && inserted.insert((table, key.clone())) {
                    lacking.push((table, key));
                }
            };
            if change.table == Table::FeatureState
                && let Some(identity) = new.int(feature_state::IDENTITY_ID)
                && is_kept(change.table, new)
            {
                need(Table::Identity, Key::Int(identity));
            }
            if change.table.is_kept() && new.has_unchanged() {
                need(change.table, key_of(new));
            }
        }
        lacking
    }

    /// Takes a row that [`Mirror::lacks`] named.
    pub fn supply(&mut self, table: Table, row: Row, out: &mut dyn FnMut(Persist)) {
        self.store(table, row, out);
    }

    /// Applies one change and tells what changed in the kept tables.
    pub fn apply(&mut self, change: RowChange, out: &mut dyn FnMut(Persist)) {
        let RowChange { table, op } = change;
        if !table.is_kept() {
            return;
        }
        match op {
            Op::Insert { new } => self.store(table, new, out),
            Op::Update { old_key, new } => {
                let key = old_key.unwrap_or_else(|| key_of(&new));
                let new = match self.row(table, &key) {
                    Some(old) if new.has_unchanged() => new.filled_from(old),
                    _ => new,
                };
                if key != key_of(&new) {
                    self.discard(table, &key, out);
                }
                self.store(table, new, out);
            }
            Op::Delete { key } => self.discard(table, &key, out),
            Op::Truncate => {
                for key in self.keys(table) {
                    self.discard(table, &key, out);
                }
            }
        }
    }

    fn store(&mut self, table: Table, row: Row, out: &mut dyn FnMut(Persist)) {
        let key = key_of(&row);
        if !is_kept(table, &row) {
            return self.discard(table, &key, out);
        }
        self.put(table, key.clone(), row.clone());
        out(Persist::Put { table, key, row });
    }

    /// The flags (feature and environment) that have versions.
    pub fn versioned_flags(&self) -> Vec<(i64, i64)> {
        self.versions.keys().copied().collect()
    }

    /// The states that name a version.
    fn state_ids_of_version(&self, version: &Row) -> Vec<i64> {
        let (feature, environment) = flag_of_version(version);
        let uuid = version.text(feature_version::UUID);
        self.slots_of(feature, Some(environment))
            .flat_map(|slot| self.slots.states(&slot))
            .filter(|id| {
                let state = self.row_by_id(Table::FeatureState, *id);
                state.is_some_and(|row| row.text(feature_state::ENVIRONMENT_FEATURE_VERSION_ID) == uuid)
            })
            .collect()
    }

    /// Forgets a version that another has superseded, with its states, values, variants and overrides: nothing shows them
    /// again, and an environment collects thousands.
    pub fn forget_version(&mut self, version: &Row, out: &mut dyn FnMut(Persist)) {
        for state in self.state_ids_of_version(version) {
            let values: Vec<i64> = self.values.get(state).collect();
            let variants: Vec<i64> = self.variants.get(state).collect();
            let segment = self
                .row_by_id(Table::FeatureState, state)
                .and_then(|row| row.int(feature_state::FEATURE_SEGMENT_ID));
            for value in values {
                self.discard(Table::StateValue, &Key::Int(value), out);
            }
            for variant in variants {
                self.discard(Table::MvValue, &Key::Int(variant), out);
            }
            self.discard(Table::FeatureState, &Key::Int(state), out);
            // A state that was scheduled before there were versions hangs on the same override, and still waits.
            if let Some(segment) = segment.filter(|segment| !self.states_by_override.contains(*segment)) {
                self.discard(Table::FeatureSegment, &Key::Int(segment), out);
            }
        }
        self.discard(Table::FeatureVersion, &key_of(version), out);
    }

    /// Forgets what is kept only for a moment. To be called after each transaction, never within one: what a row refers to
    /// may have come with it.
    pub fn trim(&mut self, out: &mut dyn FnMut(Persist)) {
        self.forget_loose_identities(out);
        self.forget_environment_history(out);
    }

    fn discard(&mut self, table: Table, key: &Key, out: &mut dyn FnMut(Persist)) {
        if let Some(old) = self.tables.get_mut(&table).and_then(|rows| rows.remove(key)) {
            self.unlink(table, &old);
            out(Persist::Remove { table, key: key.clone() });
            if table == Table::FeatureState {
                self.discard(Table::StateHistory, key, out);
            }
        }
    }

    fn put(&mut self, table: Table, key: Key, row: Row) {
        if table == Table::FeatureSegment {
            return self.put_override(key, row);
        }
        self.put_row(table, key, row);
    }

    /// Which segment an override is for decides the slot of its states: they move with it.
    fn put_override(&mut self, key: Key, row: Row) {
        let id = row.int(feature_segment::ID).unwrap_or(0);
        let states: Vec<Row> = self
            .states_of_override(id)
            .filter_map(|state| self.row_by_id(Table::FeatureState, state).cloned())
            .collect();
        let before: Vec<Slot> = states.iter().map(|state| self.slot_of_row(state)).collect();
        self.put_row(Table::FeatureSegment, key, row);
        for (state, before) in states.iter().zip(before) {
            let id = state.int(feature_state::ID).unwrap_or(0);
            self.slots.remove(&before, id);
            self.slots.insert(self.slot_of_row(state), id);
        }
    }

    fn put_row(&mut self, table: Table, key: Key, row: Row) {
        if let Some(old) = self.tables.get_mut(&table).and_then(|rows| rows.remove(&key)) {
            self.unlink(table, &old);
        }
        self.link(table, &row);
        self.tables.entry(table).or_default().insert(key, row);
    }

    fn forget_loose_identities(&mut self, out: &mut dyn FnMut(Persist)) {
        while self.loose_identities.len() > LOOSE_IDENTITIES {
            let Some(oldest) = self.loose_identities.pop_front() else { return };
            if !self.states_by_identity.contains(oldest) {
                self.discard(Table::Identity, &Key::Int(oldest), out);
            }
        }
    }

    fn forget_environment_history(&mut self, out: &mut dyn FnMut(Persist)) {
        while self.environment_history.len() > ENVIRONMENT_HISTORY {
            let Some(oldest) = self.environment_history.pop_front() else { return };
            self.discard(Table::EnvironmentHistory, &Key::Int(oldest), out);
        }
    }

    fn link(&mut self, table: Table, row: &Row) {
        let Some(id) = row.int(0) else {
            if table == Table::FeatureVersion
                && let Some(uuid) = row.text(feature_version::UUID)
            {
                self.versions.entry(flag_of_version(row)).or_default().insert(uuid.into());
            }
            return;
        };
        match table {
            Table::FeatureState => {
                self.slots.insert(self.slot_of_row(row), id);
                if let Some(identity) = row.int(feature_state::IDENTITY_ID) {
                    self.states_by_identity.insert(identity, id);
                }
                if let Some(feature_segment) = row.int(feature_state::FEATURE_SEGMENT_ID) {
                    self.states_by_override.insert(feature_segment, id);
                }
                if let Some(request) = row.int(feature_state::CHANGE_REQUEST_ID) {
                    self.states_by_request.insert(request, id);
                }
            }
            Table::FeatureSegment => {
                self.segment_of.insert(id, row.int(feature_segment::SEGMENT_ID).unwrap_or(0));
            }
            Table::StateValue => self.values.insert(row.int(state_value::FEATURE_STATE_ID).unwrap_or(0), id),
            Table::MvValue => {
                self.variants.insert(row.int(mv_value::FEATURE_STATE_ID).unwrap_or(0), id);
                let option = row.int(mv_value::MULTIVARIATE_FEATURE_OPTION_ID).unwrap_or(0);
                self.variants_by_option.insert(option, id);
            }
            Table::FeatureTag => self.taggings.insert(row.int(feature_tag::FEATURE_ID).unwrap_or(0), id),
            Table::EnvironmentWebhook => {
                let environment = row.int(environment_webhook::ENVIRONMENT_ID).unwrap_or(0);
                self.environment_hooks.insert(environment, id);
            }
            Table::OrganisationWebhook => {
                let organisation = row.int(organisation_webhook::ORGANISATION_ID).unwrap_or(0);
                self.organisation_hooks.insert(organisation, id);
            }
            Table::Identity => self.loose_identities.push_back(id),
            Table::EnvironmentHistory => self.environment_history.push_back(id),
            _ => {}
        }
    }

    fn unlink(&mut self, table: Table, row: &Row) {
        let Some(id) = row.int(0) else {
            if table == Table::FeatureVersion
                && let Some(uuid) = row.text(feature_version::UUID)
                && let Some(all) = self.versions.get_mut(&flag_of_version(row))
            {
                all.remove(uuid);
                if all.is_empty() {
                    self.versions.remove(&flag_of_version(row));
                }
            }
            return;
        };
        match table {
            Table::FeatureState => {
                let slot = self.slot_of_row(row);
                self.slots.remove(&slot, id);
                if let Some(identity) = row.int(feature_state::IDENTITY_ID) {
                    self.states_by_identity.remove(identity, id);
                }
                if let Some(feature_segment) = row.int(feature_state::FEATURE_SEGMENT_ID) {
                    self.states_by_override.remove(feature_segment, id);
                    self.forget_segment_of(feature_segment);
                }
                if let Some(request) = row.int(feature_state::CHANGE_REQUEST_ID) {
                    self.states_by_request.remove(request, id);
                }
            }
            // Flagsmith deletes the override's row before its state: the state's slot must still be known then.
            Table::FeatureSegment if !self.states_by_override.contains(id) => {
                self.segment_of.remove(&id);
            }
            Table::StateValue => self.values.remove(row.int(state_value::FEATURE_STATE_ID).unwrap_or(0), id),
            Table::MvValue => {
                self.variants.remove(row.int(mv_value::FEATURE_STATE_ID).unwrap_or(0), id);
                let option = row.int(mv_value::MULTIVARIATE_FEATURE_OPTION_ID).unwrap_or(0);
                self.variants_by_option.remove(option, id);
            }
            Table::FeatureTag => self.taggings.remove(row.int(feature_tag::FEATURE_ID).unwrap_or(0), id),
            Table::EnvironmentWebhook => {
                let environment = row.int(environment_webhook::ENVIRONMENT_ID).unwrap_or(0);
                self.environment_hooks.remove(environment, id);
            }
            Table::OrganisationWebhook => {
                let organisation = row.int(organisation_webhook::ORGANISATION_ID).unwrap_or(0);
                self.organisation_hooks.remove(organisation, id);
            }
            _ => {}
        }
    }

    /// Says which segment a state's override was for, where its row of `features_featuresegment` went before the mirror was
    /// loaded: Flagsmith deletes that row first, and a restart may come between.
    pub fn recall_segment(&mut self, state: i64, segment: i64) {
        let Some(row) = self.row_by_id(Table::FeatureState, state).cloned() else { return };
        let Some(feature_segment) = row.int(feature_state::FEATURE_SEGMENT_ID) else { return };
        if !self.segment_of.contains_key(&feature_segment) {
            let before = self.slot_of_row(&row);
            self.segment_of.insert(feature_segment, segment);
            self.slots.remove(&before, state);
            self.slots.insert(self.slot_of_row(&row), state);
        }
    }

    fn forget_segment_of(&mut self, feature_segment: i64) {
        let has_row = self.row_by_id(Table::FeatureSegment, feature_segment).is_some();
        if !has_row && !self.states_by_override.contains(feature_segment) {
            self.segment_of.remove(&feature_segment);
        }
    }
}

/// By what a kept row is found: its primary key, but a row of a state's history by the state.
pub fn kept_key(table: Table, row: &Row) -> Key {
    match table {
        Table::StateHistory => Key::Int(row.int(state_history::ID).unwrap_or(0)),
        _ => key_of(row),
    }
}

/// The feature and the environment of a version.
pub fn flag_of_version(row: &Row) -> (i64, i64) {
    let feature = row.int(feature_version::FEATURE_ID).unwrap_or(0);
    (feature, row.int(feature_version::ENVIRONMENT_ID).unwrap_or(0))
}

/// Soft-deleted states and values are gone for good; everything else soft-deleted is still needed to render what
/// happens below it (an audit row of a deleted environment).
fn is_kept(table: Table, row: &Row) -> bool {
    match table {
        Table::FeatureState => row.is_null(feature_state::DELETED_AT),
        Table::StateValue => row.is_null(state_value::DELETED_AT),
        _ => table.is_kept(),
    }
}
