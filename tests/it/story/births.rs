//! How environments are born: with a state of every feature, or as a clone of another, in one transaction after the other.

use flagpost::change::Key;
use flagpost::schema::{Table, environment, feature, feature_segment, feature_state};

use super::clicks::states;
use super::database::{Write, int, record};
use super::desk::{Content, Desk, Holder};

impl Desk<'_> {
    fn environment(&mut self, project: i64, is_creating: bool) -> (i64, Write) {
        let id = self.database.next_id(Table::Environment);
        let new = [
            (environment::ID, id.to_string()),
            (environment::NAME, format!("Environment {id}")),
            (environment::API_KEY, format!("key{id}")),
            (environment::PROJECT_ID, project.to_string()),
            (environment::IS_CREATING, if is_creating { "t" } else { "f" }.to_owned()),
        ];
        (id, Write::Insert(Table::Environment, record(Table::Environment, &new)))
    }

    pub(super) fn create_environment(&mut self, project: i64, enabled: bool) -> i64 {
        let (id, insert) = self.environment(project, false);
        self.then(vec![insert]);
        let features = self.database.with(Table::Feature, feature::PROJECT_ID, project);
        let features: Vec<i64> =
            features.filter(|f| f[feature::DELETED_AT].is_none()).filter_map(|f| int(f, 0)).collect();
        for feature in features {
            let (state, mut writes) = self.state(feature, id, Holder::Everybody, enabled);
            writes.extend(self.value(state, Content::Int(1)));
            writes.extend(self.variants(state, &self.options_of(feature, 10)));
            self.then(writes);
        }
        id
    }

    pub(super) fn clone_environment(&mut self, source: i64) -> i64 {
        let project = int(self.database.by_id(Table::Environment, source).unwrap(), environment::PROJECT_ID);
        let (id, insert) = self.environment(project.unwrap(), true);
        self.then(vec![insert]);
        let of_source = states(self.database, |s| {
            int(s, feature_state::ENVIRONMENT_ID) == Some(source) && s[feature_state::IDENTITY_ID].is_none()
        });
        for state in of_source {
            let row = self.database.by_id(Table::FeatureState, state).unwrap().clone();
            let feature = int(&row, feature_state::FEATURE_ID).unwrap();
            let enabled = row[feature_state::ENABLED].as_deref() == Some("t");
            let mut holder = Holder::Everybody;
            let parent = int(&row, feature_state::FEATURE_SEGMENT_ID);
            if let Some(parent) = parent.and_then(|p| self.database.by_id(Table::FeatureSegment, p)) {
                let segment = int(parent, feature_segment::SEGMENT_ID).unwrap();
                let priority = int(parent, feature_segment::PRIORITY).unwrap();
                let (parent, insert) = self.feature_segment(feature, id, segment, priority);
                self.then(vec![insert]);
                holder = Holder::Override(parent);
            }
            let (copy, writes) = self.state(feature, id, holder, enabled);
            self.then(writes);
            let writes = self.value(copy, Content::Long(7));
            self.then(writes);
            let writes = self.variants(copy, &self.options_of(feature, 40));
            if !writes.is_empty() {
                self.then(writes);
            }
        }
        let set = vec![(environment::IS_CREATING, Some("f".to_owned()))];
        self.then(vec![Write::Update(Table::Environment, Key::Int(id), set)]);
        id
    }
}
