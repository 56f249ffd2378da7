//! A small Flagsmith database, and changes written to it as Flagsmith writes them.
//!
//! Flagsmith runs in autocommit: one click is a few small transactions, each with its history row, and an audit row that
//! another process adds later (SEMANTICS.md §4; order and number of the transactions as in `tests/golden/cases`). Each
//! [`Change`] here does the same, statement by statement, as the user of the seed. Commit times are the server's own
//! (`track_commit_timestamp`). Only literals and this program's own texts get into the SQL, quoted by [`literal`].

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value as Json;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::cluster::Cluster;
use crate::error::{Error, Kind, Result};

/// Tables and rows.
const DATABASE: &str = include_str!("flagsmith.sql");
/// The database's name.
pub(super) const NAME: &str = "flagsmith";

/// The environments of the seed.
pub(super) const DEVELOPMENT: i64 = 1;
/// See [`DEVELOPMENT`].
pub(super) const PRODUCTION: i64 = 2;

/// The endpoints: the receiver's path, and the secret that the signatures are checked with.
pub(super) const ENDPOINTS: [(&str, &str); 3] = [
    ("/development", "made-up-development-secret"),
    ("/production", "made-up-production-secret"),
    ("/organisation", "made-up-organisation-secret"),
];

/// The value of a flag, in the column that Flagsmith keeps it in.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Int(i64),
}

impl Value {
    pub(super) fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    fn type_name(&self) -> &'static str {
        match self {
            Value::Text(_) => "unicode",
            Value::Int(_) => "int",
        }
    }

    /// For the columns `type, integer_value, string_value`.
    fn columns(&self) -> String {
        match self {
            Value::Text(text) => format!("'unicode', NULL::integer, {}", literal(text)),
            Value::Int(number) => format!("'int', {number}, NULL::varchar"),
        }
    }
}

/// Whose value of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Everybody,
    Segment,
    Identity,
}

/// Something that a person does in Flagsmith, or behind its back. All but [`Change::Create`] and [`Change::Delete`],
/// which concern every environment, happen in Production.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Create { flag: &'static str, value: Value },
    Toggle { flag: &'static str, on: bool },
    Set { flag: &'static str, target: Target, value: Value },
    ToggleAndSet { flag: &'static str, on: bool, value: Value },
    OverrideForSegment { flag: &'static str, value: Value },
    OverrideForIdentity { flag: &'static str, value: Value },
    RemoveIdentityOverride { flag: &'static str },
    Share { flag: &'static str, percentages: [u8; 2] },
    ToggleBySql { flag: &'static str, on: bool },
    Delete { flag: &'static str },
}

/// What a change has written.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Transactions that were committed.
    pub(super) transactions: usize,
    /// When the last of them that concerns a flag value was committed, by environment.
    pub(super) committed: BTreeMap<i64, Timestamp>,
    /// The audit rows that Flagsmith's task processor adds later.
    pub(super) audits: Vec<String>,
}

/// A connection that writes as Flagsmith does.
pub(super) struct Flagsmith {
    client: Client,
}

/// The state that the running transaction has just inserted, as SQL.
const NEW_STATE: &str = "currval('features_featurestate_id_seq')";
/// The value that the running transaction has just inserted.
const NEW_VALUE: &str = "currval('features_featurestatevalue_id_seq')";
/// The user of the seed.
const USER: i64 = 1;

impl Flagsmith {
    /// Makes the database; `url` gives the URL of an endpoint's path.
    pub(super) async fn create(cluster: &Cluster, url: impl Fn(&str) -> String) -> Result<Flagsmith> {
        cluster.create_database(NAME).await?;
        let flagsmith = Flagsmith { client: cluster.connect(NAME).await? };
        flagsmith.commit(DATABASE).await?;
        let [development, production, organisation] =
            ENDPOINTS.map(|(path, secret)| format!("{}, {}", literal(&url(path)), literal(secret)));
        let sql = format!(
            "INSERT INTO environments_webhook (url, secret, enabled, environment_id)
                 VALUES ({development}, true, {DEVELOPMENT}), ({production}, true, {PRODUCTION});
             INSERT INTO organisations_organisationwebhook (url, secret, enabled, organisation_id)
                 VALUES ({organisation}, true, 1);"
        );
        flagsmith.commit(&sql).await?;
        Ok(flagsmith)
    }

    /// Does it.
    pub(super) async fn perform(&self, change: &Change) -> Result<Written> {
        match change {
            Change::Create { flag, value } => self.create_flag(flag, value).await,
            Change::Toggle { flag, on } => self.toggle(flag, *on).await,
            Change::Set { flag, target, value } => self.set(flag, *target, None, value).await,
            Change::ToggleAndSet { flag, on, value } => {
                self.set(flag, Target::Everybody, Some(*on), value).await
            }
            Change::OverrideForSegment { flag, value } => self.override_for_segment(flag, value).await,
            Change::OverrideForIdentity { flag, value } => self.override_for_identity(flag, value).await,
            Change::RemoveIdentityOverride { flag } => self.remove_identity_override(flag).await,
            Change::Share { flag, percentages } => self.share(flag, percentages).await,
            Change::ToggleBySql { flag, on } => self.toggle_by_sql(flag, *on).await,
            Change::Delete { flag } => self.delete_flag(flag).await,
        }
    }

    /// What everybody gets of a flag in Production, for the proof.
    pub(super) async fn visible(&self, flag: &str) -> Result<Json> {
        let state = self.state(flag, PRODUCTION, Target::Everybody).await?;
        let sql = format!(
            "SELECT jsonb_build_array(s.enabled, coalesce(to_jsonb(v.string_value), to_jsonb(v.integer_value)))::text
             FROM features_featurestate s JOIN features_featurestatevalue v ON v.feature_state_id = s.id
             WHERE s.id = {state}"
        );
        let text = self.first(&sql).await?;
        serde_json::from_str(&text).map_err(|e| {
            Error::internal(format!(
                "the scratch database writes no JSON ({e}): this is a bug, please report it"
            ))
        })
    }

    /// Adds an audit row, as the task processor does; gives the time of its commit.
    pub(super) async fn audit(&self, row: &str) -> Result<Timestamp> {
        self.commit(row).await?;
        self.last_commit().await
    }

    async fn create_flag(&self, flag: &str, value: &Value) -> Result<Written> {
        let feature = "currval('features_feature_id_seq')";
        let initial = match value {
            Value::Text(text) => literal(text),
            Value::Int(number) => literal(&number.to_string()),
        };
        let mut sql = format!(
            "INSERT INTO features_feature (name, initial_value, project_id, default_enabled, type)
                 VALUES ({}, {initial}, 1, false, 'STANDARD');",
            literal(flag)
        );
        sql += &record_feature(feature, '+');
        for environment in [DEVELOPMENT, PRODUCTION] {
            sql += &insert_state(environment, feature, false, "NULL", "NULL");
            sql += &insert_value(&value.columns());
        }
        self.commit(&sql).await?;
        let at = self.last_commit().await?;
        let log = format!("New Flag / Remote Config created: {flag}");
        let mut audits = vec![audit_of_feature(&self.feature(flag).await?, &log)];
        for environment in [DEVELOPMENT, PRODUCTION] {
            let state = self.state(flag, environment, Target::Everybody).await?;
            audits.push(audit_of_state(environment, &state, &log));
        }
        let committed = [DEVELOPMENT, PRODUCTION].map(|environment| (environment, at)).into();
        Ok(Written { transactions: 1, committed, audits })
    }

    async fn toggle(&self, flag: &str, on: bool) -> Result<Written> {
        let state = self.state(flag, PRODUCTION, Target::Everybody).await?;
        let log = format!("Flag state updated for feature: {flag}");
        self.in_production(&[update_state(&state, Some(on))], audit_of_state(PRODUCTION, &state, &log)).await
    }

    async fn set(&self, flag: &str, target: Target, on: Option<bool>, value: &Value) -> Result<Written> {
        let state = self.state(flag, PRODUCTION, target).await?;
        let mut parts =
            vec![update_value(&state, value), record_value(&value_of(&state), '~'), update_state(&state, on)];
        if target == Target::Segment {
            // Another view of Flagsmith: it saves the state first.
            parts.rotate_right(1);
        }
        let log = match target {
            Target::Everybody => format!("Remote config value updated for feature: {flag}"),
            Target::Segment => {
                format!(
                    "Remote config updated for segment override on feature '{flag}' and segment 'beta users'."
                )
            }
            Target::Identity => {
                format!(
                    "Remote config value updated for identity override on feature '{flag}' and identity 'alice'."
                )
            }
        };
        self.in_production(&parts, audit_of_state(PRODUCTION, &state, &log)).await
    }

    async fn override_for_segment(&self, flag: &str, value: &Value) -> Result<Written> {
        let feature = self.feature(flag).await?;
        let segment = format!(
            "INSERT INTO features_featuresegment (priority, feature_id, segment_id, environment_id)
                 VALUES (0, {feature}, 1, {PRODUCTION});"
        );
        let state =
            insert_state(PRODUCTION, &feature, true, "NULL", "currval('features_featuresegment_id_seq')");
        // Born with the flag's own value; the one that was asked for follows.
        let value_of_flag = insert_value(&format!(
            "(SELECT type FROM features_featurestatevalue WHERE feature_state_id = {0}),
             (SELECT integer_value FROM features_featurestatevalue WHERE feature_state_id = {0}),
             (SELECT string_value FROM features_featurestatevalue WHERE feature_state_id = {0})",
            self.state(flag, PRODUCTION, Target::Everybody).await?
        ));
        let parts = [
            segment,
            state + &value_of_flag,
            update_value(NEW_STATE, value),
            record_value(&value_of(NEW_STATE), '~'),
        ];
        let log = format!(
            "Remote config updated for segment override on feature '{flag}' and segment 'beta users'."
        );
        self.in_production(&parts, audit_of_state(PRODUCTION, NEW_STATE, &log)).await
    }

    async fn override_for_identity(&self, flag: &str, value: &Value) -> Result<Written> {
        let feature = self.feature(flag).await?;
        let parts = [
            insert_state(PRODUCTION, &feature, true, "1", "NULL")
                + &insert_value("'unicode', NULL::integer, NULL::varchar"),
            update_value(NEW_STATE, value),
            record_value(&value_of(NEW_STATE), '~'),
        ];
        let log =
            format!("Flag state / Remote config value updated for feature '{flag}' and identity 'alice'");
        self.in_production(&parts, audit_of_state(PRODUCTION, NEW_STATE, &log)).await
    }

    async fn remove_identity_override(&self, flag: &str) -> Result<Written> {
        let state = self.state(flag, PRODUCTION, Target::Identity).await?;
        let log =
            format!("Flag state / Remote config value deleted for feature '{flag}' and identity 'alice'");
        self.in_production(&delete_state(&state), audit_of_state(PRODUCTION, &state, &log)).await
    }

    async fn share(&self, flag: &str, percentages: &[u8]) -> Result<Written> {
        let state = self.state(flag, PRODUCTION, Target::Everybody).await?;
        let mut parts = vec![update_state(&state, None), record_value(&value_of(&state), '~')];
        for (option, percentage) in percentages.iter().enumerate() {
            parts.push(update_share(&state, option, *percentage));
        }
        let log = format!("Multivariate value changed for feature '{flag}'.");
        self.in_production(&parts, audit_of_state(PRODUCTION, &state, &log)).await
    }

    /// No history row and no audit row: Flagsmith itself never hears of it.
    async fn toggle_by_sql(&self, flag: &str, on: bool) -> Result<Written> {
        let state = self.state(flag, PRODUCTION, Target::Everybody).await?;
        let sql = format!("UPDATE features_featurestate SET enabled = {on} WHERE id = {state};");
        self.commit(&sql).await?;
        let committed = BTreeMap::from([(PRODUCTION, self.last_commit().await?)]);
        Ok(Written { transactions: 1, committed, audits: Vec::new() })
    }

    /// The feature is marked first, its states follow one by one, each in four transactions.
    async fn delete_flag(&self, flag: &str) -> Result<Written> {
        let feature = self.feature(flag).await?;
        let log = format!("Flag / Remote Config Deleted: {flag}");
        let mut written = Written { audits: vec![audit_of_feature(&feature, &log)], ..Written::default() };
        let mut states = Vec::new();
        for environment in [DEVELOPMENT, PRODUCTION] {
            states.push((environment, self.state(flag, environment, Target::Everybody).await?));
        }
        let mark = format!("UPDATE features_feature SET deleted_at = now() WHERE id = {feature};");
        self.commit(&mark).await?;
        for (environment, state) in &states {
            let parts = delete_state(state);
            self.commit_all(&parts).await?;
            written.transactions += parts.len();
            written.committed.insert(*environment, self.last_commit().await?);
            written.audits.push(audit_of_state(*environment, state, &log));
        }
        self.commit(&record_feature(&feature, '-')).await?;
        written.transactions += 2;
        Ok(written)
    }

    /// Commits the parts one by one.
    async fn in_production(&self, parts: &[String], audit: String) -> Result<Written> {
        self.commit_all(parts).await?;
        let committed = BTreeMap::from([(PRODUCTION, self.last_commit().await?)]);
        Ok(Written { transactions: parts.len(), committed, audits: vec![audit] })
    }

    async fn commit_all(&self, parts: &[String]) -> Result<()> {
        for part in parts {
            self.commit(part).await?;
        }
        Ok(())
    }

    /// One transaction: the server makes one of all the statements of a simple query.
    async fn commit(&self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).await.map_err(failed)
    }

    async fn last_commit(&self) -> Result<Timestamp> {
        let sql = "SELECT (extract(epoch FROM timestamp) * 1000000)::bigint FROM pg_last_committed_xact()";
        let micros: i64 = self.client.query_one(sql, &[]).await.map_err(failed)?.get(0);
        Timestamp::from_microsecond(micros).map_err(|e| {
            Error::internal(format!("the scratch server's clock is out of range ({e}): set the clock"))
        })
    }

    async fn feature(&self, flag: &str) -> Result<String> {
        let name = literal(flag);
        self.first(&format!("SELECT id FROM features_feature WHERE name = {name} AND deleted_at IS NULL"))
            .await
    }

    async fn state(&self, flag: &str, environment: i64, target: Target) -> Result<String> {
        let sql = format!(
            "SELECT s.id FROM features_featurestate s JOIN features_feature f ON f.id = s.feature_id
             WHERE f.name = {} AND s.environment_id = {environment} AND s.deleted_at IS NULL
               AND (s.feature_segment_id IS NOT NULL) = {} AND (s.identity_id IS NOT NULL) = {}",
            literal(flag),
            target == Target::Segment,
            target == Target::Identity
        );
        self.first(&sql).await
    }

    async fn first(&self, sql: &str) -> Result<String> {
        let answer = self.client.simple_query(sql).await.map_err(failed)?;
        let first = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        first.map(str::to_owned).ok_or_else(|| {
            Error::internal("the demo's database lacks a row that it made: this is a bug, please report it")
        })
    }
}

fn failed(e: tokio_postgres::Error) -> Error {
    let message = match e.as_db_error() {
        Some(e) => format!("the scratch database refuses: {}: this is a bug, please report it", e.message()),
        None => format!("the scratch database is gone ({e}): see that nothing ends it, and try again"),
    };
    Error::new(Kind::Internal, message).caused_by(e)
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn value_of(state: &str) -> String {
    format!("(SELECT id FROM features_featurestatevalue WHERE feature_state_id = {state})")
}

fn record_feature(feature: &str, kind: char) -> String {
    format!(
        "INSERT INTO features_historicalfeature
             (id, name, initial_value, project_id, deleted_at, history_type, history_user_id)
         SELECT id, name, initial_value, project_id, deleted_at, '{kind}', {USER}
         FROM features_feature WHERE id = {feature};"
    )
}

fn insert_state(environment: i64, feature: &str, on: bool, identity: &str, segment: &str) -> String {
    format!(
        "INSERT INTO features_featurestate
             (enabled, environment_id, feature_id, identity_id, feature_segment_id, version)
         VALUES ({on}, {environment}, {feature}, {identity}, {segment}, 1);"
    ) + &record_state(NEW_STATE, '+')
}

/// `columns` are `type, integer_value, string_value`.
fn insert_value(columns: &str) -> String {
    format!(
        "INSERT INTO features_featurestatevalue (type, integer_value, string_value, feature_state_id)
         VALUES ({columns}, {NEW_STATE});"
    ) + &record_value(NEW_VALUE, '+')
}

/// Flagsmith saves a state also where only its value has changed.
fn update_state(state: &str, on: Option<bool>) -> String {
    let enabled = on.map(|on| format!(", enabled = {on}")).unwrap_or_default();
    format!("UPDATE features_featurestate SET updated_at = now(){enabled} WHERE id = {state};")
        + &record_state(state, '~')
}

fn update_value(state: &str, value: &Value) -> String {
    let (column, new) = match value {
        Value::Text(text) => ("string_value", literal(text)),
        Value::Int(number) => ("integer_value", number.to_string()),
    };
    format!(
        "UPDATE features_featurestatevalue SET type = '{}', {column} = {new} WHERE feature_state_id = {state};",
        value.type_name()
    )
}

/// `option`: the how many-th of the flag's variants.
fn update_share(state: &str, option: usize, percentage: u8) -> String {
    let row = format!(
        "(SELECT id FROM multivariate_multivariatefeaturestatevalue
          WHERE feature_state_id = {state} ORDER BY id OFFSET {option} LIMIT 1)"
    );
    format!(
        "UPDATE multivariate_multivariatefeaturestatevalue SET percentage_allocation = {percentage} WHERE id = {row};
         INSERT INTO multivariate_historicalmultivariatefeaturestatevalue
             (id, percentage_allocation, feature_state_id, multivariate_feature_option_id, history_type, history_user_id)
         SELECT id, percentage_allocation, feature_state_id, multivariate_feature_option_id, '~', {USER}
         FROM multivariate_multivariatefeaturestatevalue WHERE id = {row};"
    )
}

fn delete_state(state: &str) -> [String; 4] {
    [
        format!("UPDATE features_featurestate SET deleted_at = now() WHERE id = {state};"),
        format!("UPDATE features_featurestatevalue SET deleted_at = now() WHERE feature_state_id = {state};"),
        record_value(&value_of(state), '-'),
        record_state(state, '-'),
    ]
}

fn record_state(state: &str, kind: char) -> String {
    format!(
        "INSERT INTO features_historicalfeaturestate
             (id, enabled, environment_id, feature_id, identity_id, feature_segment_id, created_at, live_from, updated_at,
              version, deleted_at, history_type, history_user_id)
         SELECT id, enabled, environment_id, feature_id, identity_id, feature_segment_id, created_at, live_from, updated_at,
              version, deleted_at, '{kind}', {USER}
         FROM features_featurestate WHERE id = {state};"
    )
}

fn record_value(value: &str, kind: char) -> String {
    format!(
        "INSERT INTO features_historicalfeaturestatevalue
             (id, type, boolean_value, integer_value, string_value, feature_state_id, deleted_at, history_type,
              history_user_id)
         SELECT id, type, boolean_value, integer_value, string_value, feature_state_id, deleted_at, '{kind}', {USER}
         FROM features_featurestatevalue WHERE id = {value};"
    )
}

fn audit_of_state(environment: i64, state: &str, log: &str) -> String {
    audit(&format!("{environment}, {state}, 'FEATURE_STATE'"), log)
        + &format!("UPDATE environments_environment SET updated_at = now() WHERE id = {environment};")
}

fn audit_of_feature(feature: &str, log: &str) -> String {
    audit(&format!("NULL, {feature}, 'FEATURE'"), log)
}

fn audit(about: &str, log: &str) -> String {
    format!(
        "INSERT INTO audit_auditlog
             (log, author_id, project_id, is_system_event, environment_id, related_object_id, related_object_type)
         VALUES ({}, {USER}, 1, false, {about});",
        literal(log)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Table;

    #[test]
    fn the_small_database_has_every_column_that_flagpost_reads() {
        for table in Table::ALL {
            let start = format!("CREATE TABLE {} (\n", table.name());
            let columns = DATABASE.split_once(&start).unwrap().1.split_once(");").unwrap().0;
            for column in table.columns() {
                assert!(
                    columns.lines().any(|line| line.trim().starts_with(&format!("{} ", column.name))),
                    "{}.{}",
                    table.name(),
                    column.name
                );
            }
        }
    }
}
