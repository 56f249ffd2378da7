//! A Flagsmith of 2020: no soft deletes, no versions, no variants, no secrets. The documented bodies are of that time, and
//! `classic` sends them to the byte.

use std::time::Duration;

use flagpost::demo::cluster::Cluster;
use flagpost::demo::receiver::{Received, Receiver};
use serde_json::{Value as Json, json};
use tokio_postgres::Client;

use crate::support::flagsmith::Schema;
use crate::support::process::{Daemon, Installation};
use crate::support::{cluster_options, golden};

const PATIENCE: Duration = Duration::from_secs(20);

/// The documented body of a flag event (SEMANTICS.md §1), keys sorted.
const FLAG: &str = r#"{"data": {"changed_by": "Some User", "new_state": {"enabled": true, "environment": 23, "feature": {"created_date": "2020-02-10T20:03:43.348556Z", "default_enabled": false, "description": "Show html in a butter bar", "id": 7168, "initial_value": "blue", "name": "butter_bar", "project": 12, "type": "CONFIG"}, "feature_segment": null, "feature_state_value": "blue", "id": 10430, "identity": null, "identity_identifier": null}, "previous_state": {"enabled": false, "environment": 23, "feature": {"created_date": "2020-02-10T20:03:43.348556Z", "default_enabled": false, "description": "Show html in a butter bar", "id": 7168, "initial_value": "red", "name": "butter_bar", "project": 12, "type": "CONFIG"}, "feature_segment": null, "feature_state_value": "red", "id": 10430, "identity": null, "identity_identifier": null}, "timestamp": "2020-03-07T13:59:07.040Z"}, "event_type": "FLAG_UPDATED"}"#;

/// The documented body of an audit event: bare.
const AUDIT: &str = r#"{"author": {"email": "user@example.com", "first_name": "Some", "id": 4, "last_name": "User"}, "created_date": "2020-02-23T17:30:57.006318Z", "environment": null, "log": "New Flag / Remote Config created: my_feature", "project": {"id": 12, "name": "My project", "organisation": 1}, "related_object_id": 7168, "related_object_type": "FEATURE"}"#;

struct Scene {
    schema: Schema,
    client: Client,
    receiver: Receiver,
    installation: Installation,
    _cluster: Cluster,
}

impl Scene {
    async fn new() -> Scene {
        let cluster = Cluster::start(cluster_options()).await.unwrap();
        cluster.create_database("flagsmith").await.unwrap();
        let client = cluster.connect("flagsmith").await.unwrap();
        let schema = Schema::read(&golden().join("schema-2020.json"));
        schema.create(&client).await;
        let receiver = Receiver::start(0).unwrap();
        let installation = Installation::new(&cluster.url("postgres", "flagsmith"))
            .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8");
        let scene = Scene { schema, client, receiver, installation, _cluster: cluster };
        scene.fill().await;
        scene
    }

    async fn insert(&self, table: &str, row: Json) {
        self.client.batch_execute(&self.schema.insert(table, row.as_object().unwrap())).await.unwrap();
    }

    async fn fill(&self) {
        let now = "2020-01-01T00:00:00Z";
        self.insert(
            "organisations_organisation",
            json!({"id": 1, "name": "Acme", "has_requested_features": false, "created_date": now,
                   "alerted_over_plan_limit": false, "stop_serving_flags": false}),
        )
        .await;
        self.insert(
            "users_ffadminuser",
            json!({"id": 4, "password": "x", "is_superuser": false, "first_name": "Some", "last_name": "User",
                   "is_staff": false, "is_active": true, "date_joined": now, "email": "user@example.com",
                   "username": "user"}),
        )
        .await;
        let project = json!({"id": 12, "name": "My project", "created_date": now, "organisation_id": 1});
        self.insert("projects_project", project).await;
        self.insert(
            "environments_environment",
            json!({"id": 23, "name": "Production", "created_date": now, "api_key": "key", "project_id": 12,
                   "webhooks_enabled": true}),
        )
        .await;
        self.insert(
            "environments_webhook",
            json!({"id": 1, "url": self.receiver.url("/environment"), "enabled": true, "created_at": now,
                   "updated_at": now, "environment_id": 23}),
        )
        .await;
        self.insert(
            "organisations_organisationwebhook",
            json!({"id": 1, "url": self.receiver.url("/organisation"), "name": "", "enabled": true,
                   "organisation_id": 1}),
        )
        .await;
        self.insert(
            "features_feature",
            json!({"id": 7168, "name": "butter_bar", "created_date": "2020-02-10T20:03:43.348556Z",
                   "initial_value": "red", "description": "Show html in a butter bar", "default_enabled": false,
                   "type": "CONFIG", "project_id": 12}),
        )
        .await;
        let state = json!({"id": 10430, "enabled": false, "environment_id": 23, "feature_id": 7168});
        self.insert("features_featurestate", state).await;
        let value = json!({"id": 1, "type": "unicode", "string_value": "red", "feature_state_id": 10430});
        self.insert("features_featurestatevalue", value).await;
        self.insert("segments_segment", json!({"id": 5, "name": "beta", "project_id": 12})).await;
    }

    async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    async fn next(&self) -> Received {
        let all = self.receiver.wait_for(|all| !all.is_empty(), PATIENCE).await.expect("a webhook");
        self.receiver.clear();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].clone()
    }
}

fn text(received: &Received) -> &str {
    std::str::from_utf8(&received.body).unwrap()
}

#[tokio::test]
async fn the_documented_bodies_are_sent_to_the_byte() {
    let scene = Scene::new().await;
    let check = scene.installation.run(&["check", "--json"]).await.json();
    let optional =
        check["checks"].as_array().unwrap().iter().find(|c| c["code"] == "flagsmith-optional").unwrap();
    for lacking in ["feature_versioning", "tags_tag, features_feature_tags"] {
        assert!(optional["message"].as_str().unwrap().contains(lacking), "{optional:#}");
    }
    scene.installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&scene.installation).await;

    scene
        .sql(
            "BEGIN;
             UPDATE features_feature SET initial_value = 'blue' WHERE id = 7168;
             UPDATE features_featurestate SET enabled = true WHERE id = 10430;
             UPDATE features_featurestatevalue SET string_value = 'blue' WHERE id = 1;
             INSERT INTO features_historicalfeaturestate
                 (history_id, id, enabled, environment_id, feature_id, history_date, history_type, history_user_id)
             VALUES (1, 10430, true, 23, 7168, '2020-03-07T13:59:07.0409Z', '~', 4);
             COMMIT",
        )
        .await;
    let got = scene.next().await;
    assert_eq!(text(&got), FLAG);
    assert_eq!((got.path.as_str(), got.header("x-flagsmith-signature")), ("/environment", None));

    scene
        .insert(
            "audit_auditlog",
            json!({"id": 1, "created_date": "2020-02-23T17:30:57.006318Z", "author_id": 4, "project_id": 12,
                   "log": "New Flag / Remote Config created: my_feature", "related_object_id": 7168,
                   "related_object_type": "FEATURE"}),
        )
        .await;
    let got = scene.next().await;
    assert_eq!(text(&got), AUDIT);
    assert_eq!(got.path, "/organisation");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn segment_overrides_whose_value_stands_with_the_override_and_real_deletes() {
    let scene = Scene::new().await;
    scene.installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&scene.installation).await;
    // The state of an override has no value of its own in those days: it stands in features_featuresegment.
    scene
        .sql(
            "BEGIN;
             INSERT INTO features_featuresegment (id, priority, enabled, value, value_type, feature_id, segment_id)
             VALUES (3, 1, true, '42', 'int', 7168, 5);
             INSERT INTO features_featurestate (id, enabled, environment_id, feature_id, feature_segment_id)
             VALUES (10431, true, 23, 7168, 3);
             COMMIT",
        )
        .await;
    let got = scene.next().await;
    let body: Json = serde_json::from_slice(&got.body).unwrap();
    let state = &body["data"]["new_state"];
    assert_eq!((&state["feature_segment"], &state["feature_state_value"]), (&json!(3), &json!(42)));
    assert_eq!(got.header("x-flagpost-action"), Some("created;scope=segment"));

    scene.sql("UPDATE features_featuresegment SET value = '43' WHERE id = 3").await;
    let body: Json = serde_json::from_slice(&scene.next().await.body).unwrap();
    assert_eq!(body["data"]["previous_state"]["feature_state_value"], 42);
    assert_eq!(body["data"]["new_state"]["feature_state_value"], 43);

    scene
        .sql(
            "BEGIN; DELETE FROM features_featurestate WHERE feature_id = 7168 AND id = 10431;
             DELETE FROM features_featuresegment WHERE id = 3; COMMIT",
        )
        .await;
    let got = scene.next().await;
    let body: Json = serde_json::from_slice(&got.body).unwrap();
    assert_eq!((&body["event_type"], &body["data"]["new_state"]), (&json!("FLAG_DELETED"), &Json::Null));
    assert_eq!(got.header("x-flagpost-action"), Some("removed;scope=segment"));
    daemon.terminate().await.success();
}
