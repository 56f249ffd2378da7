//! The state of every flag as a reader of Flagsmith's tables sees it, by one SQL statement: an answer that owes nothing to the
//! mirror or to the engine. Two of them, before and after, say which flag events are right (SEMANTICS.md §5).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};
use tokio_postgres::Client;

/// What is alive and in force, with the text of a state in the format `current`.
const EFFECTIVE: &str = r#"
WITH live AS (
    SELECT DISTINCT ON (feature_id, environment_id) uuid, feature_id, environment_id
    FROM feature_versioning_environmentfeatureversion
    WHERE deleted_at IS NULL AND published_at IS NOT NULL AND live_from <= clock_timestamp()
    ORDER BY feature_id, environment_id, live_from DESC, uuid DESC
), option AS (
    SELECT id, CASE type WHEN 'int' THEN to_jsonb(integer_value) WHEN 'bool' THEN to_jsonb(boolean_value)
               ELSE to_jsonb(string_value) END AS value
    FROM multivariate_multivariatefeatureoption
)
SELECT DISTINCT ON (s.feature_id, s.environment_id, s.identity_id, g.id) jsonb_build_object(
    'enabled', s.enabled,
    'environment', jsonb_build_object('id', e.id, 'name', e.name),
    'feature', jsonb_build_object(
        'created_date', to_char(f.created_date AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'default_enabled', f.default_enabled, 'description', f.description, 'id', f.id,
        'initial_value', f.initial_value, 'name', f.name, 'type', f.type,
        'project', jsonb_build_object('id', p.id, 'name', p.name)),
    'feature_segment', CASE WHEN fs.id IS NOT NULL THEN jsonb_build_object('priority', fs.priority,
        'segment', jsonb_build_object('id', g.id, 'name', g.name, 'description', g.description)) END,
    'feature_state_value', CASE v.type WHEN 'int' THEN to_jsonb(v.integer_value)
        WHEN 'bool' THEN to_jsonb(v.boolean_value) ELSE to_jsonb(v.string_value) END,
    'identity', s.identity_id, 'identity_identifier', i.identifier,
    'multivariate_feature_state_values', coalesce((
        SELECT jsonb_agg(jsonb_build_object('id', m.id, 'percentage_allocation', m.percentage_allocation,
            'multivariate_feature_option', jsonb_build_object('id', o.id, 'value', o.value)) ORDER BY m.id)
        FROM multivariate_multivariatefeaturestatevalue m JOIN option o ON o.id = m.multivariate_feature_option_id
        WHERE m.feature_state_id = s.id), '[]')
)::text
FROM features_featurestate s
JOIN features_feature f ON f.id = s.feature_id AND f.deleted_at IS NULL
JOIN environments_environment e ON e.id = s.environment_id AND e.deleted_at IS NULL
JOIN projects_project p ON p.id = e.project_id AND p.deleted_at IS NULL
LEFT JOIN features_featuresegment fs ON fs.id = s.feature_segment_id
LEFT JOIN segments_segment g ON g.id = fs.segment_id
LEFT JOIN environments_identity i ON i.id = s.identity_id
LEFT JOIN features_featurestatevalue v ON v.feature_state_id = s.id AND v.deleted_at IS NULL
LEFT JOIN live ON live.feature_id = s.feature_id AND live.environment_id = s.environment_id
LEFT JOIN workflows_core_changerequest r ON r.id = s.change_request_id
WHERE s.deleted_at IS NULL
  AND CASE WHEN e.use_v2_feature_versioning AND s.identity_id IS NULL
           THEN s.environment_feature_version_id = live.uuid
           ELSE s.version IS NOT NULL AND (s.change_request_id IS NULL
                OR r.committed_at IS NOT NULL AND s.live_from <= clock_timestamp()) END
ORDER BY s.feature_id, s.environment_id, s.identity_id, g.id, s.live_from DESC NULLS LAST, s.version DESC, s.id DESC
"#;

/// Everything in force at one moment.
pub(crate) struct Effective {
    flags: BTreeMap<String, Json>,
    environments: BTreeSet<i64>,
}

impl Effective {
    /// Reads it.
    pub(crate) async fn read(client: &Client) -> Effective {
        let rows = client.query(EFFECTIVE, &[]).await.unwrap();
        let flags = rows.iter().map(|row| {
            let mut state: Json = serde_json::from_str(row.get(0)).unwrap();
            // jsonb writes 30.0 as 30.
            for variant in state["multivariate_feature_state_values"].as_array_mut().unwrap() {
                variant["percentage_allocation"] = variant["percentage_allocation"].as_f64().into();
            }
            (flag_of(&state), state)
        });
        let sql = "SELECT e.id FROM environments_environment e JOIN projects_project p ON p.id = e.project_id
                   WHERE e.deleted_at IS NULL AND p.deleted_at IS NULL";
        let environments = client.query(sql, &[]).await.unwrap();
        Effective {
            flags: flags.collect(),
            environments: environments.iter().map(|row| row.get::<_, i32>(0).into()).collect(),
        }
    }

    /// The flag events that are right for what lies between `self` and `after`, as `[event_type, new_state, previous_state]`,
    /// sorted.
    pub(crate) fn events(&self, after: &Effective) -> Vec<Json> {
        let mut events = Vec::new();
        for flag in self.flags.keys().chain(after.flags.keys()).collect::<BTreeSet<_>>() {
            let (old, new) = (self.flags.get(flag), after.flags.get(flag));
            let environment = old.or(new).unwrap()["environment"]["id"].as_i64().unwrap();
            // Nobody is told of an environment that is new, or gone.
            if !self.environments.contains(&environment) || !after.environments.contains(&environment) {
                continue;
            }
            match (old, new) {
                (None, Some(new)) => events.push(json!(["FLAG_UPDATED", new, null])),
                (Some(old), Some(new)) if visible(old) != visible(new) => {
                    events.push(json!(["FLAG_UPDATED", new, old]));
                }
                (Some(old), None) => events.push(json!(["FLAG_DELETED", null, old])),
                _ => {}
            }
        }
        events.sort_by_key(Json::to_string);
        events
    }
}

/// Which flag value a state is of: feature, environment, identity, segment.
pub(crate) fn flag_of(state: &Json) -> String {
    let segment = &state["feature_segment"]["segment"]["id"];
    format!("{}/{}/{}/{segment}", state["feature"]["id"], state["environment"]["id"], state["identity"])
}

/// What of a state makes an event when it changes.
pub(crate) fn visible(state: &Json) -> Json {
    json!([
        state["enabled"],
        state["feature_state_value"],
        state["multivariate_feature_state_values"],
        state["feature_segment"]["priority"]
    ])
}

/// The flag events among bodies of the format `current`, as [`Effective::events`] has them.
pub(crate) fn flag_events<'a>(bodies: impl Iterator<Item = &'a String>) -> Vec<Json> {
    let mut events: Vec<Json> = bodies
        .map(|body| serde_json::from_str::<Json>(body).unwrap())
        .filter(|body| body["event_type"].as_str().is_some_and(|kind| kind.starts_with("FLAG_")))
        .map(|body| json!([body["event_type"], body["data"]["new_state"], body["data"]["previous_state"]]))
        .collect();
    events.sort_by_key(Json::to_string);
    events
}
