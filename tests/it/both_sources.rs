//! Two daemons on one database, one by replication and one by the outbox: every recorded case gives the same events.

use std::collections::BTreeMap;
use std::time::Duration;

use flagpost::demo::cluster::Cluster;
use flagpost::demo::receiver::{Received, Receiver};

use crate::support::flagsmith::{self, Schema};
use crate::support::process::Daemon;
use crate::support::replay::{Pace, Replay, cases};
use crate::support::{Source, cluster_options, golden};

const PATIENCE: Duration = Duration::from_secs(60);

/// What tells two deliveries apart: the endpoint, and the event's id.
fn key(received: &Received) -> (&str, &str) {
    (&received.path, received.header("x-flagpost-event-id").unwrap())
}

#[tokio::test]
async fn every_recorded_case_gives_the_same_ids_and_bodies_in_the_same_order() {
    // With the server's own commit times in both.
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let schema = Schema::read(&golden().join("schema.json"));
    let receiver = Receiver::start(0).unwrap();
    let client = flagsmith::database(&cluster, &schema, receiver.addr()).await;
    let mut daemons = Vec::new();
    for source in [Source::Replication, Source::Outbox] {
        let installation = source
            .installation(&cluster.url("postgres", "flagsmith"))
            .with("FLAGPOST_WEBHOOKS_FORMAT", "current")
            .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8");
        installation.run(&["setup"]).await.success();
        daemons.push((Daemon::start(&installation).await, installation));
    }
    let mut replay = Replay::new(&schema, &client, receiver.addr(), Pace::AT_ONCE);
    for path in cases() {
        let case = replay.read(&path);
        replay.case(&case).await;
        // Windows close between most cases.
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    // The last of all, on both: every other one is on its way then, or has come.
    client
        .batch_execute(
            "INSERT INTO audit_auditlog (id, created_date, log, project_id, is_system_event)
             VALUES (1000000, '2026-01-01', 'end of all', 1, false)",
        )
        .await
        .unwrap();
    let by_key = |all: &[Received]| {
        let mut by_key: BTreeMap<(String, String), usize> = BTreeMap::new();
        for received in all {
            let (path, id) = key(received);
            *by_key.entry((path.to_owned(), id.to_owned())).or_default() += 1;
        }
        by_key
    };
    let is_complete = |all: &[Received]| {
        all.iter().filter(|r| String::from_utf8_lossy(&r.body).contains("end of all")).count() == 4
            && by_key(all).values().all(|count| *count == 2)
    };
    let received = receiver.wait_for(is_complete, PATIENCE).await.unwrap_or_else(|all| all);
    let mut pairs: BTreeMap<(&str, &str), Vec<&Received>> = BTreeMap::new();
    for received in &received {
        pairs.entry(key(received)).or_default().push(received);
    }
    for (key, pair) in &pairs {
        let bodies: Vec<_> = pair.iter().map(|r| String::from_utf8_lossy(&r.body)).collect();
        assert_eq!(pair.len(), 2, "{key:?}: {bodies:?}");
        assert_eq!(bodies[0], bodies[1], "{key:?}");
        // Which number of its flag and environment an event has is its place in their order.
        let number = |r: &Received| r.header("x-flagpost-sequence").unwrap().to_owned();
        assert_eq!(number(pair[0]), number(pair[1]), "{key:?}: {}", bodies[0]);
    }
    assert!(pairs.len() > 300, "only {}", pairs.len());
    for (daemon, _installation) in daemons {
        daemon.terminate().await.success();
    }
}
