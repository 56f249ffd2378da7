//! `make bench`: what the main job costs, on a real server, with the release binary. Each figure stands beside a floor that is
//! measured in the same run, since these machines are noisy: compare ratios, not milliseconds.
//!
//! Numbers as arguments pick parts: `cargo bench --bench pipeline -- latency decode delivery memory parked`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "the tests' support is shared, and a bench needs only a part of it"
)]

#[path = "../tests/it/support/mod.rs"]
mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flagpost::change::Lsn;
use flagpost::demo::cluster::{Cluster, find_bindir};
use flagpost::demo::receiver::Receiver;
use flagpost::source::{
    Catalog, Channels, ConnInfo, Feed, Follow, Item, Names, Origin, QUEUE, Replication, connect,
};
use support::flagsmith::{self, Schema};
use support::process::{Daemon, Installation};
use support::replay::{Pace, Replay, cases};
use support::{Source, cluster_options, golden};
use tokio::sync::{mpsc, watch};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(180);

/// A Flagsmith with `flags` flags in one environment, each with a state and a value (ids from 1001 on), and one endpoint.
async fn scene(cluster: &Cluster, receiver: &Receiver, flags: u32) -> Client {
    let schema = Schema::read(&golden().join("schema.json"));
    let client = flagsmith::database(cluster, &schema, receiver.addr()).await;
    let mut replay = Replay::new(&schema, &client, receiver.addr(), Pace::AT_ONCE);
    for path in cases().iter().take(4) {
        let case = replay.read(path);
        replay.case(&case).await;
    }
    let sql = format!(
        "DELETE FROM organisations_organisationwebhook; DELETE FROM environments_webhook WHERE url NOT LIKE '%dev-signed';
         INSERT INTO features_feature SELECT (jsonb_populate_record(f, jsonb_build_object(
             'id', 1000 + n, 'name', 'flag_' || n, 'uuid', gen_random_uuid()))).*
         FROM features_feature f, generate_series(1, {flags}) n WHERE f.id = 1;
         INSERT INTO features_featurestate SELECT (jsonb_populate_record(s, jsonb_build_object(
             'id', 1000 + n, 'feature_id', 1000 + n, 'uuid', gen_random_uuid()))).*
         FROM features_featurestate s, generate_series(1, {flags}) n WHERE s.id = 1;
         INSERT INTO features_featurestatevalue SELECT (jsonb_populate_record(v, jsonb_build_object(
             'id', 1000 + n, 'feature_state_id', 1000 + n, 'uuid', gen_random_uuid()))).*
         FROM features_featurestatevalue v, generate_series(1, {flags}) n WHERE v.id = 1;
         VACUUM ANALYZE"
    );
    for statement in sql.split(";\n").flat_map(|s| s.split("; ")) {
        client.batch_execute(statement).await.unwrap();
    }
    client
}

fn installation(cluster: &Cluster, settle: &str) -> Installation {
    Installation::new(&cluster.url("postgres", "flagsmith"))
        .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8")
        .with("FLAGPOST_WEBHOOKS_FORMAT", "current")
        .with("FLAGPOST_LOG_LEVEL", "warn")
        .with("FLAGPOST_SOURCE_SETTLE", settle)
}

fn percentile(sorted: &[f64], per_cent: usize) -> f64 {
    sorted[(sorted.len() - 1) * per_cent / 100]
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// An fsync of one page and a POST on loopback: nobody who is durable and speaks HTTP can be faster.
async fn floor_ms(receiver: &Receiver) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let mut file = std::fs::File::create(folder.path().join("page")).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = receiver.url("/floor");
    let mut times = Vec::new();
    for _ in 0..200 {
        use std::io::Write;
        let start = Instant::now();
        file.write_all(&[0_u8; 4096]).unwrap();
        file.sync_data().unwrap();
        client.post(&url).body(vec![b'x'; 1000]).send().await.unwrap();
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    receiver.clear();
    sorted(times)
}

async fn latency() {
    for (source, settle) in [
        (Source::Replication, "0"),
        (Source::Replication, "100ms"),
        (Source::Outbox, "0"),
        (Source::Outbox, "100ms"),
    ] {
        let options = source.options().set("track_commit_timestamp", "on");
        let cluster = Cluster::start(options).await.unwrap();
        let receiver = Receiver::start(0).unwrap();
        let client = scene(&cluster, &receiver, 100).await;
        let floor = floor_ms(&receiver).await;
        let installation = installation(&cluster, settle).with("FLAGPOST_SOURCE_MODE", source.mode());
        installation.run(&["setup"]).await.success();
        let daemon = Daemon::start(&installation).await;
        let mut times = Vec::new();
        for n in 0..500_usize {
            // The same flag again only after its window.
            let sql = format!(
                "WITH changed AS (UPDATE features_featurestate SET enabled = NOT enabled WHERE id = {} RETURNING 1)
                 SELECT pg_current_xact_id()::text FROM changed",
                1001 + n % 100
            );
            let xid: String = client.query_one(&sql, &[]).await.unwrap().get(0);
            let received = receiver.wait_for(|all| !all.is_empty(), PATIENCE).await.unwrap();
            receiver.clear();
            let sql = format!(
                "SELECT (extract(epoch FROM pg_xact_commit_timestamp('{xid}'::xid8::xid)) * 1000000)::bigint"
            );
            let committed: i64 = client.query_one(&sql, &[]).await.unwrap().get(0);
            times.push((received[0].at.as_microsecond() - committed) as f64 / 1000.0);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let times = sorted(times);
        println!(
            "latency commit→arrival, {:>11}, settle {settle:>5}: p50 {:6.2} ms   p99 {:6.2} ms   max {:6.2} ms   (floor, fsync + POST: p50 {:.2} ms, p99 {:.2} ms)",
            source.mode(),
            percentile(&times, 50),
            percentile(&times, 99),
            times[times.len() - 1],
            percentile(&floor, 50),
            percentile(&floor, 99),
        );
        daemon.terminate().await.success();
    }
}

/// Reads `transactions` transactions of ten rows each with our stream; seconds.
async fn our_stream(info: &ConnInfo, slot: &str, from: Lsn, end: Lsn) -> f64 {
    let names = Names { slot: slot.into(), publication: "flagpost".into(), schema: "public".into() };
    let catalog = Catalog::read(&connect(info).await.unwrap(), info, "public").await.unwrap();
    let system_id = Replication::connect(info).await.unwrap().server().system_id.clone();
    let (out, mut items) = mpsc::channel(QUEUE);
    let (_durable, receiver) = watch::channel(from);
    let channels = Channels::new(out, receiver);
    let origin = Origin::Replication(Follow::new(info.clone(), names, catalog, system_id, from));
    let stop = CancellationToken::new();
    let start = Instant::now();
    let feed = Feed::open(origin, channels).await.unwrap();
    let task = {
        let stop = stop.clone();
        tokio::spawn(async move { feed.follow(&stop).await })
    };
    loop {
        let delivery = items.recv().await.unwrap();
        let position = match &delivery.item {
            Item::Transaction(transaction, _) => transaction.end_lsn,
            Item::Alive { position, .. } => *position,
        };
        if position >= end {
            break;
        }
    }
    let took = start.elapsed().as_secs_f64();
    stop.cancel();
    task.await.unwrap().ok();
    took
}

fn pg_recvlogical(cluster: &Cluster, slot: &str, end: Lsn) -> f64 {
    let start = Instant::now();
    let status = Command::new(find_bindir().unwrap().join("pg_recvlogical"))
        .args(["-h", "127.0.0.1", "-p", &cluster.port().to_string(), "-U", "postgres", "-d", "flagsmith"])
        .args(["--slot", slot, "--start", "-f", "/dev/null", "--endpos", &end.to_string()])
        .args(["-o", "proto_version=1", "-o", "publication_names=flagpost"])
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    start.elapsed().as_secs_f64()
}

async fn decode() {
    const TRANSACTIONS: u32 = 2_000;
    const ROWS: u32 = 50;
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let receiver = Receiver::start(0).unwrap();
    let client = scene(&cluster, &receiver, 100).await;
    installation(&cluster, "0").run(&["setup", "--no-mirror"]).await.success();
    let info = ConnInfo::parse(&cluster.url("postgres", "flagsmith"), None).unwrap();
    let mut ratios = Vec::new();
    for round in 0..3 {
        let (ours, theirs) = (format!("ours_{round}"), format!("theirs_{round}"));
        let create = format!(
            "SELECT lsn::text AS lsn FROM pg_create_logical_replication_slot('{ours}', 'pgoutput');
             SELECT slot_name FROM pg_create_logical_replication_slot('{theirs}', 'pgoutput')"
        );
        let mut from = Lsn::default();
        for message in client.simple_query(&create).await.unwrap() {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message
                && let Ok(Some(lsn)) = row.try_get("lsn")
            {
                from = lsn.parse().unwrap();
            }
        }
        client
            .batch_execute(&format!(
                "CREATE OR REPLACE PROCEDURE churn() LANGUAGE plpgsql AS $$ BEGIN
                     FOR n IN 1..{TRANSACTIONS} LOOP
                         UPDATE features_featurestatevalue SET string_value = 'round {round} ' || n
                             WHERE id BETWEEN 1001 AND {};
                         COMMIT;
                     END LOOP; END $$",
                1000 + ROWS
            ))
            .await
            .unwrap();
        client.batch_execute("CALL churn()").await.unwrap();
        let end: String =
            client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
        // Something to end on.
        client
            .batch_execute("UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1001")
            .await
            .unwrap();
        let end: Lsn = end.parse().unwrap();
        // First one, then the other, in turns.
        let run_ours = our_stream(&info, &ours, from, end);
        let (us, them) = if round % 2 == 0 {
            let us = run_ours.await;
            (us, pg_recvlogical(&cluster, &theirs, end))
        } else {
            let them = pg_recvlogical(&cluster, &theirs, end);
            (run_ours.await, them)
        };
        let rows = f64::from(TRANSACTIONS * ROWS);
        println!(
            "decode, round {round}: flagpost {:>9.0} rows/s   pg_recvlogical -f /dev/null {:>9.0} rows/s   ratio {:.2}",
            rows / us,
            rows / them,
            them / us
        );
        ratios.push(them / us);
        client
            .batch_execute(&format!(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                 WHERE slot_name IN ('{ours}', '{theirs}') AND NOT active"
            ))
            .await
            .unwrap();
    }
    println!("decode: ratio to pg_recvlogical (median of 3) {:.2}", percentile(&sorted(ratios), 50));
}

async fn delivery() {
    const EVENTS: u32 = 5_000;
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let receiver = Receiver::start(0).unwrap();
    let client = scene(&cluster, &receiver, EVENTS).await;
    let installation = installation(&cluster, "0");
    installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&installation).await;
    let start = Instant::now();
    client
        .batch_execute("UPDATE features_featurestate SET enabled = NOT enabled WHERE id > 1000")
        .await
        .unwrap();
    let received = receiver.wait_for(|all| all.len() >= EVENTS as usize, PATIENCE).await.unwrap();
    let first = received.iter().map(|r| r.at).min().unwrap();
    let last = received.iter().map(|r| r.at).max().unwrap();
    let sending = last.duration_since(first).as_secs_f64();
    let whole = start.elapsed().as_secs_f64();
    let body = received[0].body.clone();
    receiver.clear();

    // The floor: a raw HTTP client on as many connections, no ledger, nothing to sign.
    let floor = raw_posts(receiver.addr(), &body, EVENTS).await;
    let rate = f64::from(EVENTS) / sending;
    println!(
        "delivery: {rate:.0} webhooks/s with the durable ledger (capture of {EVENTS} events included: {:.0}/s)   raw hyper POSTs {floor:.0}/s   ratio {:.2}",
        f64::from(EVENTS) / whole,
        rate / floor
    );
    daemon.terminate().await.success();
}

/// POSTs a second of a bare hyper client on 16 connections.
async fn raw_posts(addr: std::net::SocketAddr, body: &[u8], count: u32) -> f64 {
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let body = bytes::Bytes::copy_from_slice(body);
        tasks.spawn(async move {
            let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let io = hyper_util::rt::TokioIo::new(stream);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            for _ in 0..count / 16 {
                let request = hyper::Request::post("/floor")
                    .header("host", "127.0.0.1")
                    .header("content-type", "application/json")
                    .body(http_body_util::Full::new(body.clone()))
                    .unwrap();
                let response = sender.send_request(request).await.unwrap();
                assert!(response.status().is_success());
                http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    f64::from(count) / start.elapsed().as_secs_f64()
}

fn memory_of(daemon: &Daemon, key: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

async fn memory() {
    const ROWS: u32 = 100_000;
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let receiver = Receiver::start(0).unwrap();
    let client = scene(&cluster, &receiver, 100).await;
    let installation = installation(&cluster, "100ms");
    installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&installation).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("memory: idle {:.1} MB RSS", memory_of(&daemon, "VmRSS"));
    // A hundred thousand identity overrides, made in one transaction: each row is an event.
    client
        .batch_execute(&format!(
            "BEGIN;
             DELETE FROM environments_webhook;
             INSERT INTO environments_identity SELECT n, 'user-' || n, now(), 1, '{{}}' FROM generate_series(1, {ROWS}) n;
             INSERT INTO features_featurestate SELECT (jsonb_populate_record(s, jsonb_build_object(
                 'id', 1000000 + n, 'identity_id', n, 'uuid', gen_random_uuid()))).*
             FROM features_featurestate s, generate_series(1, {ROWS}) n WHERE s.id = 1001;
             COMMIT"
        ))
        .await
        .unwrap();
    let peak_of = async |what: &str, sql: &str| {
        client.batch_execute(sql).await.unwrap();
        let end: String =
            client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
        let end: Lsn = end.parse().unwrap();
        let start = Instant::now();
        loop {
            let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots";
            let at: String = client.query_one(sql, &[]).await.unwrap().get(0);
            if at.parse::<Lsn>().unwrap() >= end {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{}", daemon.stderr());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        println!(
            "memory: {what}: peak {:.1} MB, now {:.1} MB RSS, durable after {:.1} s",
            memory_of(&daemon, "VmHWM"),
            memory_of(&daemon, "VmRSS"),
            start.elapsed().as_secs_f64()
        );
    };
    peak_of("200 000 rows inserted in one transaction", "SELECT 1").await;
    peak_of(
        "100 000 rows updated in one transaction",
        "UPDATE features_featurestate SET enabled = NOT enabled WHERE id > 1000000",
    )
    .await;
    daemon.terminate().await.success();
}

/// A million deliveries that wait for twenty endpoints of which none answers.
async fn parked() {
    const EVENTS: u32 = 50_000;
    const ENDPOINTS: u32 = 20;
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let mut receiver = Receiver::start(0).unwrap();
    let client = scene(&cluster, &receiver, EVENTS).await;
    client
        .batch_execute(&format!(
            "INSERT INTO environments_webhook SELECT (jsonb_populate_record(w, jsonb_build_object(
                 'id', 100 + n, 'url', w.url || n))).*
             FROM environments_webhook w, generate_series(2, {ENDPOINTS}) n"
        ))
        .await
        .unwrap();
    receiver.stop();
    let installation = installation(&cluster, "0");
    installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&installation).await;
    let start = Instant::now();
    client
        .batch_execute("UPDATE features_featurestate SET enabled = NOT enabled WHERE id > 1000")
        .await
        .unwrap();
    let wanted = u64::from(EVENTS * ENDPOINTS);
    let (pending, asked) = loop {
        let asked = Instant::now();
        let status = installation.run(&["status", "--json"]).await.json();
        let endpoints = status["endpoints"].as_array().unwrap();
        let pending: u64 = endpoints.iter().map(|e| e["pending"].as_u64().unwrap()).sum();
        if pending >= wanted {
            break (pending, asked.elapsed());
        }
        assert!(start.elapsed() < PATIENCE, "{pending} of {wanted}: {}", daemon.stderr());
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    println!(
        "parked: {pending} deliveries for {ENDPOINTS} endpoints that are down, queued after {:.0} s: peak {:.1} MB, now {:.1} MB RSS; status answers in {:.1} s",
        start.elapsed().as_secs_f64(),
        memory_of(&daemon, "VmHWM"),
        memory_of(&daemon, "VmRSS"),
        asked.as_secs_f64()
    );
    let start = Instant::now();
    receiver.restart().unwrap();
    let first = 20_000;
    receiver.wait_for(|all| all.len() >= first, PATIENCE).await.unwrap();
    println!(
        "parked: the endpoints are back: the first {first} arrived after {:.1} s, {:.1} MB RSS",
        start.elapsed().as_secs_f64(),
        memory_of(&daemon, "VmRSS")
    );
    daemon.terminate().await.success();
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|w| w == part);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        if wants("latency") {
            latency().await;
        }
        if wants("decode") {
            decode().await;
        }
        if wants("delivery") {
            delivery().await;
        }
        if wants("memory") {
            memory().await;
        }
        if wants("parked") {
            parked().await;
        }
    });
}
