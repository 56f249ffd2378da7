//! How environments are born: with a state of every feature, or as a clone of another, in one transaction after the other.

use std::collections::BTreeMap;

use flagpost::change::{Key, Micros};
use flagpost::schema::{Table, environment, feature, feature_segment, feature_state, feature_version};

use super::clicks::states;
use super::database::{Record, Write, int, record};
use super::desk::{Content, Desk, Holder};
use super::oracle::{is_versioned, live_version};
use super::versions::patch;

impl Desk<'_> {
    fn environment(&mut self, project: i64, is_creating: bool, is_versioned: bool) -> (i64, Write) {
        let id = self.database.next_id(Table::Environment);
        let flag = |is_set: bool| if is_set { "t" } else { "f" }.to_owned();
        let new = [
            (environment::ID, id.to_string()),
            (environment::NAME, format!("Environment {id}")),
            (environment::API_KEY, format!("key{id}")),
            (environment::PROJECT_ID, project.to_string()),
            (environment::IS_CREATING, flag(is_creating)),
            (environment::USE_V2_FEATURE_VERSIONING, flag(is_versioned)),
        ];
        (id, Write::Insert(Table::Environment, record(Table::Environment, &new)))
    }

    pub(super) fn create_environment(&mut self, project: i64, enabled: bool, is_versioned: bool) -> i64 {
        let (id, insert) = self.environment(project, false, is_versioned);
        self.then(vec![insert]);
        let features = self.database.with(Table::Feature, feature::PROJECT_ID, project);
        let features: Vec<i64> =
            features.filter(|f| f[feature::DELETED_AT].is_none()).filter_map(|f| int(f, 0)).collect();
        for feature in features {
            let (state, mut writes) = self.first_state(feature, id, enabled, is_versioned);
            writes.extend(self.value(state, Content::Int(1)));
            writes.extend(self.variants(state, &self.options_of(feature, 10)));
            self.then(writes);
        }
        id
    }

    /// Of a versioned environment the live versions are cloned, each with its states; of another what no change request made.
    pub(super) fn clone_environment(&mut self, source: i64) -> i64 {
        let is_versioned = is_versioned(self.database, source);
        let project = int(self.database.by_id(Table::Environment, source).unwrap(), environment::PROJECT_ID);
        let (id, insert) = self.environment(project.unwrap(), true, is_versioned);
        self.then(vec![insert]);
        let is_here = |s: &Record| int(s, feature_state::ENVIRONMENT_ID) == Some(source);
        let mut versions = BTreeMap::new();
        let mut of_source = states(self.database, |s| {
            let is_plain =
                s[feature_state::IDENTITY_ID].is_none() && s[feature_state::CHANGE_REQUEST_ID].is_none();
            is_here(s) && is_plain && !is_versioned
        });
        if is_versioned {
            for version in self.live_versions(source) {
                let feature = int(&version, feature_version::FEATURE_ID).unwrap();
                let live = version[feature_version::UUID].clone().unwrap();
                let (uuid, insert) = self.first_version(feature, id);
                self.then(vec![insert]);
                let ids = self.states_of_version(&live);
                of_source.extend(ids.iter().filter_map(|s| int(s, feature_state::ID)));
                versions.insert(feature, uuid);
            }
        }
        for state in of_source {
            let row = self.database.by_id(Table::FeatureState, state).unwrap().clone();
            self.clone_state(&row, id, &versions);
        }
        let set = vec![(environment::IS_CREATING, Some("f".to_owned()))];
        self.then(vec![Write::Update(Table::Environment, Key::Int(id), set)]);
        id
    }

    fn live_versions(&self, environment: i64) -> Vec<Record> {
        let all = self.database.with(Table::FeatureVersion, feature_version::ENVIRONMENT_ID, environment);
        let is_live = |version: &&Record| {
            let feature = int(version, feature_version::FEATURE_ID).unwrap();
            let is_there = self
                .database
                .by_id(Table::Feature, feature)
                .is_some_and(|f| f[feature::DELETED_AT].is_none());
            is_there && live_version(self.database, feature, environment, Micros(self.now)) == Some(*version)
        };
        all.filter(is_live).cloned().collect()
    }

    fn clone_state(&mut self, row: &Record, environment: i64, versions: &BTreeMap<i64, String>) {
        let feature = int(row, feature_state::FEATURE_ID).unwrap();
        let enabled = row[feature_state::ENABLED].as_deref() == Some("t");
        let version = versions.get(&feature).cloned();
        let mut holder = Holder::Everybody;
        let parent = int(row, feature_state::FEATURE_SEGMENT_ID);
        if let Some(parent) = parent.and_then(|p| self.database.by_id(Table::FeatureSegment, p)) {
            let segment = int(parent, feature_segment::SEGMENT_ID).unwrap();
            let priority = int(parent, feature_segment::PRIORITY).unwrap();
            let (parent, insert) = self.feature_segment(feature, environment, segment, priority);
            let mut writes = vec![insert];
            let set = [(feature_segment::ENVIRONMENT_FEATURE_VERSION_ID, version.clone())];
            patch(&mut writes, Table::FeatureSegment, &set);
            self.then(writes);
            holder = Holder::Override(parent);
        }
        let (copy, mut writes) = self.state(feature, environment, holder, enabled);
        patch(&mut writes, Table::FeatureState, &[(feature_state::ENVIRONMENT_FEATURE_VERSION_ID, version)]);
        self.then(writes);
        let writes = self.value(copy, Content::Long(7));
        self.then(writes);
        let writes = self.variants(copy, &self.options_of(feature, 40));
        if !writes.is_empty() {
            self.then(writes);
        }
    }
}
