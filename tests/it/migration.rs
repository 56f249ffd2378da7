//! Flagsmith's own migrations under a running daemon. Django drops columns with CASCADE, which takes a table out of a
//! publication with a column list, without a word in the stream.

use std::time::Duration;

use flagpost::change::Lsn;
use tokio_postgres::Client;

use crate::cli::site;
use crate::support::process::{Daemon, LONG};
use crate::support::{Source, cluster_options, has_column_lists};

async fn lsn(client: &Client, sql: &str) -> Lsn {
    client.query_one(sql, &[]).await.unwrap().get::<_, &str>(0).parse().unwrap()
}

const CONFIRMED: &str = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots";

#[tokio::test]
async fn a_table_that_leaves_the_publication_stops_the_daemon_with_nothing_confirmed_until_a_new_snapshot() {
    let (_cluster, client, receiver, installation) = site(Source::Replication, cluster_options()).await;
    installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&installation).await;
    // An optional column of one table, and changes of that table and of others after it.
    client
        .batch_execute("ALTER TABLE projects_project DROP COLUMN stale_flags_limit_days CASCADE")
        .await
        .unwrap();
    if !has_column_lists(&client).await {
        // No column list that would hang on the column: only somebody's hand takes a table out.
        client.batch_execute("ALTER PUBLICATION flagpost DROP TABLE projects_project").await.unwrap();
    }
    client.batch_execute("UPDATE projects_project SET name = 'missed'").await.unwrap();
    client
        .batch_execute("UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1")
        .await
        .unwrap();
    let after = lsn(&client, "SELECT pg_current_wal_lsn()::text").await;
    let output = daemon.ended(LONG).await;
    assert_eq!(output.code, 4, "{output:?}");
    let error = output.stderr.lines().last().unwrap();
    assert!(error.contains("has lost projects_project") && error.contains("setup --resnapshot"), "{error}");
    assert!(lsn(&client, CONFIRMED).await < after, "what was missed is confirmed");

    // Neither a start nor a setup goes on as if nothing had been missed, also when somebody mends the publication by hand.
    let started = Daemon::try_start(&installation).await.err().unwrap();
    assert!(started.code != 0 && started.stderr.contains("setup"), "{started:?}");
    let setup = installation.run(&["setup"]).await;
    assert_eq!(setup.code, 4, "{setup:?}");
    client.batch_execute("ALTER PUBLICATION flagpost ADD TABLE projects_project").await.unwrap();
    let started = Daemon::try_start(&installation).await.err().unwrap();
    assert!(started.code == 4 && started.stderr.contains("setup --resnapshot"), "{started:?}");

    installation.run(&["setup", "--resnapshot"]).await.success();
    let daemon = Daemon::start(&installation).await;
    client
        .batch_execute("UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1")
        .await
        .unwrap();
    receiver.wait_for(|all| !all.is_empty(), Duration::from_secs(20)).await.expect("a webhook");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn a_column_that_nobody_reads_may_come_and_go() {
    let (_cluster, client, receiver, installation) = site(Source::Replication, cluster_options()).await;
    installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&installation).await;
    for sql in [
        "ALTER TABLE features_featurestate ADD COLUMN novelty int DEFAULT 1",
        "ALTER TABLE features_feature DROP COLUMN is_archived CASCADE",
        "ALTER TABLE features_featurestate DROP COLUMN novelty CASCADE",
        "UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    receiver.wait_for(|all| all.len() >= 2, Duration::from_secs(20)).await.expect("webhooks");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn a_publication_that_is_dropped_is_not_made_again_as_if_nothing_had_been_missed() {
    let (_cluster, client, receiver, installation) = site(Source::Replication, cluster_options()).await;
    installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&installation).await;
    client.batch_execute("DROP PUBLICATION flagpost").await.unwrap();
    let before = lsn(&client, "SELECT pg_current_wal_lsn()::text").await;
    let toggle = "UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1";
    client.batch_execute(toggle).await.unwrap();
    let after = lsn(&client, "SELECT pg_current_wal_lsn()::text").await;
    // Up to version 17 the server ends the stream, from 18 on it leaves the changes out and goes on: then the watch tells.
    let output = daemon.ended(LONG).await;
    assert!(
        output.code != 0 && output.stderr.lines().last().unwrap().contains("flagpost setup"),
        "{output:?}"
    );
    assert!(before < after && lsn(&client, CONFIRMED).await < after, "what was missed is confirmed");

    let setup = installation.run(&["setup"]).await;
    assert!(setup.code == 4 && setup.stderr.contains("setup --resnapshot"), "{setup:?}");
    let started = Daemon::try_start(&installation).await.err().unwrap();
    assert!(started.code != 0 && started.stderr.contains("setup"), "{started:?}");

    installation.run(&["setup", "--resnapshot"]).await.success();
    let daemon = Daemon::start(&installation).await;
    client.batch_execute(toggle).await.unwrap();
    receiver.wait_for(|all| !all.is_empty(), Duration::from_secs(20)).await.expect("a webhook");
    daemon.terminate().await.success();
}
