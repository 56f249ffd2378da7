//! What people do in versioned environments (SEMANTICS.md §5, "Versioned environments"), as Flagsmith does it: versioning turned on
//! and off step by step, drafts that are made from the live version, edited, published now or for later, put off, withdrawn.

use flagpost::change::{Key, Micros};
use flagpost::schema::{
    Table, environment, feature, feature_segment, feature_state, feature_version, mv_value, segment,
    state_value,
};
use proptest::prelude::*;

use super::clicks::{Action, Pick, alive, nth};
use super::database::{Record, SOON, Write, int, record, time};
use super::desk::{Content, Desk, Holder};
use super::oracle::{environment_is_alive, is_versioned, live_version, moment, states_in_force};
use super::schedule::{Plan, is_scheduled, plan};
use super::telling::content;

/// Turning versioning off takes so long at most, in microseconds.
const TAKEN_APART: i64 = 10_000_000;

#[derive(Debug, Clone)]
pub(super) enum VersionAction {
    Enable {
        environment: Pick,
    },
    Disable {
        environment: Pick,
    },
    /// A draft made from the live version, edited in the same transaction, and what becomes of it.
    Make {
        flag: Pick,
        edit: Edit,
        plan: Plan,
        /// Published in a transaction of its own.
        apart: bool,
    },
    /// Something in a version that is not live yet.
    Edit {
        which: Pick,
        edit: Edit,
    },
    Publish {
        which: Pick,
        plan: Plan,
    },
    /// Another moment for a version that waits for its own; published anew, or moved by SQL.
    Reschedule {
        which: Pick,
        plan: Plan,
        anew: bool,
    },
    /// A draft or a version that waits is deleted.
    Withdraw {
        which: Pick,
    },
}

/// What is changed in a version.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edit {
    /// The override for this segment, which is made where there is none; else the state for everybody.
    pub(super) segment: Option<Pick>,
    pub(super) toggle: bool,
    pub(super) content: Option<Content>,
    pub(super) percentage: Option<u8>,
    /// The override goes, or gets this priority.
    pub(super) drops: bool,
    pub(super) priority: Option<u8>,
}

fn edit() -> impl Strategy<Value = Edit> {
    use proptest::option::weighted;
    let what = (any::<bool>(), weighted(0.5, content()), weighted(0.3, 0..100_u8));
    let about_override = (proptest::bool::weighted(0.5), weighted(0.3, 0..4_u8));
    (weighted(0.5, 0..4 as Pick), what, about_override).prop_map(
        |(segment, (toggle, content, percentage), (drops, priority))| Edit {
            segment,
            toggle,
            content,
            percentage,
            drops,
            priority,
        },
    )
}

pub(super) fn version_action() -> BoxedStrategy<Action> {
    let pick = || 0..8 as Pick;
    prop_oneof![
        3 => pick().prop_map(|environment| VersionAction::Enable { environment }),
        2 => pick().prop_map(|environment| VersionAction::Disable { environment }),
        14 => (pick(), edit(), plan(), any::<bool>())
            .prop_map(|(flag, edit, plan, apart)| VersionAction::Make { flag, edit, plan, apart }),
        4 => (pick(), edit()).prop_map(|(which, edit)| VersionAction::Edit { which, edit }),
        6 => (pick(), plan()).prop_map(|(which, plan)| VersionAction::Publish { which, plan }),
        5 => (pick(), plan(), any::<bool>())
            .prop_map(|(which, plan, anew)| VersionAction::Reschedule { which, plan, anew }),
        4 => pick().prop_map(|which| VersionAction::Withdraw { which }),
    ]
    .prop_map(Action::Version)
    .boxed()
}

/// Sets columns of a row that is to be inserted.
pub(super) fn patch(writes: &mut [Write], table: Table, set: &[(usize, Option<String>)]) {
    for write in writes {
        if let Write::Insert(of, record) = write
            && *of == table
        {
            set.iter().for_each(|(column, text)| record[*column].clone_from(text));
        }
    }
}

fn uuid_of(version: &Record) -> String {
    version[feature_version::UUID].clone().unwrap()
}

impl Desk<'_> {
    pub(super) fn act_on_versions(&mut self, action: &VersionAction) -> Option<()> {
        match *action {
            VersionAction::Enable { environment } => self.enable(self.environment_of(environment, false)?),
            VersionAction::Disable { environment } => {
                let environment = self.environment_of(environment, true)?;
                if self.goes_live_soon(environment) {
                    return None;
                }
                self.disable(environment);
            }
            VersionAction::Make { flag, edit, plan, apart } => self.make(flag, &edit, plan, apart)?,
            VersionAction::Edit { which, edit } => {
                let version = self.version(which, |desk, v| !desk.is_live(v))?;
                self.edit(&version, &edit);
            }
            VersionAction::Publish { which, plan } => {
                let draft = self.version(which, |_, v| v[feature_version::PUBLISHED_AT].is_none())?;
                self.publish(&uuid_of(&draft), plan);
            }
            VersionAction::Reschedule { which, plan, anew } => {
                let version = self.version(which, |desk, v| desk.waits(v))?;
                let live_from = (feature_version::LIVE_FROM, Some(self.moment_of(plan)?));
                if anew {
                    self.publish(&uuid_of(&version), plan);
                } else {
                    self.then(vec![Write::Publish {
                        version: Key::parse(&uuid_of(&version)),
                        set: vec![live_from],
                    }]);
                }
            }
            VersionAction::Withdraw { which } => {
                let is_draft = |v: &Record| v[feature_version::PUBLISHED_AT].is_none();
                let version = self.version(which, |desk, v| is_draft(v) || desk.waits(v))?;
                self.mark_version(&version);
                for state in self.states_of_version(&uuid_of(&version)) {
                    self.delete_below(&state);
                }
            }
        }
        Some(())
    }

    /// An environment that is there, versioned or not.
    fn environment_of(&self, pick: Pick, versioned: bool) -> Option<i64> {
        let all = alive(self.database, Table::Environment, environment::DELETED_AT);
        let all = all.into_iter().filter(|id| is_versioned(self.database, *id) == versioned);
        nth(&all.filter(|id| environment_is_alive(self.database, *id)).collect::<Vec<_>>(), pick)
    }

    /// What goes live while versioning is turned off comes to a version that is being taken apart.
    fn goes_live_soon(&self, environment: i64) -> bool {
        let until = self.now + TAKEN_APART;
        let mut all = self.database.with(Table::FeatureVersion, feature_version::ENVIRONMENT_ID, environment);
        all.any(|v| {
            let waits_at = |now| is_scheduled(v, feature_version::LIVE_FROM, now);
            waits_at(self.now) && !waits_at(until)
        })
    }

    /// A version of a living flag in a versioned environment.
    fn version(&self, pick: Pick, which: impl Fn(&Self, &Record) -> bool) -> Option<Record> {
        let all: Vec<&Record> = self
            .database
            .rows(Table::FeatureVersion)
            .filter(|v| v[feature_version::DELETED_AT].is_none() && self.is_of_living_flag(v))
            .filter(|v| which(self, v))
            .collect();
        all.get(usize::from(pick) % all.len().max(1)).map(|v| (*v).clone())
    }

    fn is_of_living_flag(&self, version: &Record) -> bool {
        let environment = int(version, feature_version::ENVIRONMENT_ID).unwrap();
        let feature = int(version, feature_version::FEATURE_ID).unwrap();
        let feature = self.database.by_id(Table::Feature, feature);
        is_versioned(self.database, environment)
            && environment_is_alive(self.database, environment)
            && feature.is_some_and(|f| f[feature::DELETED_AT].is_none())
    }

    /// Flagsmith does not let anybody withdraw or move a version that is live. Some time is left, so that it is not live before
    /// the statement has come.
    fn waits(&self, version: &Record) -> bool {
        is_scheduled(version, feature_version::LIVE_FROM, self.now + SOON)
            && version[feature_version::PUBLISHED_AT].is_some()
    }

    fn is_live(&self, version: &Record) -> bool {
        version[feature_version::PUBLISHED_AT].is_some()
            && moment(version, feature_version::LIVE_FROM).is_some_and(|at| at.0 <= self.now + SOON)
    }

    fn set_version(&self, uuid: &str, set: Vec<(usize, Option<String>)>) -> Write {
        Write::Update(Table::FeatureVersion, Key::Text(uuid.into()), set)
    }

    pub(super) fn mark_version(&mut self, version: &Record) {
        let mark = (feature_version::DELETED_AT, Some(self.stamp()));
        self.then(vec![self.set_version(&uuid_of(version), vec![mark])]);
    }

    pub(super) fn states_of_version(&self, uuid: &str) -> Vec<Record> {
        let states =
            self.database.rows(Table::FeatureState).filter(|s| s[feature_state::DELETED_AT].is_none());
        let of_version =
            states.filter(|s| s[feature_state::ENVIRONMENT_FEATURE_VERSION_ID].as_deref() == Some(uuid));
        of_version.cloned().collect()
    }

    fn insert_version(&mut self, feature: i64, environment: i64, set: &[(usize, String)]) -> (String, Write) {
        let uuid = format!("00000000-0000-4000-8000-{:012}", self.database.next_id(Table::FeatureVersion));
        let mut new = vec![
            (feature_version::UUID, uuid.clone()),
            (feature_version::FEATURE_ID, feature.to_string()),
            (feature_version::ENVIRONMENT_ID, environment.to_string()),
        ];
        new.extend_from_slice(set);
        (uuid, Write::Insert(Table::FeatureVersion, record(Table::FeatureVersion, &new)))
    }

    /// A version that Flagsmith makes and publishes by itself.
    pub(super) fn first_version(&mut self, feature: i64, environment: i64) -> (String, Write) {
        let now = self.stamp();
        let set = [(feature_version::PUBLISHED_AT, now.clone()), (feature_version::LIVE_FROM, now)];
        self.insert_version(feature, environment, &set)
    }

    /// The first state of a new feature in an environment, with its version where that has versions.
    pub(super) fn first_state(
        &mut self,
        feature: i64,
        environment: i64,
        enabled: bool,
        is_versioned: bool,
    ) -> (i64, Vec<Write>) {
        let (state, mut writes) = self.state(feature, environment, Holder::Everybody, enabled);
        if is_versioned {
            let (uuid, insert) = self.first_version(feature, environment);
            let set = [
                (feature_state::LIVE_FROM, None),
                (feature_state::ENVIRONMENT_FEATURE_VERSION_ID, Some(uuid)),
            ];
            patch(&mut writes, Table::FeatureState, &set);
            writes.insert(0, insert);
        }
        (state, writes)
    }

    /// Feature by feature: a version, the states that are in force into it, what is scheduled into versions of its own.
    fn enable(&mut self, environment: i64) {
        let project =
            int(self.database.by_id(Table::Environment, environment).unwrap(), environment::PROJECT_ID);
        let features = alive(self.database, Table::Feature, feature::DELETED_AT);
        let is_of =
            |id: &i64| int(self.database.by_id(Table::Feature, *id).unwrap(), feature::PROJECT_ID) == project;
        let features: Vec<i64> = features.into_iter().filter(is_of).collect();
        for feature in features {
            let (uuid, insert) = self.first_version(feature, environment);
            self.then(vec![insert]);
            let is_here = |s: &Record| {
                int(s, feature_state::FEATURE_ID) == Some(feature)
                    && int(s, feature_state::ENVIRONMENT_ID) == Some(environment)
                    && s[feature_state::IDENTITY_ID].is_none()
            };
            let live = states_in_force(self.database, Micros(self.now)).into_values();
            let live: Vec<Record> = live.filter(|s| is_here(s)).cloned().collect();
            let waiting = self.scheduled_states();
            let waiting: Vec<Record> = waiting.into_iter().filter(|s| is_here(s)).collect();
            self.label(&live, Some(&uuid));
            self.schedule_versions(feature, environment, &waiting);
        }
        self.use_versions(environment, true);
    }

    fn use_versions(&mut self, environment: i64, on: bool) {
        let set = vec![(environment::USE_V2_FEATURE_VERSIONING, Some(if on { "t" } else { "f" }.to_owned()))];
        self.then(vec![Write::Update(Table::Environment, Key::Int(environment), set)]);
    }

    /// States and their overrides into a version, or out of it; one statement each.
    fn label(&mut self, states: &[Record], version: Option<&str>) {
        let version = version.map(str::to_owned);
        let mut set = vec![(feature_state::ENVIRONMENT_FEATURE_VERSION_ID, version.clone())];
        if version.is_none() {
            set.push((feature_state::VERSION, Some("1".to_owned())));
            set.push((feature_state::LIVE_FROM, Some(self.stamp())));
        }
        let update = |s: &Record| {
            Write::Update(Table::FeatureState, Key::Int(int(s, feature_state::ID).unwrap()), set.clone())
        };
        self.then(states.iter().map(update).collect());
        let overrides = states.iter().filter_map(|s| int(s, feature_state::FEATURE_SEGMENT_ID));
        let set = vec![(feature_segment::ENVIRONMENT_FEATURE_VERSION_ID, version)];
        let overrides: Vec<Write> =
            overrides.map(|id| Write::Update(Table::FeatureSegment, Key::Int(id), set.clone())).collect();
        if !overrides.is_empty() {
            self.then(overrides);
        }
    }

    /// Scheduled states of change requests become scheduled versions.
    fn schedule_versions(&mut self, feature: i64, environment: i64, states: &[Record]) {
        let mut updates = Vec::new();
        for state in states {
            let request = int(state, feature_state::CHANGE_REQUEST_ID).unwrap();
            let committed_at = self.committed_at(request).unwrap();
            let set = [
                (feature_version::PUBLISHED_AT, committed_at),
                (feature_version::LIVE_FROM, state[feature_state::LIVE_FROM].clone().unwrap()),
                (feature_version::CHANGE_REQUEST_ID, request.to_string()),
            ];
            let (uuid, insert) = self.insert_version(feature, environment, &set);
            self.then(vec![insert]);
            let set = vec![
                (feature_state::ENVIRONMENT_FEATURE_VERSION_ID, Some(uuid)),
                (feature_state::CHANGE_REQUEST_ID, None),
            ];
            let id = int(state, feature_state::ID).unwrap();
            updates.push(Write::Update(Table::FeatureState, Key::Int(id), set));
        }
        if !updates.is_empty() {
            self.then(updates);
        }
    }

    /// What is not in force is deleted, what is in force loses its version, the versions go, the environment says so.
    fn disable(&mut self, environment: i64) {
        let is_here = |s: &Record| int(s, feature_state::ENVIRONMENT_ID) == Some(environment);
        let live = states_in_force(self.database, Micros(self.now)).into_values();
        let live: Vec<Record> = live.filter(|s| is_here(s)).cloned().collect();
        let column = |records: &[Record], column: usize| -> Vec<i64> {
            records.iter().filter_map(|r| int(r, column)).collect()
        };
        let (ids, overrides) =
            (column(&live, feature_state::ID), column(&live, feature_state::FEATURE_SEGMENT_ID));
        let states = self.database.with(Table::FeatureState, feature_state::ENVIRONMENT_ID, environment);
        let states = states
            .filter(|s| s[feature_state::DELETED_AT].is_none() && s[feature_state::IDENTITY_ID].is_none());
        for state in column(&states.cloned().collect::<Vec<_>>(), feature_state::ID) {
            if !ids.contains(&state) {
                self.soft_delete_state(state);
            }
        }
        for id in self.ids_with(Table::FeatureSegment, feature_segment::ENVIRONMENT_ID, environment) {
            if !overrides.contains(&id) {
                self.cascade(Table::FeatureSegment, id, false);
            }
        }
        self.label(&live, None);
        let versions =
            self.database.with(Table::FeatureVersion, feature_version::ENVIRONMENT_ID, environment);
        let versions = versions.filter(|v| v[feature_version::DELETED_AT].is_none());
        for version in versions.cloned().collect::<Vec<_>>() {
            self.mark_version(&version);
        }
        self.use_versions(environment, false);
    }

    fn publish(&mut self, uuid: &str, plan: Plan) {
        let writes = self.publication(uuid, plan);
        if !writes.is_empty() {
            self.then(writes);
        }
    }

    fn publication(&self, uuid: &str, plan: Plan) -> Vec<Write> {
        let Some(live_from) = self.moment_of(plan) else { return Vec::new() };
        let set = vec![
            (feature_version::PUBLISHED_AT, Some(self.stamp())),
            (feature_version::LIVE_FROM, Some(live_from)),
            (feature_version::PUBLISHED_BY_ID, Some(self.user.to_string())),
        ];
        vec![Write::Publish { version: Key::Text(uuid.into()), set }]
    }

    fn make(&mut self, flag: Pick, edit: &Edit, plan: Plan, apart: bool) -> Option<()> {
        let live = self.version(flag, |desk, v| {
            let of = |column| int(v, column).unwrap();
            let (feature, environment) =
                (of(feature_version::FEATURE_ID), of(feature_version::ENVIRONMENT_ID));
            live_version(desk.database, feature, environment, Micros(desk.now)) == Some(v)
        })?;
        let feature = int(&live, feature_version::FEATURE_ID)?;
        let environment = int(&live, feature_version::ENVIRONMENT_ID)?;
        let segment = self.segment_of(feature, edit.segment);
        let (uuid, insert) = self.insert_version(feature, environment, &[]);
        let mut writes = vec![insert];
        let mut is_there = false;
        for source in self.states_of_version(&uuid_of(&live)) {
            let own = self.segment_of_state(&source);
            let is_meant = own == segment;
            is_there |= is_meant;
            writes.extend(self.copy(&source, &uuid, if is_meant { Some(edit) } else { None }));
        }
        if let Some(segment) = segment.filter(|_| !is_there && !edit.drops) {
            writes.extend(self.new_override(feature, environment, segment, &uuid, edit));
        }
        self.then(writes);
        let publication = self.publication(&uuid, plan);
        match self.steps.last_mut() {
            Some(last) if !apart => last.extend(publication),
            _ if publication.is_empty() => {}
            _ => self.then(publication),
        }
        Some(())
    }

    /// A segment of a feature's project.
    fn segment_of(&self, feature: i64, pick: Option<Pick>) -> Option<i64> {
        let project = int(self.database.by_id(Table::Feature, feature)?, feature::PROJECT_ID)?;
        let all = self.database.with(Table::Segment, segment::PROJECT_ID, project);
        let all = all.filter(|s| s[segment::DELETED_AT].is_none()).filter_map(|s| int(s, segment::ID));
        nth(&all.collect::<Vec<_>>(), pick?)
    }

    fn segment_of_state(&self, state: &Record) -> Option<i64> {
        let parent = int(state, feature_state::FEATURE_SEGMENT_ID)?;
        int(self.database.by_id(Table::FeatureSegment, parent)?, feature_segment::SEGMENT_ID)
    }

    /// A state of a version copied into another, as an edit then has it.
    fn copy(&mut self, source: &Record, version: &str, edit: Option<&Edit>) -> Vec<Write> {
        let of = |column| int(source, column).unwrap();
        let (id, feature, environment) =
            (of(feature_state::ID), of(feature_state::FEATURE_ID), of(feature_state::ENVIRONMENT_ID));
        let mut writes = Vec::new();
        let mut holder = Holder::Everybody;
        let parent = int(source, feature_state::FEATURE_SEGMENT_ID);
        if let Some(parent) = parent.and_then(|id| self.database.by_id(Table::FeatureSegment, id)).cloned() {
            let segment = int(&parent, feature_segment::SEGMENT_ID).unwrap();
            let mut priority = int(&parent, feature_segment::PRIORITY).unwrap();
            if let Some(edited) = edit.and_then(|edit| edit.priority) {
                priority = edited.into();
            }
            let (parent, insert) = self.feature_segment(feature, environment, segment, priority);
            writes.push(insert);
            holder = Holder::Override(parent);
        }
        let enabled = source[feature_state::ENABLED].as_deref() == Some("t");
        let (copy, state) = self.state(feature, environment, holder, enabled);
        writes.extend(state);
        writes.extend(self.copied_value(id, copy));
        writes.extend(self.copied_variants(id, copy, edit.and_then(|edit| edit.percentage)));
        Desk::into_version(&mut writes, version);
        if let Some(edit) = edit {
            if edit.toggle {
                writes.extend([self.set_enabled(copy, !enabled), self.state_history(copy, "~")]);
            }
            if let Holder::Override(parent) = holder
                && edit.drops
            {
                let key = Key::Int(parent);
                let table = Table::FeatureSegment;
                writes.push(Write::Cascade { table, key, user: self.user, parent_first: true });
            }
            if let Some(content) = edit.content {
                writes.extend(Desk::set_new_value(&writes, content));
            }
        }
        writes
    }

    /// New states and overrides belong to a version.
    fn into_version(writes: &mut [Write], version: &str) {
        let version = Some(version.to_owned());
        let set = [
            (feature_state::LIVE_FROM, None),
            (feature_state::VERSION, None),
            (feature_state::ENVIRONMENT_FEATURE_VERSION_ID, version.clone()),
        ];
        patch(writes, Table::FeatureState, &set);
        let set = [(feature_segment::ENVIRONMENT_FEATURE_VERSION_ID, version)];
        patch(writes, Table::FeatureSegment, &set);
    }

    /// Sets the value that was inserted a moment ago.
    fn set_new_value(writes: &[Write], content: Content) -> Vec<Write> {
        let inserted = writes.iter().filter_map(|write| match write {
            Write::Insert(Table::StateValue, record) => int(record, state_value::ID),
            _ => None,
        });
        inserted.map(|id| Desk::new_content(id, content)).collect()
    }

    pub(super) fn copied_value(&mut self, from: i64, to: i64) -> Vec<Write> {
        let of = self.database.with(Table::StateValue, state_value::FEATURE_STATE_ID, from);
        let old = of.filter(|v| v[state_value::DELETED_AT].is_none()).last().cloned();
        let mut writes = self.value(to, Content::Null);
        if let Some(old) = old {
            let columns = state_value::TYPE..=state_value::STRING_VALUE;
            patch(&mut writes, Table::StateValue, &columns.map(|c| (c, old[c].clone())).collect::<Vec<_>>());
        }
        writes
    }

    pub(super) fn copied_variants(&mut self, from: i64, to: i64, percentage: Option<u8>) -> Vec<Write> {
        let of = self.database.with(Table::MvValue, mv_value::FEATURE_STATE_ID, from);
        let options: Vec<(i64, u8)> = of
            .filter_map(|v| {
                let old = int(v, mv_value::PERCENTAGE_ALLOCATION)?;
                let option = int(v, mv_value::MULTIVARIATE_FEATURE_OPTION_ID)?;
                Some((option, percentage.unwrap_or(u8::try_from(old).ok()?)))
            })
            .collect();
        self.variants(to, &options)
    }

    fn new_override(
        &mut self,
        feature: i64,
        environment: i64,
        segment: i64,
        version: &str,
        edit: &Edit,
    ) -> Vec<Write> {
        let priority = edit.priority.unwrap_or(0).into();
        let (parent, insert) = self.feature_segment(feature, environment, segment, priority);
        let (state, writes) = self.state(feature, environment, Holder::Override(parent), edit.toggle);
        let mut writes = [vec![insert], writes].concat();
        writes.extend(self.value(state, Content::Null));
        writes.extend(self.variants(state, &self.options_of(feature, edit.percentage.unwrap_or(25))));
        Desk::into_version(&mut writes, version);
        if let Some(content) = edit.content {
            writes.extend(Desk::set_new_value(&writes, content));
        }
        writes
    }

    /// In a version that was made before; one transaction after the other.
    fn edit(&mut self, version: &Record, edit: &Edit) {
        let uuid = uuid_of(version);
        let feature = int(version, feature_version::FEATURE_ID).unwrap();
        let environment = int(version, feature_version::ENVIRONMENT_ID).unwrap();
        let segment = self.segment_of(feature, edit.segment);
        let states = self.states_of_version(&uuid);
        let Some(state) = states.iter().find(|s| self.segment_of_state(s) == segment) else {
            if let Some(segment) = segment.filter(|_| !edit.drops) {
                let writes = self.new_override(feature, environment, segment, &uuid, edit);
                self.then(writes);
            }
            return;
        };
        let id = int(state, feature_state::ID).unwrap();
        let parent = int(state, feature_state::FEATURE_SEGMENT_ID);
        if let Some(parent) = parent.filter(|_| edit.drops) {
            return self.cascade(Table::FeatureSegment, parent, true);
        }
        if edit.toggle {
            let enabled = state[feature_state::ENABLED].as_deref() == Some("t");
            self.then(vec![self.set_enabled(id, !enabled), self.state_history(id, "~")]);
        }
        if let Some(content) = edit.content {
            self.then(self.set_value(id, content));
            self.then(vec![self.value_history(id, "~")]);
        }
        if let (Some(parent), Some(priority)) = (parent, edit.priority) {
            let set = vec![(feature_segment::PRIORITY, Some(priority.to_string()))];
            self.then(vec![Write::Update(Table::FeatureSegment, Key::Int(parent), set)]);
        }
        if let Some(percentage) = edit.percentage {
            for variant in self.ids_with(Table::MvValue, mv_value::FEATURE_STATE_ID, id) {
                let set = vec![(mv_value::PERCENTAGE_ALLOCATION, Some(percentage.to_string()))];
                self.then(vec![Write::Update(Table::MvValue, Key::Int(variant), set)]);
            }
        }
    }

    /// The moment that a plan names, as a text of the database; `None` for what stays a draft.
    pub(super) fn moment_of(&self, plan: Plan) -> Option<String> {
        match plan {
            Plan::Draft => None,
            Plan::Now => Some(self.stamp()),
            Plan::Ahead(milliseconds) => Some(format!("@{}", i64::from(milliseconds) * 1_000)),
            Plan::Beside => {
                let next = super::schedule::next_moment(self.database, self.now + SOON);
                Some(next.map_or_else(|| "@1000000".to_owned(), time))
            }
        }
    }
}
