//! Scheduled changes in real seconds: no row changes at `live_from`, no task processor runs; the daemon's own timer fires.

use std::collections::HashSet;
use std::time::Duration;

use flagpost::demo::cluster::Cluster;
use flagpost::demo::receiver::{Received, Receiver};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value as Json;
use tokio_postgres::Client;

use crate::cli::site;
use crate::support::process::{Daemon, Installation};
use crate::support::{Source, on_both_sources};

const PATIENCE: Duration = Duration::from_secs(20);

on_both_sources!(a_scheduled_change_is_told_at_its_moment_once_over_restarts_and_never_when_it_was_withdrawn,);

struct Scene {
    client: Client,
    receiver: Receiver,
    installation: Installation,
    _cluster: Cluster,
}

impl Scene {
    /// Four flags in Development, each with a change request that nobody has committed.
    async fn new(source: Source) -> Scene {
        let (cluster, client, receiver, installation) = site(source, source.options()).await;
        client
            .batch_execute(
                "INSERT INTO features_feature SELECT (jsonb_populate_record(f, jsonb_build_object(
                     'id', 100 + n, 'name', 'flag_' || n, 'uuid', gen_random_uuid()))).*
                 FROM features_feature f, generate_series(1, 4) n WHERE f.id = 1;
                 INSERT INTO features_featurestate SELECT (jsonb_populate_record(s, jsonb_build_object(
                     'id', 100 + n, 'feature_id', 100 + n, 'enabled', false, 'uuid', gen_random_uuid()))).*
                 FROM features_featurestate s, generate_series(1, 4) n WHERE s.id = 1;
                 INSERT INTO workflows_core_changerequest SELECT (jsonb_populate_record(
                     NULL::workflows_core_changerequest, jsonb_build_object('id', n, 'title', 'Später: 100 %', 'user_id', 1,
                     'created_at', now(), 'updated_at', now(), 'uuid', gen_random_uuid(), 'environment_id', 1,
                     'project_id', 1, 'ignore_conflicts', false))).*
                 FROM generate_series(1, 4) n",
            )
            .await
            .unwrap();
        installation.run(&["setup"]).await.success();
        Scene { client, receiver, installation, _cluster: cluster }
    }

    /// Flag `n` is to be enabled so much later, by its change request, as Flagsmith writes it: the draft, then the commit.
    async fn schedule(&self, n: i32, ahead: SignedDuration) -> Timestamp {
        let live_from = Timestamp::now() + ahead;
        self.client
            .batch_execute(&format!(
                "INSERT INTO features_featurestate SELECT (jsonb_populate_record(s, jsonb_build_object(
                     'id', 200 + {n}, 'enabled', true, 'version', NULL, 'live_from', '{live_from}', 'change_request_id', {n},
                     'uuid', gen_random_uuid()))).*
                 FROM features_featurestate s WHERE s.id = 100 + {n}"
            ))
            .await
            .unwrap();
        for sql in [
            "UPDATE features_featurestate SET version = 2 WHERE id = 200 + ",
            "UPDATE workflows_core_changerequest SET committed_at = clock_timestamp() WHERE id = ",
        ] {
            self.client.batch_execute(&format!("{sql}{n}")).await.unwrap();
        }
        live_from
    }

    async fn wait_for(&self, count: usize) -> Vec<Received> {
        let all = self.receiver.wait_for(|all| at_dev(all).len() >= count, PATIENCE).await;
        at_dev(&all.unwrap_or_else(|all| panic!("{} of {count} came", at_dev(&all).len())))
    }
}

/// Repeats once: a daemon that is killed right after a call sends it again.
fn at_dev(all: &[Received]) -> Vec<Received> {
    let mut seen = HashSet::new();
    let is_new = |r: &&Received| seen.insert(r.header("x-flagpost-event-id").unwrap().to_owned());
    all.iter().filter(|r| r.path == "/dev-plain").filter(is_new).cloned().collect()
}

fn flag(received: &Received) -> String {
    let body: Json = serde_json::from_slice(&received.body).unwrap();
    let data = &body["data"];
    assert_eq!(
        (&data["previous_state"]["enabled"], &data["new_state"]["enabled"]),
        (&false.into(), &true.into())
    );
    data["new_state"]["feature"]["name"].as_str().unwrap().to_owned()
}

async fn a_scheduled_change_is_told_at_its_moment_once_over_restarts_and_never_when_it_was_withdrawn(
    source: Source,
) {
    let scene = Scene::new(source).await;
    let daemon = Daemon::start(&scene.installation).await;
    let first = scene.schedule(1, SignedDuration::from_millis(900)).await;
    let second = scene.schedule(2, SignedDuration::from_millis(1200)).await;
    // Withdrawn before its time: nothing of it is ever told.
    scene.schedule(3, SignedDuration::from_millis(800)).await;
    scene
        .client
        .batch_execute("UPDATE workflows_core_changerequest SET deleted_at = clock_timestamp() WHERE id = 3")
        .await
        .unwrap();
    // Put off: told at the later time only, when the daemon is down.
    scene.schedule(4, SignedDuration::from_millis(1000)).await;
    let third = Timestamp::now() + SignedDuration::from_millis(2500);
    scene
        .client
        .batch_execute(&format!("UPDATE features_featurestate SET live_from = '{third}' WHERE id = 204"))
        .await
        .unwrap();

    let got = scene.wait_for(2).await;
    assert_eq!([flag(&got[0]), flag(&got[1])], ["flag_1", "flag_2"]);
    let delays: Vec<i128> = [(&got[0], first), (&got[1], second)]
        .map(|(received, due)| received.at.duration_since(due).as_millis())
        .to_vec();
    assert!(delays.iter().all(|ms| *ms >= 0), "told before its time: {delays:?} ms");
    // The promise is 100 ms; a busy machine may miss it once.
    assert!(delays.iter().any(|ms| *ms <= 100) && delays.iter().all(|ms| *ms < 1000), "{delays:?} ms");
    for received in &got {
        assert_eq!(received.header("x-flagpost-action"), Some("scheduled;scope=default"));
        assert_eq!(received.header("x-flagpost-sequence"), Some("1"));
        assert_eq!(received.header("x-flagpost-change-request-title"), Some("Sp%C3%A4ter%3A%20100%20%25"));
    }
    assert_eq!(got[0].header("x-flagpost-change-request-id"), Some("1"));

    daemon.kill();
    let until_due = third.duration_since(Timestamp::now()) + SignedDuration::from_millis(200);
    tokio::time::sleep(Duration::try_from(until_due).unwrap_or_default()).await;
    assert_eq!(at_dev(&scene.receiver.all()).len(), 2);
    let daemon = Daemon::start(&scene.installation).await;
    let got = scene.wait_for(3).await;
    assert_eq!(flag(&got[2]), "flag_4");
    assert_eq!(got[2].header("x-flagpost-action"), Some("scheduled;scope=default"));
    daemon.terminate().await.success();

    // One more start: what was told stays told, what was withdrawn stays silent.
    let daemon = Daemon::start(&scene.installation).await;
    scene
        .client
        .batch_execute("UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1")
        .await
        .unwrap();
    let got = scene.wait_for(4).await;
    assert_eq!(got[3].header("x-flagpost-action"), Some("updated;scope=default"));
    daemon.terminate().await.success();
}
