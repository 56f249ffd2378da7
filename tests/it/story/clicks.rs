//! What people do in Flagsmith, each as the list of small transactions that Flagsmith makes of it (`tests/golden/cases`).
//!
//! A click picks its subjects by number among what is there when it begins, so a story that lost some of its clicks is still
//! a story, and shrinks well.

use flagpost::change::Key;
use flagpost::schema::{
    Table, audit_log, environment, environment_webhook, feature, feature_segment, feature_state,
    feature_version, identity, mv_option, mv_value, organisation, organisation_webhook, project, segment,
    state_value,
};

use super::database::{Database, Record, Write, int, record};
use super::desk::{Content, Desk, Holder};
use super::oracle::is_versioned;
use super::play::CLASSIC_URL;
use super::schedule::RequestAction;
use super::versions::VersionAction;

/// Chooses among what is there.
pub(super) type Pick = u8;

#[derive(Debug, Clone)]
pub(super) enum Action {
    CreateFeature {
        project: Pick,
        options: u8,
        content: Content,
        enabled: bool,
    },
    /// State, value and percentages of a flag value in one click; nothing chosen is a save that changes nothing.
    Save {
        state: Pick,
        toggle: bool,
        content: Option<Content>,
        percentage: Option<u8>,
        value_first: bool,
        undo: bool,
    },
    CreateSegmentOverride {
        feature: Pick,
        environment: Pick,
        segment: Pick,
        content: Content,
        enabled: bool,
    },
    CreateIdentityOverride {
        feature: Pick,
        identity: Pick,
        content: Content,
        enabled: bool,
    },
    DeleteSegmentOverride {
        which: Pick,
        parent_first: bool,
    },
    DeleteIdentityOverride {
        which: Pick,
        really: bool,
    },
    DeleteIdentity {
        which: Pick,
        parent_first: bool,
    },
    DeleteSegment {
        which: Pick,
    },
    AddOption {
        feature: Pick,
        content: Content,
        percentage: u8,
    },
    ChangeOption {
        which: Pick,
        content: Content,
    },
    RemoveOption {
        which: Pick,
        parent_first: bool,
    },
    Reorder {
        feature: Pick,
        environment: Pick,
    },
    RenameFeature {
        which: Pick,
        name: u8,
    },
    DeleteFeature {
        which: Pick,
    },
    MarkFeatureBySql {
        which: Pick,
    },
    RestoreFeatureBySql {
        which: Pick,
    },
    HardDeleteFeature {
        which: Pick,
        parent_first: bool,
    },
    CreateEnvironment {
        project: Pick,
        enabled: bool,
        is_versioned: bool,
    },
    CloneEnvironment {
        which: Pick,
    },
    DeleteEnvironment {
        which: Pick,
    },
    DeleteProject {
        which: Pick,
    },
    ToggleAllBySql {
        environment: Pick,
    },
    Webhook {
        environment: Pick,
        is_new: bool,
        delete: bool,
    },
    OrganisationWebhook {
        organisation: Pick,
        is_new: bool,
        delete: bool,
    },
    Audit {
        environment: Pick,
    },
    Version(VersionAction),
    Request(RequestAction),
}

/// What a click leads to.
pub(super) struct Script {
    pub(super) steps: Vec<Vec<Write>>,
    /// An environment that the click makes: nothing else happens meanwhile, and its flag values are nobody's event.
    pub(super) born: Option<i64>,
}

pub(super) fn nth(ids: &[i64], pick: Pick) -> Option<i64> {
    ids.get(usize::from(pick) % ids.len().max(1)).copied()
}

pub(super) fn alive(database: &Database, table: Table, deleted_at: usize) -> Vec<i64> {
    database.rows(table).filter(|r| r[deleted_at].is_none()).filter_map(|r| int(r, 0)).collect()
}

fn ids(database: &Database, table: Table) -> Vec<i64> {
    database.rows(table).filter_map(|record| int(record, 0)).collect()
}

pub(super) fn states(database: &Database, which: impl Fn(&Record) -> bool) -> Vec<i64> {
    let states = database.rows(Table::FeatureState).filter(|s| s[feature_state::DELETED_AT].is_none());
    let outside_versions = states.filter(|s| s[feature_state::ENVIRONMENT_FEATURE_VERSION_ID].is_none());
    outside_versions.filter(|s| which(s)).filter_map(|s| int(s, feature_state::ID)).collect()
}

/// The script of an action; `None` when there is nothing to do it to.
pub(super) fn script(mut desk: Desk<'_>, action: &Action) -> Option<Script> {
    let born = desk.act(action)?;
    Some(Script { steps: desk.steps, born })
}

impl Desk<'_> {
    fn features(&self) -> Vec<i64> {
        alive(self.database, Table::Feature, feature::DELETED_AT)
    }

    fn environments(&self) -> Vec<i64> {
        alive(self.database, Table::Environment, environment::DELETED_AT)
    }

    fn act(&mut self, action: &Action) -> Option<Option<i64>> {
        match *action {
            Action::CreateFeature { project, options, content, enabled } => {
                let projects = alive(self.database, Table::Project, project::DELETED_AT);
                self.create_feature(nth(&projects, project)?, options, content, enabled);
            }
            Action::Save { state, toggle, content, percentage, value_first, undo } => {
                let state = nth(&states(self.database, |_| true), state)?;
                self.save(state, toggle, content, percentage, value_first, undo);
            }
            Action::CreateSegmentOverride { feature, environment, segment, content, enabled } => {
                let feature = nth(&self.features(), feature)?;
                let environment = nth(&self.environments(), environment)?;
                let segment = nth(&alive(self.database, Table::Segment, segment::DELETED_AT), segment)?;
                self.create_segment_override(feature, environment, segment, content, enabled)?;
            }
            Action::CreateIdentityOverride { feature, identity, content, enabled } => {
                let feature = nth(&self.features(), feature)?;
                let identity = nth(&ids(self.database, Table::Identity), identity)?;
                self.create_identity_override(feature, identity, content, enabled)?;
            }
            Action::DeleteSegmentOverride { which, parent_first } => {
                let which = nth(&ids(self.database, Table::FeatureSegment), which)?;
                self.cascade(Table::FeatureSegment, which, parent_first);
            }
            Action::DeleteIdentityOverride { which, really } => {
                let overrides = states(self.database, |s| s[feature_state::IDENTITY_ID].is_some());
                let state = nth(&overrides, which)?;
                if really {
                    self.cascade(Table::FeatureState, state, true);
                } else {
                    self.soft_delete_state(state);
                }
            }
            Action::DeleteIdentity { which, parent_first } => {
                let which = nth(&ids(self.database, Table::Identity), which)?;
                self.cascade(Table::Identity, which, parent_first);
            }
            Action::DeleteSegment { which } => {
                let which = nth(&alive(self.database, Table::Segment, segment::DELETED_AT), which)?;
                self.delete_segment(which);
            }
            Action::AddOption { feature, content, percentage } => {
                let feature = nth(&self.features(), feature)?;
                self.add_option(feature, content, percentage);
            }
            Action::ChangeOption { which, content } => {
                let option = nth(&ids(self.database, Table::MvOption), which)?;
                let columns = content.columns().into_iter().enumerate();
                let set = columns.map(|(i, text)| (mv_option::TYPE + i, text)).collect();
                self.then(vec![Write::Update(Table::MvOption, Key::Int(option), set)]);
            }
            Action::RemoveOption { which, parent_first } => {
                let which = nth(&ids(self.database, Table::MvOption), which)?;
                self.cascade(Table::MvOption, which, parent_first);
            }
            Action::Reorder { feature, environment } => {
                let feature = nth(&self.features(), feature)?;
                let environment = nth(&self.environments(), environment)?;
                self.reorder(feature, environment);
            }
            Action::RenameFeature { which, name } => {
                let which = nth(&self.features(), which)?;
                let set = vec![(feature::NAME, Some(format!("flag_{name}")))];
                self.then(vec![Write::Update(Table::Feature, Key::Int(which), set)]);
            }
            Action::DeleteFeature { which } => {
                let which = nth(&self.features(), which)?;
                self.delete_feature(which);
            }
            Action::MarkFeatureBySql { which } => {
                let which = nth(&self.features(), which)?;
                self.then(vec![Desk::mark(Table::Feature, which, feature::DELETED_AT)]);
            }
            Action::RestoreFeatureBySql { which } => {
                let all = ids(self.database, Table::Feature);
                let set = vec![(feature::DELETED_AT, None)];
                self.then(vec![Write::Update(Table::Feature, Key::Int(nth(&all, which)?), set)]);
            }
            Action::HardDeleteFeature { which, parent_first } => {
                let which = nth(&ids(self.database, Table::Feature), which)?;
                self.cascade(Table::Feature, which, parent_first);
            }
            Action::CreateEnvironment { project, enabled, is_versioned } => {
                let projects = alive(self.database, Table::Project, project::DELETED_AT);
                let project = nth(&projects, project)?;
                return Some(Some(self.create_environment(project, enabled, is_versioned)));
            }
            Action::CloneEnvironment { which } => {
                let which = nth(&self.environments(), which)?;
                return Some(Some(self.clone_environment(which)));
            }
            Action::DeleteEnvironment { which } => {
                let which = nth(&self.environments(), which)?;
                self.then(vec![Desk::mark(Table::Environment, which, environment::DELETED_AT)]);
                self.soft_delete_states_below(which);
            }
            Action::DeleteProject { which } => {
                let which = nth(&alive(self.database, Table::Project, project::DELETED_AT), which)?;
                self.delete_project(which);
            }
            Action::ToggleAllBySql { environment } => {
                let environment = nth(&self.environments(), environment)?;
                self.then(vec![Write::ToggleAll { environment }]);
            }
            Action::Webhook { environment, is_new, delete } => {
                let parent = nth(&self.environments(), environment)?;
                let columns = (environment_webhook::ENVIRONMENT_ID, environment_webhook::ENABLED);
                self.webhook(Table::EnvironmentWebhook, parent, columns, is_new, delete);
            }
            Action::OrganisationWebhook { organisation, is_new, delete } => {
                let all = alive(self.database, Table::Organisation, organisation::DELETED_AT);
                let columns = (organisation_webhook::ORGANISATION_ID, organisation_webhook::ENABLED);
                self.webhook(Table::OrganisationWebhook, nth(&all, organisation)?, columns, is_new, delete);
            }
            Action::Audit { environment } => {
                let environment = nth(&ids(self.database, Table::Environment), environment)?;
                let new = [
                    (audit_log::ID, self.database.next_id(Table::AuditLog).to_string()),
                    (audit_log::CREATED_DATE, "2026-11-24 02:00:00.5+00".to_owned()),
                    (audit_log::LOG, "Something happened.".to_owned()),
                    (audit_log::ENVIRONMENT_ID, environment.to_string()),
                ];
                self.then(vec![Write::Insert(Table::AuditLog, record(Table::AuditLog, &new))]);
            }
            Action::Version(ref action) => self.act_on_versions(action)?,
            Action::Request(ref action) => self.act_on_requests(action)?,
        }
        Some(None)
    }

    pub(super) fn cascade(&mut self, table: Table, id: i64, parent_first: bool) {
        self.then(vec![Write::Cascade { table, key: Key::Int(id), user: self.user, parent_first }]);
    }

    pub(super) fn create_feature(&mut self, project: i64, options: u8, content: Content, enabled: bool) {
        let id = self.database.next_id(Table::Feature);
        let kind = if options == 0 { "STANDARD" } else { "MULTIVARIATE" };
        let new = [
            (feature::ID, id.to_string()),
            (feature::NAME, format!("flag_{id}")),
            (feature::CREATED_DATE, "2026-11-24 02:00:00.5+00".to_owned()),
            (feature::PROJECT_ID, project.to_string()),
            (feature::DEFAULT_ENABLED, if enabled { "t" } else { "f" }.to_owned()),
            (feature::TYPE, kind.to_owned()),
        ];
        // The feature comes with all its states in one transaction, its options one after the other.
        let mut all = vec![Write::Insert(Table::Feature, record(Table::Feature, &new))];
        let environments = self.environments_of(project);
        let mut made = Vec::new();
        for environment in environments {
            let is_versioned = is_versioned(self.database, environment);
            let (state, writes) = self.first_state(id, environment, enabled, is_versioned);
            all.extend(writes);
            all.extend(self.value(state, content));
            made.push(state);
        }
        self.then(all);
        for option in 0..options {
            let (option, insert) = self.option(id, Content::Text(option));
            let mut writes = vec![insert];
            for state in &made {
                writes.extend(self.variants(*state, &[(option, 30)]));
            }
            self.then(writes);
        }
    }

    fn environments_of(&self, project: i64) -> Vec<i64> {
        let all = self.database.with(Table::Environment, environment::PROJECT_ID, project);
        all.filter(|e| e[environment::DELETED_AT].is_none()).filter_map(|e| int(e, 0)).collect()
    }

    fn save(
        &mut self,
        state: i64,
        toggle: bool,
        content: Option<Content>,
        percentage: Option<u8>,
        value_first: bool,
        undo: bool,
    ) {
        let row = self.database.by_id(Table::FeatureState, state).unwrap();
        let was_enabled = row[feature_state::ENABLED].as_deref() == Some("t");
        let value_was = self.value_as_it_is(state);
        let state_part = vec![self.set_enabled(state, was_enabled != toggle), self.state_history(state, "~")];
        let value_part = match content {
            Some(content) => self.set_value(state, content),
            None => self.value_left_out(state),
        };
        if value_first {
            self.then(value_part);
            self.then(vec![self.value_history(state, "~")]);
            self.then(state_part);
        } else {
            self.then(state_part);
            self.then(value_part);
            self.then(vec![self.value_history(state, "~")]);
        }
        if let Some(percentage) = percentage {
            for variant in self.ids_with(Table::MvValue, mv_value::FEATURE_STATE_ID, state) {
                let set = vec![(mv_value::PERCENTAGE_ALLOCATION, Some(percentage.to_string()))];
                let update = Write::Update(Table::MvValue, Key::Int(variant), set);
                self.then(vec![update, self.variant_history(state, "~")]);
            }
        }
        if undo {
            self.then(vec![self.set_enabled(state, was_enabled), self.state_history(state, "~")]);
            self.then(value_was);
        }
    }

    fn create_segment_override(
        &mut self,
        feature: i64,
        environment: i64,
        segment: i64,
        content: Content,
        enabled: bool,
    ) -> Option<()> {
        let project_of = |table, id, column| int(self.database.by_id(table, id)?, column);
        let project = project_of(Table::Feature, feature, feature::PROJECT_ID)?;
        if project_of(Table::Environment, environment, environment::PROJECT_ID)? != project
            || project_of(Table::Segment, segment, segment::PROJECT_ID)? != project
            || is_versioned(self.database, environment)
        {
            return None;
        }
        let priority = i64::try_from(self.overrides_of(feature, environment).len()).ok()?;
        let (id, insert) = self.feature_segment(feature, environment, segment, priority);
        self.then(vec![insert]);
        self.override_state(feature, environment, Holder::Override(id), content, enabled);
        Some(())
    }

    fn create_identity_override(
        &mut self,
        feature: i64,
        identity: i64,
        content: Content,
        enabled: bool,
    ) -> Option<()> {
        let environment = int(self.database.by_id(Table::Identity, identity)?, identity::ENVIRONMENT_ID)?;
        let project = int(self.database.by_id(Table::Environment, environment)?, environment::PROJECT_ID)?;
        if int(self.database.by_id(Table::Feature, feature)?, feature::PROJECT_ID)? != project {
            return None;
        }
        self.override_state(feature, environment, Holder::Identity(identity), content, enabled);
        Some(())
    }

    /// The state is made with an empty value, which gets its content two transactions later.
    fn override_state(
        &mut self,
        feature: i64,
        environment: i64,
        holder: Holder,
        content: Content,
        enabled: bool,
    ) {
        let (state, mut writes) = self.state(feature, environment, holder, enabled);
        writes.extend(self.value(state, Content::Null));
        let Some(Write::Insert(_, value)) = writes.get(2) else { return };
        let value = int(value, state_value::ID).unwrap();
        self.then(writes);
        self.then(vec![Desk::new_content(value, content)]);
        self.then(vec![self.value_history(state, "~")]);
        let variants = self.variants(state, &self.options_of(feature, 20));
        if !variants.is_empty() {
            self.then(variants);
        }
    }

    fn overrides_of(&self, feature: i64, environment: i64) -> Vec<i64> {
        let all = self.database.with(Table::FeatureSegment, feature_segment::FEATURE_ID, feature);
        let here = all.filter(|o| {
            int(o, feature_segment::ENVIRONMENT_ID) == Some(environment)
                && o[feature_segment::ENVIRONMENT_FEATURE_VERSION_ID].is_none()
        });
        here.filter_map(|o| int(o, 0)).collect()
    }

    pub(super) fn soft_delete_state(&mut self, state: i64) {
        self.then(vec![Desk::mark(Table::FeatureState, state, feature_state::DELETED_AT)]);
        let values = self.ids_with(Table::StateValue, state_value::FEATURE_STATE_ID, state);
        let marks = values.into_iter().map(|v| Desk::mark(Table::StateValue, v, state_value::DELETED_AT));
        let marks = marks.collect();
        self.then(marks);
        self.then(vec![self.value_history(state, "-")]);
        let variants = self.ids_with(Table::MvValue, mv_value::FEATURE_STATE_ID, state);
        if !variants.is_empty() {
            let deletes = variants.into_iter().map(|v| Write::Delete(Table::MvValue, Key::Int(v)));
            let deletes = deletes.chain([self.variant_history(state, "-")]).collect();
            self.then(deletes);
        }
        self.then(vec![self.state_history(state, "-")]);
    }

    fn delete_feature(&mut self, feature: i64) {
        self.then(vec![Desk::mark(Table::Feature, feature, feature::DELETED_AT)]);
        for state in self.states_of(feature) {
            self.delete_below(&state);
        }
        for option in self.ids_with(Table::MvOption, mv_option::FEATURE_ID, feature) {
            self.cascade(Table::MvOption, option, false);
        }
        let versions = self.database.with(Table::FeatureVersion, feature_version::FEATURE_ID, feature);
        let versions = versions.filter(|v| v[feature_version::DELETED_AT].is_none());
        for version in versions.cloned().collect::<Vec<_>>() {
            self.mark_version(&version);
        }
    }

    /// Segment overrides go by real deletes, everything else is marked.
    pub(super) fn delete_below(&mut self, state: &Record) {
        match int(state, feature_state::FEATURE_SEGMENT_ID) {
            Some(id) => self.cascade(Table::FeatureSegment, id, true),
            None => self.soft_delete_state(int(state, feature_state::ID).unwrap()),
        }
    }

    fn delete_segment(&mut self, segment: i64) {
        for id in self.ids_with(Table::FeatureSegment, feature_segment::SEGMENT_ID, segment) {
            self.cascade(Table::FeatureSegment, id, true);
        }
        self.then(vec![Desk::mark(Table::Segment, segment, segment::DELETED_AT)]);
    }

    fn soft_delete_states_below(&mut self, environment: i64) {
        let all = self.database.with(Table::FeatureState, feature_state::ENVIRONMENT_ID, environment);
        let states: Vec<Record> = all.filter(|s| s[feature_state::DELETED_AT].is_none()).cloned().collect();
        for state in states {
            self.delete_below(&state);
        }
    }

    fn delete_project(&mut self, project: i64) {
        self.then(vec![Desk::mark(Table::Project, project, project::DELETED_AT)]);
        for environment in self.environments_of(project) {
            self.then(vec![Desk::mark(Table::Environment, environment, environment::DELETED_AT)]);
            self.soft_delete_states_below(environment);
        }
    }

    fn add_option(&mut self, feature: i64, content: Content, percentage: u8) {
        let (option, insert) = self.option(feature, content);
        self.then(vec![insert]);
        for state in self.states_of(feature) {
            let writes = self.variants(int(&state, feature_state::ID).unwrap(), &[(option, percentage)]);
            self.then(writes);
        }
    }

    fn reorder(&mut self, feature: i64, environment: i64) {
        let overrides = self.overrides_of(feature, environment);
        let count = overrides.len();
        for (i, id) in overrides.into_iter().enumerate() {
            let priority = self.database.by_id(Table::FeatureSegment, id).unwrap()[feature_segment::PRIORITY]
                .as_deref()
                .map_or(0, |p| p.parse().unwrap_or(0));
            let to = (priority + 1) % count.max(1);
            for priority in [i + count, to] {
                let set = vec![(feature_segment::PRIORITY, Some(priority.to_string()))];
                self.then(vec![Write::Update(Table::FeatureSegment, Key::Int(id), set)]);
            }
        }
    }

    fn webhook(&mut self, table: Table, parent: i64, columns: (usize, usize), is_new: bool, delete: bool) {
        let (parent_column, enabled) = columns;
        let last = self.ids_with(table, parent_column, parent).pop();
        let Some(id) = last.filter(|_| !is_new) else {
            let id = self.database.next_id(table);
            let url = if id % 2 == 0 { CLASSIC_URL.to_owned() } else { format!("http://{id}.example.com/") };
            let new = [
                (0, id.to_string()),
                (environment_webhook::URL, url),
                (parent_column, parent.to_string()),
                (enabled, "t".to_owned()),
            ];
            return self.then(vec![Write::Insert(table, record(table, &new))]);
        };
        if delete {
            return self.then(vec![Write::Delete(table, Key::Int(id))]);
        }
        let was_enabled = self.database.by_id(table, id).unwrap()[enabled].as_deref() == Some("t");
        let set = vec![(enabled, Some(if was_enabled { "f" } else { "t" }.to_owned()))];
        self.then(vec![Write::Update(table, Key::Int(id), set)]);
    }
}
