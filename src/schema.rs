//! The Flagsmith tables that flagpost reads: names, columns, keys, and which of them a version may lack.
//!
//! Only the columns listed here are published, decoded and kept. A column that is missing in the database reads as NULL
//! in every [`crate::change::Row`], unless it is *required*: then flagpost stops safely, before anything is confirmed.
//! Source: `tests/golden/schema.json` (Flagsmith 2.265.0) and `tests/golden/schema-2020.json`; of tags, which neither has,
//! Flagsmith's Django models.

/// Whether flagpost can do without a table or a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Without it nothing right can be said: flagpost refuses to run.
    Required,
    /// Some version of Flagsmith lacks it; it reads as NULL there.
    Optional,
}

/// One column that flagpost reads.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its name in PostgreSQL.
    pub name: &'static str,
    /// Whether flagpost can do without.
    pub need: Need,
}

const fn required(name: &'static str) -> Column {
    Column { name, need: Need::Required }
}

const fn optional(name: &'static str) -> Column {
    Column { name, need: Need::Optional }
}

/// A table that flagpost reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Organisations: whose mail address is told of failures.
    Organisation,
    /// Projects.
    Project,
    /// Environments.
    Environment,
    /// Users: without anything but id, e-mail, names and what an audit body shows.
    User,
    /// Master API keys. The id ends in the key's hash: it is replaced by a digest before it enters the program.
    ApiKey,
    /// Endpoints of an environment.
    EnvironmentWebhook,
    /// Endpoints of an organisation.
    OrganisationWebhook,
    /// Segments.
    Segment,
    /// Features.
    Feature,
    /// Tags of a project: only endpoints of the configuration ask for them.
    Tag,
    /// Which feature has which tag.
    FeatureTag,
    /// Variants of a multivariate feature.
    MvOption,
    /// Versions of a feature in a versioned environment.
    FeatureVersion,
    /// Change requests.
    ChangeRequest,
    /// Segment overrides: which segment, with which priority.
    FeatureSegment,
    /// Flag states.
    FeatureState,
    /// Values of flag states.
    StateValue,
    /// Percentages of the variants in a flag state.
    MvValue,
    /// Identities, kept only where an override names them.
    Identity,
    /// History of flag states: who and when.
    StateHistory,
    /// History of values: who and when.
    ValueHistory,
    /// History of percentages: who and when.
    MvHistory,
    /// History of environments: an audit row about an environment shows it as its history record has it.
    EnvironmentHistory,
    /// The audit log.
    AuditLog,
}

impl Table {
    /// All tables, in the order in which a snapshot loads them.
    pub const ALL: &'static [Table] = &[
        Table::Organisation,
        Table::Project,
        Table::Environment,
        Table::User,
        Table::ApiKey,
        Table::EnvironmentWebhook,
        Table::OrganisationWebhook,
        Table::Segment,
        Table::Feature,
        Table::Tag,
        Table::FeatureTag,
        Table::MvOption,
        Table::FeatureVersion,
        Table::ChangeRequest,
        Table::FeatureSegment,
        Table::FeatureState,
        Table::StateValue,
        Table::MvValue,
        Table::Identity,
        Table::StateHistory,
        Table::ValueHistory,
        Table::MvHistory,
        Table::EnvironmentHistory,
        Table::AuditLog,
    ];

    /// The table's name in PostgreSQL.
    pub fn name(self) -> &'static str {
        match self {
            Table::Organisation => "organisations_organisation",
            Table::Project => "projects_project",
            Table::Environment => "environments_environment",
            Table::User => "users_ffadminuser",
            Table::ApiKey => "api_keys_masterapikey",
            Table::EnvironmentWebhook => "environments_webhook",
            Table::OrganisationWebhook => "organisations_organisationwebhook",
            Table::Segment => "segments_segment",
            Table::Feature => "features_feature",
            Table::Tag => "tags_tag",
            Table::FeatureTag => "features_feature_tags",
            Table::MvOption => "multivariate_multivariatefeatureoption",
            Table::FeatureVersion => "feature_versioning_environmentfeatureversion",
            Table::ChangeRequest => "workflows_core_changerequest",
            Table::FeatureSegment => "features_featuresegment",
            Table::FeatureState => "features_featurestate",
            Table::StateValue => "features_featurestatevalue",
            Table::MvValue => "multivariate_multivariatefeaturestatevalue",
            Table::Identity => "environments_identity",
            Table::StateHistory => "features_historicalfeaturestate",
            Table::ValueHistory => "features_historicalfeaturestatevalue",
            Table::MvHistory => "multivariate_historicalmultivariatefeaturestatevalue",
            Table::EnvironmentHistory => "environments_historicalenvironment",
            Table::AuditLog => "audit_auditlog",
        }
    }

    /// The table of this name, if flagpost reads it.
    pub fn by_name(name: &str) -> Option<Table> {
        Table::ALL.iter().copied().find(|t| t.name() == name)
    }

    /// The columns that flagpost reads; the first is the primary key. A row's fields are in this order.
    pub fn columns(self) -> &'static [Column] {
        match self {
            Table::Organisation => organisation::COLUMNS,
            Table::Project => project::COLUMNS,
            Table::Environment => environment::COLUMNS,
            Table::User => user::COLUMNS,
            Table::ApiKey => api_key::COLUMNS,
            Table::EnvironmentWebhook => environment_webhook::COLUMNS,
            Table::OrganisationWebhook => organisation_webhook::COLUMNS,
            Table::Segment => segment::COLUMNS,
            Table::Feature => feature::COLUMNS,
            Table::Tag => tag::COLUMNS,
            Table::FeatureTag => feature_tag::COLUMNS,
            Table::MvOption => mv_option::COLUMNS,
            Table::FeatureVersion => feature_version::COLUMNS,
            Table::ChangeRequest => change_request::COLUMNS,
            Table::FeatureSegment => feature_segment::COLUMNS,
            Table::FeatureState => feature_state::COLUMNS,
            Table::StateValue => state_value::COLUMNS,
            Table::MvValue => mv_value::COLUMNS,
            Table::Identity => identity::COLUMNS,
            Table::StateHistory => state_history::COLUMNS,
            Table::ValueHistory => value_history::COLUMNS,
            Table::MvHistory => mv_history::COLUMNS,
            Table::EnvironmentHistory => environment_history::COLUMNS,
            Table::AuditLog => audit_log::COLUMNS,
        }
    }

    /// Whether flagpost can do without the table.
    pub fn need(self) -> Need {
        match self {
            Table::ApiKey
            | Table::Tag
            | Table::FeatureTag
            | Table::MvOption
            | Table::FeatureVersion
            | Table::ChangeRequest
            | Table::MvValue
            | Table::ValueHistory
            | Table::MvHistory
            | Table::EnvironmentHistory => Need::Optional,
            _ => Need::Required,
        }
    }

    /// Whether the mirror keeps the rows; history and audit rows only pass through.
    pub fn is_kept(self) -> bool {
        !matches!(self, Table::StateHistory | Table::ValueHistory | Table::MvHistory | Table::AuditLog)
    }

    /// Indices of columns that hold (or refer to) a master API key's id, which ends in the key's hash. The source
    /// replaces such a value by its digest, so that no hash of a credential ever enters the program's memory or files.
    pub fn digested(self) -> &'static [usize] {
        match self {
            Table::ApiKey => &[api_key::ID],
            Table::FeatureVersion => &[feature_version::PUBLISHED_BY_API_KEY_ID],
            Table::StateHistory => &[state_history::MASTER_API_KEY_ID],
            Table::ValueHistory => &[value_history::MASTER_API_KEY_ID],
            Table::MvHistory => &[mv_history::MASTER_API_KEY_ID],
            _ => &[],
        }
    }

    /// Indices of columns that are sealed before they are written to the ledger file: secrets, and URLs, which can
    /// carry credentials.
    pub fn sealed(self) -> &'static [usize] {
        match self {
            Table::EnvironmentWebhook => &[environment_webhook::URL, environment_webhook::SECRET],
            Table::OrganisationWebhook => &[organisation_webhook::URL, organisation_webhook::SECRET],
            _ => &[],
        }
    }
}

/// What this version of Flagsmith can do, as far as the mirror's answers depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Capabilities {
    /// `features_featurestate` has `version` and `live_from`: a state without them is a draft.
    pub state_versions: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Capabilities { state_versions: true }
    }
}

/// Columns of `organisations_organisation`.
pub mod organisation {
    use super::{Column, optional, required};

    /// `id`
    pub const ID: usize = 0;
    /// `name`
    pub const NAME: usize = 1;
    /// `webhook_notification_email`
    pub const WEBHOOK_NOTIFICATION_EMAIL: usize = 2;
    /// `deleted_at`
    pub const DELETED_AT: usize = 3;

    pub(super) const COLUMNS: &[Column] =
        &[required("id"), optional("name"), optional("webhook_notification_email"), optional("deleted_at")];
}

/// Columns of `projects_project`.
pub mod project {
    use super::{Column, optional, required};

    /// `id`
    pub const ID: usize = 0;
    /// `name`
    pub const NAME: usize = 1;
    /// `organisation_id`
    pub const ORGANISATION_ID: usize = 2;
    /// `hide_disabled_flags`
    pub const HIDE_DISABLED_FLAGS: usize = 3;
    /// `enable_dynamo_db`
    pub const ENABLE_DYNAMO_DB: usize = 4;
    /// `uuid`
    pub const UUID: usize = 5;
    /// `prevent_flag_defaults`
    pub const PREVENT_FLAG_DEFAULTS: usize = 6;
    /// `enable_realtime_updates`
    pub const ENABLE_REALTIME_UPDATES: usize = 7;
    /// `only_allow_lower_case_feature_names`
    pub const ONLY_ALLOW_LOWER_CASE_FEATURE_NAMES: usize = 8;
    /// `feature_name_regex`
    pub const FEATURE_NAME_REGEX: usize = 9;
    /// `deleted_at`
    pub const DELETED_AT: usize = 10;
    /// `identity_overrides_v2_migration_status`
    pub const IDENTITY_OVERRIDES_V2_MIGRATION_STATUS: usize = 11;
    /// `stale_flags_limit_days`
    pub const STALE_FLAGS_LIMIT_DAYS: usize = 12;
    /// `minimum_change_request_approvals`
    pub const MINIMUM_CHANGE_REQUEST_APPROVALS: usize = 13;
    /// `enforce_feature_owners`
    pub const ENFORCE_FEATURE_OWNERS: usize = 14;

    pub(super) const COLUMNS: &[Column] = &[
        required("id"),
        required("name"),
        required("organisation_id"),
        optional("hide_disabled_flags"),
        optional("enable_dynamo_db"),
        optional("uuid"),
        optional("prevent_flag_defaults"),
        optional("enable_realtime_updates"),
        optional("only_allow_lower_case_feature_names"),
        optional("feature_name_regex"),
        optional("deleted_at"),
        optional("identity_overrides_v2_migration_status"),
        optional("stale_flags_limit_days"),
        optional("minimum_change_request_approvals"),
        optional("enforce_feature_owners"),
    ];
}

/// Columns of `environments_environment`.
pub mod environment {
    use super::{Column, optional, required};

    /// `id`
    pub const ID: usize = 0;
    /// `name`
    pub const NAME: usize = 1;
    /// `api_key`
    pub const API_KEY: usize = 2;
    /// `project_id`
    pub const PROJECT_ID: usize = 3;
    /// `minimum_change_request_approvals`
    pub const MINIMUM_CHANGE_REQUEST_APPROVALS: usize = 4;
    /// `allow_client_traits`
    pub const ALLOW_CLIENT_TRAITS: usize = 5;
    /// `description`
    pub const DESCRIPTION: usize = 6;
    /// `banner_colour`
    pub const BANNER_COLOUR: usize = 7;
    /// `banner_text`
    pub const BANNER_TEXT: usize = 8;
    /// `deleted_at`
    pub const DELETED_AT: usize = 9;
    /// `hide_disabled_flags`
    pub const HIDE_DISABLED_FLAGS: usize = 10;
    /// `use_mv_v2_evaluation`
    pub const USE_MV_V2_EVALUATION: usize = 11;
    /// `hide_sensitive_data`
    pub const HIDE_SENSITIVE_DATA: usize = 12;
    /// `use_v2_feature_versioning`
    pub const USE_V2_FEATURE_VERSIONING: usize = 13;
    /// `use_identity_overrides_in_local_eval`
    pub const USE_IDENTITY_OVERRIDES_IN_LOCAL_EVAL: usize = 14;
    /// `is_creating`
    pub const IS_CREATING: usize = 15;
    /// `uuid`
    pub const UUID: usize = 16;

    pub(super) const COLUMNS: &[Column] = &[
        required("id"),
        required("name"),
        optional("api_key"),
        required("project_id"),
        optional("minimum_change_request_approvals"),
        optional("allow_client_traits"),
        optional("description"),
        optional("banner_colour"),
        optional("banner_text"),
        optional("deleted_at"),
        optional("hide_disabled_flags"),
        optional("use_mv_v2_evaluation"),
        optional("hide_sensitive_data"),
        optional("use_v2_feature_versioning"),
        optional("use_identity_overrides_in_local_eval"),
        optional("is_creating"),
        optional("uuid"),
    ];
}

/// Columns of `users_ffadminuser`.
pub mod user {
    use super::{Column, optional, required};

    /// `id`
    pub const ID: usize = 0;
    /// `email`
    pub const EMAIL: usize = 1;
    /// `first_name`
    pub const FIRST_NAME: usize = 2;
    /// `last_name`
    pub const LAST_NAME: usize = 3;
    /// `last_login`
    pub const LAST_LOGIN: usize = 4;
    /// `uuid`
    pub const UUID: usize = 5;

    pub(super) const COLUMNS: &[Column] = &[
        required("id"),
        required("email"),
        required("first_name"),
        required("last_name"),
        optional("last_login"),
        optional("uuid"),
    ];
}

/// Columns of `api_keys_masterapikey`.
pub mod api_key {
    use super::{Column, required};

    /// `id`
    pub const ID: usize = 0;
    /// `name`
    pub const NAME: usize = 1;

    pub(super) const COLUMNS: &[Column] = &[required("id"), required("name")];
}

/// Columns of `environments_webhook`.
pub mod environment_webhook {
    use super::{Column, optional, required};

    /// `id`
    pub const ID: usize = 0;
    /// `url`
    pub const URL: usize = 1;
    /// `environment_id`
    pub const ENVIRONMENT_ID: usize = 2;
    /// `enabled`
    pub const ENABLED: usize = 3;
    /// `secret`
    pub const SECRET: usize = 4;

    pub(super) const COLUMNS: &[Column] = &[
        required("id"),
        required("url"),
        required("environment_id"),
        required("enabled"),
        optional("secret"),
    ];
}

/// Columns of `organisations_organisationwebhook`.
pub mod organisation_webhook {
    use super::{Column, optional, required};

    /// `id`
    pub const ID: usize = 0;
    /// `url`
    pub const URL: usize = 1;
    /// `organisation_id`
    pub const ORGANISATION_ID: usize = 2;
    /// `enabled`
    pub const ENABLED: usize = 3;
    /// `secret`
    pub const SECRET: usize = 4;

    pub(super) const COLUMNS: &[Column] = &[
        required("id"),
        required("url"),
        required("organisation_id"),
        required("enabled"),
        optional("secret"),
    ];
}

/// Columns of `segments_segment`.
pub mod segment {
    use super::{Column, optional, required};

    /// `id`
    pub const ID: usize = 0;
    /// `name`
    pub const NAME: usize = 1;
    /// `description`
    pub const DESCRIPTION: usize = 2;
    /// `project_id`
    pub const PROJECT_ID: usize = 3;
    /// `deleted_at`
    pub const DELETED_AT: usize = 4;

    pub(super) const COLUMNS: &[Column] = &[
        required("id"),
        required("name"),
        optional("description"),
        required("project_id"),
        optional("deleted_at"),
    ];
}

/// Columns of `features_feature`.
pub mod feature {
    use super::{Column, optional, required};

    /// `id`
    pub const ID: usize = 0;
    /// `name`
    pub const NAME: usize = 1;
    /// `created_date`
    pub const CREATED_DATE: usize = 2;
    /// `initial_value`
    pub const INITIAL_VALUE: usize = 3;
    /// `description`
    pub const DESCRIPTION: usize = 4;
    /// `project_id`
    pub const PROJECT_ID: usize = 5;
    /// `default_enabled`
    pub const DEFAULT_ENABLED: usize = 6;
    /// `type`
    pub const TYPE: usize = 7;
    /// `deleted_at`
    pub const DELETED_AT: usize = 8;

    pub(super) const COLUMNS: &[Column] = &[
        required("id"),
        required("name"),
        required("created_date"),
        required("initial_value"),
        required("description"),
        required("project_id"),
        required("default_enabled"),
        required("type"),
        optional("deleted_at"),
    ];
}

/// Columns of `tags_tag` (Flagsmith's app `projects.tags`).
pub mod tag {
    use super::{Column, required};

    /// `id`
    pub const ID: usize = 0;
    /// `label`
    pub const LABEL: usize = 1;

    pub(super) const COLUMNS: &[Column] = &[required("id"), required("label")];
}

/// Columns of `features_feature_tags`, which Django made for a many-to-many field.
pub mod feature_tag {
    use super::{Column, required};

    /// `id`
    pub const ID: usize = 0;
    /// `feature_id`
    pub const FEATURE_ID: usize = 1;
    /// `tag_id`
    pub const TAG_ID: usize = 2;

    pub(super) const COLUMNS: &[Column] = &[required("id"), required("feature_id"), required("tag_id")];
}

/// Columns of `multivariate_multivariatefeatureoption`.
pub mod mv_option {
    use super::{Column, required};

    /// `id`
    pub const ID: usize = 0;
    /// `type`
    pub const TYPE: usize = 1;
    /// `boolean_value`
    pub const BOOLEAN_VALUE: usize = 2;
    /// `integer_value`
    pub const INTEGER_VALUE: usize = 3;
    /// `string_value`
    pub const STRING_VALUE: usize = 4;
    /// `feature_id`
    pub const FEATURE_ID: usize = 5;

    pub(super) const COLUMNS: &[Column] = &[
        required("id"),
        required("type"),
        required("boolean_value"),
        required("integer_value"),
        required("string_value"),
        required("feature_id"),
    ];
}

/// Columns of `feature_versioning_environmentfeatureversion`.
pub mod feature_version {
    use super::{Column, optional, required};

    /// `uuid`
    pub const UUID: usize = 0;
    /// `deleted_at`
    pub const DELETED_AT: usize = 1;
    /// `published_at`
    pub const PUBLISHED_AT: usize = 2;
    /// `live_from`
    pub const LIVE_FROM: usize = 3;
    /// `change_request_id`
    pub const CHANGE_REQUEST_ID: usize = 4;
    /// `environment_id`
    pub const ENVIRONMENT_ID: usize = 5;
    /// `feature_id`
    pub const FEATURE_ID: usize = 6;
    /// `published_by_id`
    pub const PUBLISHED_BY_ID: usize = 7;
    /// `published_by_api_key_id`
    pub const PUBLISHED_BY_API_KEY_ID: usize = 8;

    pub(super) const COLUMNS: &[Column] = &[
        required("uuid"),
        optional("deleted_at"),
        required("published_at"),
        required("live_from"),
        optional("change_request_id"),
        required("environment_id"),
        required("feature_id"),
        optional("published_by_id"),
        optional("published_by_api_key_id"),
    ];
}

/// Columns of `workflows_core_changerequest`.
pub mod change_request {
    use super::{Column, optional, required};

    /// `id`
    pub const ID: usize = 0;
    /// `title`
    pub const TITLE: usize = 1;
    /// `deleted_at`
    pub const DELETED_AT: usize = 2;
    /// `committed_at`
    pub const COMMITTED_AT: usize = 3;
    /// `committed_by_id`
    pub const COMMITTED_BY_ID: usize = 4;
    /// `environment_id`
    pub const ENVIRONMENT_ID: usize = 5;
    /// `uuid`
    pub const UUID: usize = 6;

    pub(super) const COLUMNS: &[Column] = &[
        required("id"),
        optional("title"),
        optional("deleted_at"),
        required("committed_at"),
        optional("committed_by_id"),
        optional("environment_id"),
        optional("uuid"),
    ];
}

/// Columns of `features_featuresegment`.
pub mod feature_segment {
    use super::{Column, optional, required};

    /// `id`
    pub const ID: usize = 0;
    /// `priority`
    pub const PRIORITY: usize = 1;
    /// `feature_id`
    pub const FEATURE_ID: usize = 2;
    /// `segment_id`
    pub const SEGMENT_ID: usize = 3;
    /// `environment_id`
    pub const ENVIRONMENT_ID: usize = 4;
    /// `environment_feature_version_id`
    pub const ENVIRONMENT_FEATURE_VERSION_ID: usize = 5;
    /// `value`; only in old databases, where the override's state has no value of its own.
    pub const VALUE: usize = 6;
    /// `value_type`; `int`, `bool`, or text.
    pub const VALUE_TYPE: usize = 7;

    pub(super) const COLUMNS: &[Column] = &[
        required("id"),
        required("priority"),
        required("feature_id"),
        required("segment_id"),
        optional("environment_id"),
        optional("environment_feature_version_id"),
        optional("value"),
        optional("value_type"),
    ];
}

/// Columns of `features_featurestate`.
pub mod feature_state {
    use super::{Column, optional, required};

    /// `id`
    pub const ID: usize = 0;
    /// `enabled`
    pub const ENABLED: usize = 1;
    /// `environment_id`
    pub const ENVIRONMENT_ID: usize = 2;
    /// `feature_id`
    pub const FEATURE_ID: usize = 3;
    /// `identity_id`
    pub const IDENTITY_ID: usize = 4;
    /// `feature_segment_id`
    pub const FEATURE_SEGMENT_ID: usize = 5;
    /// `live_from`
    pub const LIVE_FROM: usize = 6;
    /// `version`
    pub const VERSION: usize = 7;
    /// `change_request_id`
    pub const CHANGE_REQUEST_ID: usize = 8;
    /// `deleted_at`
    pub const DELETED_AT: usize = 9;
    /// `environment_feature_version_id`
    pub const ENVIRONMENT_FEATURE_VERSION_ID: usize = 10;

    pub(super) const COLUMNS: &[Column] = &[
        required("id"),
        required("enabled"),
        required("environment_id"),
        required("feature_id"),
        required("identity_id"),
        required("feature_segment_id"),
        optional("live_from"),
        optional("version"),
        optional("change_request_id"),
        optional("deleted_at"),
        optional("environment_feature_version_id"),
    ];
}

/// Columns of `features_featurestatevalue`.
pub mod state_value {
    use super::{Column, optional, required};

    /// `id`
    pub const ID: usize = 0;
    /// `type`
    pub const TYPE: usize = 1;
    /// `boolean_value`
    pub const BOOLEAN_VALUE: usize = 2;
    /// `integer_value`
    pub const INTEGER_VALUE: usize = 3;
    /// `string_value`
    pub const STRING_VALUE: usize = 4;
    /// `feature_state_id`
    pub const FEATURE_STATE_ID: usize = 5;
    /// `deleted_at`
    pub const DELETED_AT: usize = 6;

    pub(super) const COLUMNS: &[Column] = &[
        required("id"),
        required("type"),
        required("boolean_value"),
        required("integer_value"),
        required("string_value"),
        required("feature_state_id"),
        optional("deleted_at"),
    ];
}

/// Columns of `multivariate_multivariatefeaturestatevalue`.
pub mod mv_value {
    use super::{Column, required};

    /// `id`
    pub const ID: usize = 0;
    /// `percentage_allocation`
    pub const PERCENTAGE_ALLOCATION: usize = 1;
    /// `feature_state_id`
    pub const FEATURE_STATE_ID: usize = 2;
    /// `multivariate_feature_option_id`
    pub const MULTIVARIATE_FEATURE_OPTION_ID: usize = 3;

    pub(super) const COLUMNS: &[Column] = &[
        required("id"),
        required("percentage_allocation"),
        required("feature_state_id"),
        required("multivariate_feature_option_id"),
    ];
}

/// Columns of `environments_identity`.
pub mod identity {
    use super::{Column, required};

    /// `id`
    pub const ID: usize = 0;
    /// `identifier`
    pub const IDENTIFIER: usize = 1;
    /// `environment_id`
    pub const ENVIRONMENT_ID: usize = 2;

    pub(super) const COLUMNS: &[Column] =
        &[required("id"), required("identifier"), required("environment_id")];
}

/// Columns of `features_historicalfeaturestate`.
pub mod state_history {
    use super::{Column, optional, required};

    /// `history_id`
    pub const HISTORY_ID: usize = 0;
    /// `id`
    pub const ID: usize = 1;
    /// `history_date`
    pub const HISTORY_DATE: usize = 2;
    /// `history_type`
    pub const HISTORY_TYPE: usize = 3;
    /// `history_user_id`
    pub const HISTORY_USER_ID: usize = 4;
    /// `master_api_key_id`
    pub const MASTER_API_KEY_ID: usize = 5;

    pub(super) const COLUMNS: &[Column] = &[
        required("history_id"),
        required("id"),
        required("history_date"),
        required("history_type"),
        required("history_user_id"),
        optional("master_api_key_id"),
    ];
}

/// Columns of `features_historicalfeaturestatevalue`.
pub mod value_history {
    use super::{Column, optional, required};

    /// `history_id`
    pub const HISTORY_ID: usize = 0;
    /// `feature_state_id`
    pub const FEATURE_STATE_ID: usize = 1;
    /// `history_date`
    pub const HISTORY_DATE: usize = 2;
    /// `history_type`
    pub const HISTORY_TYPE: usize = 3;
    /// `history_user_id`
    pub const HISTORY_USER_ID: usize = 4;
    /// `master_api_key_id`
    pub const MASTER_API_KEY_ID: usize = 5;

    pub(super) const COLUMNS: &[Column] = &[
        required("history_id"),
        required("feature_state_id"),
        required("history_date"),
        required("history_type"),
        required("history_user_id"),
        optional("master_api_key_id"),
    ];
}

/// Columns of `multivariate_historicalmultivariatefeaturestatevalue`.
pub mod mv_history {
    use super::{Column, optional, required};

    /// `history_id`
    pub const HISTORY_ID: usize = 0;
    /// `feature_state_id`
    pub const FEATURE_STATE_ID: usize = 1;
    /// `history_date`
    pub const HISTORY_DATE: usize = 2;
    /// `history_type`
    pub const HISTORY_TYPE: usize = 3;
    /// `history_user_id`
    pub const HISTORY_USER_ID: usize = 4;
    /// `master_api_key_id`
    pub const MASTER_API_KEY_ID: usize = 5;

    pub(super) const COLUMNS: &[Column] = &[
        required("history_id"),
        required("feature_state_id"),
        required("history_date"),
        required("history_type"),
        required("history_user_id"),
        optional("master_api_key_id"),
    ];
}

/// Columns of `environments_historicalenvironment`; but for the first they are columns of `environments_environment`.
pub mod environment_history {
    use super::{Column, optional, required};

    /// `history_id`
    pub const HISTORY_ID: usize = 0;
    /// `id`
    pub const ID: usize = 1;

    pub(super) const COLUMNS: &[Column] = &[
        required("history_id"),
        required("id"),
        optional("name"),
        optional("api_key"),
        optional("project_id"),
        optional("minimum_change_request_approvals"),
        optional("allow_client_traits"),
        optional("description"),
        optional("banner_colour"),
        optional("banner_text"),
        optional("hide_disabled_flags"),
        optional("use_mv_v2_evaluation"),
        optional("hide_sensitive_data"),
        optional("use_v2_feature_versioning"),
        optional("use_identity_overrides_in_local_eval"),
        optional("is_creating"),
    ];
}

/// Columns of `audit_auditlog`.
pub mod audit_log {
    use super::{Column, optional, required};

    /// `id`
    pub const ID: usize = 0;
    /// `created_date`
    pub const CREATED_DATE: usize = 1;
    /// `log`
    pub const LOG: usize = 2;
    /// `author_id`
    pub const AUTHOR_ID: usize = 3;
    /// `environment_id`
    pub const ENVIRONMENT_ID: usize = 4;
    /// `related_object_id`
    pub const RELATED_OBJECT_ID: usize = 5;
    /// `related_object_type`
    pub const RELATED_OBJECT_TYPE: usize = 6;
    /// `project_id`
    pub const PROJECT_ID: usize = 7;
    /// `is_system_event`
    pub const IS_SYSTEM_EVENT: usize = 8;
    /// `related_object_uuid`
    pub const RELATED_OBJECT_UUID: usize = 9;
    /// `history_record_class_path`
    pub const HISTORY_RECORD_CLASS_PATH: usize = 10;
    /// `history_record_id`
    pub const HISTORY_RECORD_ID: usize = 11;

    pub(super) const COLUMNS: &[Column] = &[
        required("id"),
        required("created_date"),
        required("log"),
        required("author_id"),
        required("environment_id"),
        required("related_object_id"),
        required("related_object_type"),
        required("project_id"),
        optional("is_system_event"),
        optional("related_object_uuid"),
        optional("history_record_class_path"),
        optional("history_record_id"),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_name_their_columns() {
        for (table, index, name) in [
            (Table::FeatureState, feature_state::FEATURE_SEGMENT_ID, "feature_segment_id"),
            (Table::Environment, environment::IS_CREATING, "is_creating"),
            (Table::AuditLog, audit_log::RELATED_OBJECT_UUID, "related_object_uuid"),
        ] {
            assert_eq!(table.columns()[index].name, name);
        }
    }

    #[test]
    fn the_password_and_the_hashed_key_are_not_read() {
        for table in Table::ALL {
            for column in table.columns() {
                assert!(!["password", "hashed_key", "system_traits"].contains(&column.name));
            }
        }
    }
}
