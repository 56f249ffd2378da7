//! What endpoints can do to us, and what they cannot: retries, order, slow and dead neighbours, the network guard.

use std::time::{Duration, Instant};

use flagpost::demo::cluster::Cluster;
use flagpost::demo::receiver::{Answer, Received, Receiver};
use serde_json::Value as Json;
use tokio_postgres::Client;

use crate::cli::flagsmith;
use crate::support::cluster_options;
use crate::support::process::{Daemon, Installation};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Scene {
    pub(crate) client: Client,
    pub(crate) receiver: Receiver,
    pub(crate) installation: Installation,
    _cluster: Cluster,
}

impl Scene {
    /// Retries come fast, every commit is an event, loopback is allowed.
    pub(crate) async fn new() -> Scene {
        let cluster = Cluster::start(cluster_options()).await.unwrap();
        let receiver = Receiver::start(0).unwrap();
        let client = flagsmith(&cluster, receiver.addr()).await;
        let installation = Installation::new(&cluster.url("postgres", "flagsmith"))
            .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8")
            .with("FLAGPOST_SOURCE_SETTLE", "0")
            .with("FLAGPOST_DELIVERY_RETRY", "100ms,200ms")
            .with("FLAGPOST_DELIVERY_TIMEOUT", "2s");
        installation.run(&["setup"]).await.success();
        Scene { client, receiver, installation, _cluster: cluster }
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// Sets the value of the flag with state 1 in Development.
    pub(crate) async fn set_value(&self, value: &str) {
        self.sql(&format!(
            "UPDATE features_featurestatevalue SET type = 'unicode', string_value = '{value}' WHERE feature_state_id = 1"
        ))
        .await;
    }

    /// The same scene with another setting.
    pub(crate) fn with(mut self, key: &str, value: &str) -> Scene {
        self.installation.set(key, value);
        self
    }

    /// Makes flags of their own in Development, with states and values `1001`, `1002` …; none of them is told.
    pub(crate) async fn flags(&self, count: u32) {
        for (table, set) in [
            ("features_feature", "'id', 1000 + n, 'name', 'flag_' || n, 'uuid', gen_random_uuid()"),
            ("features_featurestate", "'id', 1000 + n, 'feature_id', 1000 + n, 'uuid', gen_random_uuid()"),
            (
                "features_featurestatevalue",
                "'id', 1000 + n, 'feature_state_id', 1000 + n, 'uuid', gen_random_uuid()",
            ),
        ] {
            self.sql(&format!(
                "INSERT INTO {table} SELECT (jsonb_populate_record(r, jsonb_build_object({set}))).*
                 FROM {table} r, generate_series(1, {count}) n WHERE r.id = (SELECT min(id) FROM {table})"
            ))
            .await;
        }
    }

    /// What the daemon says of itself, in JSON.
    pub(crate) async fn status(&self) -> Json {
        self.installation.run(&["status", "--json"]).await.json()
    }

    /// Waits until `count` requests have come to `path`.
    pub(crate) async fn wait_for(&self, path: &str, count: usize) -> Vec<Received> {
        let all = self.receiver.wait_for(|all| at(all, path).len() >= count, PATIENCE).await;
        at(&all.unwrap_or_else(|all| panic!("{path} got {} of {count}", at(&all, path).len())), path)
    }
}

pub(crate) fn at(all: &[Received], path: &str) -> Vec<Received> {
    all.iter().filter(|r| r.path == path).cloned().collect()
}

pub(crate) fn value(received: &Received) -> String {
    let body: Json = serde_json::from_slice(&received.body).unwrap();
    body["data"]["new_state"]["feature_state_value"].as_str().unwrap().to_owned()
}

pub(crate) fn id(received: &Received) -> &str {
    received.header("x-flagpost-event-id").unwrap()
}

#[tokio::test]
async fn what_is_no_2xx_is_tried_again_with_the_same_id_and_body_and_later_changes_wait_their_turn() {
    let s = Scene::new().await;
    let daemon = Daemon::start(&s.installation).await;
    let failures = [
        Answer::status(500),
        Answer::status(404),
        Answer::status(302).header("location", "/elsewhere"),
        Answer::never(),
    ];
    s.receiver.script("/dev-plain", failures);
    s.set_value("a").await;
    s.set_value("b").await;
    let got = s.wait_for("/dev-plain", 6).await;
    assert_eq!(got.iter().map(value).collect::<Vec<_>>(), ["a", "a", "a", "a", "a", "b"]);
    assert!(got[1..5].iter().all(|r| id(r) == id(&got[0]) && r.body == got[0].body));
    assert_ne!(id(&got[5]), id(&got[0]));
    assert!(at(&s.receiver.all(), "/elsewhere").is_empty(), "a redirect was followed");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn an_endpoint_that_never_answers_delays_no_other() {
    let s = Scene::new().await;
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.answer("/dev-signed", Answer::never());
    // The first goes out to both; from then on one of them hangs.
    for n in 0..30 {
        s.set_value(&n.to_string()).await;
        let started = Instant::now();
        s.wait_for("/dev-plain", n + 1).await;
        // A call that hangs takes the 2 s of its timeout.
        assert!(started.elapsed() < Duration::from_millis(1500), "change {n} took {:?}", started.elapsed());
    }
    s.receiver.answer("/dev-signed", Answer::status(200));
    let mut values: Vec<String> = s.wait_for("/dev-signed", 31).await.iter().map(value).collect();
    values.dedup();
    assert_eq!(
        values,
        (0..30).map(|n| n.to_string()).collect::<Vec<_>>(),
        "in order, once the endpoint is back"
    );
    daemon.terminate().await.success();
}

#[tokio::test]
async fn a_receiver_that_is_down_gets_everything_when_it_is_back_even_over_a_restart_of_ours() {
    let mut s = Scene::new().await;
    s.receiver.stop();
    let daemon = Daemon::start(&s.installation).await;
    for n in 0..5 {
        s.set_value(&n.to_string()).await;
    }
    let status = async |s: &Scene| s.installation.run(&["status", "--json"]).await.json();
    let pending = |status: &Json| {
        let endpoints = status["endpoints"].as_array().unwrap().clone();
        endpoints.iter().map(|e| e["pending"].as_u64().unwrap()).sum::<u64>()
    };
    let deadline = Instant::now() + PATIENCE;
    while pending(&status(&s).await) < 10 {
        assert!(Instant::now() < deadline, "not queued: {:#}", status(&s).await);
    }
    daemon.terminate().await.success();
    s.receiver.restart().unwrap();
    let daemon = Daemon::start(&s.installation).await;
    for path in ["/dev-plain", "/dev-signed"] {
        let mut values: Vec<String> = s.wait_for(path, 5).await.iter().map(value).collect();
        values.dedup();
        assert_eq!(values, ["0", "1", "2", "3", "4"], "{path}");
    }
    daemon.terminate().await.success();
}

#[tokio::test]
async fn endpoints_count_as_they_are_at_the_commit_and_are_called_as_they_are_at_the_attempt() {
    let s = Scene::new().await;
    let daemon = Daemon::start(&s.installation).await;
    // Disabled: from its commit on nothing new.
    s.set_value("before").await;
    s.sql("UPDATE environments_webhook SET enabled = false WHERE id = 2").await;
    s.set_value("disabled").await;
    s.sql("UPDATE environments_webhook SET enabled = true WHERE id = 2").await;
    s.set_value("after").await;
    let got = s.wait_for("/dev-plain", 2).await;
    assert_eq!(got.iter().map(value).collect::<Vec<_>>(), ["before", "after"]);

    // Moved and given another secret while a delivery waits: the next attempt goes there, signed anew.
    s.receiver.answer("/dev-plain", Answer::status(503));
    s.set_value("moved").await;
    s.wait_for("/dev-plain", 3).await;
    let moved = s.receiver.url("/moved");
    s.sql(&format!("UPDATE environments_webhook SET url = '{moved}', secret = 'new' WHERE id = 2")).await;
    let got = s.wait_for("/moved", 1).await;
    assert_eq!(value(&got[0]), "moved");
    let signature = flagpost::delivery::flagsmith_signature("new", &got[0].body);
    assert_eq!(got[0].header("x-flagsmith-signature"), signature.as_deref());

    // Deleted while a delivery waits: the queue goes with it, and the others go on.
    s.receiver.answer("/moved", Answer::status(500));
    s.set_value("last").await;
    s.wait_for("/moved", 2).await;
    s.sql("DELETE FROM environments_webhook WHERE id = 2").await;
    s.set_value("gone").await;
    let signed = s.wait_for("/dev-signed", 6).await;
    assert_eq!(value(signed.last().unwrap()), "gone");
    let count = at(&s.receiver.all(), "/moved").len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(at(&s.receiver.all(), "/moved").len() <= count + 1, "a deleted endpoint is still called");
    let status = s.installation.run(&["status", "--json"]).await.json();
    assert!(!status["endpoints"].to_string().contains("/moved"), "{status:#}");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn without_network_allow_loopback_is_refused_and_the_log_says_what_to_do() {
    let s = Scene::new().await;
    let installation = s.installation.with("FLAGPOST_NETWORK_ALLOW", "");
    let daemon = Daemon::start(&installation).await;
    s.client
        .batch_execute("UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1")
        .await
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !daemon.stderr().contains("network guard") {
        assert!(Instant::now() < deadline, "{}", daemon.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(daemon.stderr().contains("network.allow"), "{}", daemon.stderr());
    assert!(s.receiver.all().is_empty());
    daemon.terminate().await.success();
}

/// Ids are made of the change, not of who reads it: after a failover or a new snapshot receivers know what they have had.
#[tokio::test]
async fn daemons_with_slots_and_mirrors_of_their_own_give_the_same_ids_and_bodies() {
    let s = Scene::new().await;
    let first = Daemon::start(&s.installation).await;
    s.set_value("before").await;
    s.wait_for("/dev-plain", 1).await;
    let other = Installation::new(&s.installation.variable("FLAGPOST_DATABASE_URL"))
        .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8")
        .with("FLAGPOST_SOURCE_SETTLE", "0")
        .with("FLAGPOST_SOURCE_SLOT", "other");
    other.run(&["setup"]).await.success();
    let second = Daemon::start(&other).await;
    s.receiver.clear();
    for value in ["a", "b", "c"] {
        s.set_value(value).await;
    }
    s.sql("DELETE FROM features_featurestate WHERE id = 1").await;
    let all = s.wait_for("/dev-plain", 8).await;
    let mut by_id: std::collections::BTreeMap<&str, Vec<&Received>> = std::collections::BTreeMap::new();
    for received in &all {
        by_id.entry(id(received)).or_default().push(received);
    }
    assert_eq!(by_id.len(), 4, "{:?}", by_id.keys());
    for (id, twice) in by_id {
        assert_eq!(twice.len(), 2, "{id}");
        assert_eq!(twice[0].body, twice[1].body, "{id}");
    }
    first.terminate().await.success();
    second.terminate().await.success();
}
