//! Quiet flag tables beside busy other ones: the slot does not hold the server's log back.

use std::time::Duration;

use flagpost::change::Lsn;
use flagpost::demo::cluster::Cluster;
use tokio_postgres::Client;

use crate::cli::flagsmith;
use crate::support::cluster_options;
use crate::support::mute::without_keepalives;
use crate::support::process::{Daemon, Installation};

const PATIENCE: Duration = Duration::from_secs(30);

async fn lsn(client: &Client, sql: &str) -> Lsn {
    client.query_one(sql, &[]).await.unwrap().get::<_, &str>(0).parse().unwrap()
}

/// CPU seconds that a process has used (`/proc/PID/stat`, fields 14 and 15, in ticks of 10 ms).
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::test]
async fn the_slot_follows_a_busy_table_that_is_not_published_and_that_costs_us_nothing() {
    let cluster = Cluster::start(cluster_options().set("max_wal_size", "256MB")).await.unwrap();
    let client = flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let installation = Installation::new(&cluster.url("postgres", "flagsmith"));
    installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&installation).await;
    client.batch_execute("CREATE TABLE task_processor_task (id int, payload text)").await.unwrap();
    let start = lsn(&client, "SELECT pg_current_wal_lsn()::text").await;
    let (cpu_before, began) = (cpu_seconds(daemon.pid()), std::time::Instant::now());
    for _ in 0..10 {
        // 30 MB of log each time.
        client
            .batch_execute(
                "INSERT INTO task_processor_task SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 40000) n;
                 TRUNCATE task_processor_task; CHECKPOINT",
            )
            .await
            .unwrap();
    }
    let end = lsn(&client, "SELECT pg_current_wal_lsn()::text").await;
    assert!(end.0 - start.0 > 200_000_000, "too little log was written for a test: {}", end.0 - start.0);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        // A checkpoint writes the record from which the server learns that older log is not needed.
        client.batch_execute("CHECKPOINT").await.unwrap();
        let restart = lsn(&client, "SELECT restart_lsn::text FROM pg_replication_slots").await;
        let confirmed = lsn(&client, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots").await;
        if restart >= end && confirmed >= end {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "restart_lsn is {restart}, the log ended at {end}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (used, took) = (cpu_seconds(daemon.pid()) - cpu_before, began.elapsed().as_secs_f64());
    assert!(used < took * 0.1, "{used} s of CPU in {took} s for a table that we do not read");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn the_slot_follows_the_other_databases_of_the_cluster_while_flagsmith_is_idle() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let client = flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let installation = Installation::new(&cluster.url("postgres", "flagsmith"));
    installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&installation).await;
    cluster.create_database("busy").await.unwrap();
    let busy = cluster.connect("busy").await.unwrap();
    busy.batch_execute("CREATE TABLE t (id int, payload text)").await.unwrap();
    for _ in 0..3 {
        let sql =
            "INSERT INTO t SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 30000) n; CHECKPOINT";
        busy.batch_execute(sql).await.unwrap();
    }
    let end = lsn(&client, "SELECT pg_current_wal_lsn()::text").await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        // Writes the record from which the server learns that older log is not needed; a server at work does so by itself.
        client.batch_execute("CHECKPOINT").await.unwrap();
        let confirmed = lsn(&client, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots").await;
        let restart = lsn(&client, "SELECT restart_lsn::text FROM pg_replication_slots").await;
        if confirmed >= end && restart >= end {
            break;
        }
        let now = tokio::time::Instant::now();
        assert!(now < deadline, "confirmed {confirmed}, restart {restart}, the log ended at {end}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    daemon.terminate().await.success();
}

#[tokio::test]
async fn where_no_keepalive_comes_through_the_heartbeat_moves_the_slot() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let client = flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let installation = Installation::new(&without_keepalives(&cluster).await);
    client.batch_execute("CREATE TABLE t (id int)").await.unwrap();
    installation.run(&["setup"]).await.success();
    let confirmed = || lsn(&client, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots");
    let before = confirmed().await;
    // Of others, in any encoding, in a transaction and in none. The last is what moves the log: PostgreSQL 14 streams empty
    // transactions, which move a slot too.
    let foreign = "SELECT pg_logical_emit_message(false, 'other', 'x')";
    let marks = "INSERT INTO t VALUES (1);
         SELECT pg_logical_emit_message(true, 'flagpost', 'x'),
                pg_logical_emit_message(false, 'flagpost2', '\\xff00'::bytea)";

    let daemon = Daemon::start(&installation).await;
    client.batch_execute(foreign).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(confirmed().await, before, "keepalives come through");
    daemon.terminate().await.success();

    let installation = installation.with("FLAGPOST_SOURCE_HEARTBEAT", "1s");
    let daemon = Daemon::start(&installation).await;
    client.batch_execute(marks).await.unwrap();
    client.batch_execute(foreign).await.unwrap();
    let written = lsn(&client, "SELECT pg_current_wal_lsn()::text").await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while confirmed().await < written {
        let now = tokio::time::Instant::now();
        assert!(now < deadline, "confirmed {}, written {written}: {}", confirmed().await, daemon.stderr());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!daemon.stderr().contains("WARN"), "{}", daemon.stderr());
    daemon.terminate().await.success();
}
