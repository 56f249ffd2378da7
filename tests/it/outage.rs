//! Endpoints that are down, overloaded or gone, a disk that is full, and what becomes of what waits meanwhile.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use flagpost::demo::receiver::{Answer, Received};
use flagpost::event::EndpointKey;
use flagpost::ledger::Operator;
use serde_json::Value as Json;

use crate::delivery::{PATIENCE, Scene, at, id, value};
use crate::support::process::{Daemon, until};

const PLAIN: &str = "/dev-plain";

/// The number under this key of the endpoint with this path.
fn number(status: &Json, path: &str, key: &str) -> u64 {
    let endpoints = status["endpoints"].as_array().unwrap();
    let endpoint = endpoints.iter().find(|e| e["url"].as_str().is_some_and(|url| url.ends_with(path)));
    endpoint.unwrap_or_else(|| panic!("{path} is not in {status:#}"))[key].as_u64().unwrap()
}

#[tokio::test]
async fn an_open_breaker_probes_with_one_delivery_and_lets_everything_go_once_the_endpoint_is_back() {
    let s = Scene::new().await;
    s.flags(60).await;
    let s = s
        .with("FLAGPOST_DELIVERY_RETRY", "1h")
        .with("FLAGPOST_DELIVERY_BREAKER_FAILURES", "5")
        .with("FLAGPOST_DELIVERY_BREAKER_AFTER", "0")
        .with("FLAGPOST_DELIVERY_BREAKER_PROBE", "1s");
    s.installation.run(&["setup", "--resnapshot"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.answer(PLAIN, Answer::status(500));
    s.sql("UPDATE features_featurestate SET enabled = NOT enabled WHERE id > 1000").await;
    until(PATIENCE, "the breaker opens", async || daemon.stderr().contains("its breaker is open")).await;
    // What was under way ends, and then only probes come, half a second to a second apart.
    s.wait_for("/dev-signed", 60).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = at(&s.receiver.all(), PLAIN).len();
    assert!(before < 60, "the breaker let all {before} pass");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let probes = at(&s.receiver.all(), PLAIN).len() - before;
    assert!((1..=5).contains(&probes), "{probes} probes in 2 s");
    // Everything waits for an hour, but the endpoint is back.
    s.receiver.clear();
    s.receiver.answer(PLAIN, Answer::status(200));
    let got = s.wait_for(PLAIN, 60).await;
    let mut ids: Vec<&str> = got.iter().map(id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 60);
    assert!(daemon.stderr().contains("its breaker is closed"), "{}", daemon.stderr());
    daemon.terminate().await.success();
}

#[tokio::test]
async fn an_open_breaker_outlives_a_restart() {
    let s = Scene::new()
        .await
        .with("FLAGPOST_DELIVERY_RETRY", "100ms")
        .with("FLAGPOST_DELIVERY_BREAKER_FAILURES", "1")
        .with("FLAGPOST_DELIVERY_BREAKER_AFTER", "0")
        .with("FLAGPOST_DELIVERY_BREAKER_PROBE", "1h");
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.answer(PLAIN, Answer::status(500));
    s.set_value("a").await;
    until(PATIENCE, "the breaker opens", async || daemon.stderr().contains("its breaker is open")).await;
    daemon.terminate().await.success();
    let calls = at(&s.receiver.all(), PLAIN).len();
    let daemon = Daemon::start(&s.installation).await;
    s.set_value("b").await;
    s.wait_for("/dev-signed", 2).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(at(&s.receiver.all(), PLAIN).len(), calls, "an open breaker let something pass");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn gone_pauses_the_endpoint_and_an_operator_resumes_it_with_everything_in_order() {
    let s = Scene::new().await;
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.script(PLAIN, [Answer::status(410)]);
    for value in ["a", "b", "c"] {
        s.set_value(value).await;
    }
    s.wait_for("/dev-signed", 3).await;
    assert!(daemon.stderr().contains("paused"), "{}", daemon.stderr());
    assert_eq!(at(&s.receiver.all(), PLAIN).len(), 1);
    // Also over a restart.
    daemon.terminate().await.success();
    let daemon = Daemon::start(&s.installation).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(at(&s.receiver.all(), PLAIN).len(), 1, "a paused endpoint is called");
    let mut operator = Operator::open(&s.installation.state_dir()).unwrap();
    operator.resume(EndpointKey::Environment(2)).unwrap();
    let got = s.wait_for(PLAIN, 4).await;
    assert_eq!(got.iter().map(value).collect::<Vec<_>>(), ["a", "a", "b", "c"]);
    daemon.terminate().await.success();
}

#[tokio::test]
async fn retry_after_is_kept_for_the_whole_endpoint() {
    let s = Scene::new().await;
    s.flags(3).await;
    s.installation.run(&["setup", "--resnapshot"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.script(PLAIN, [Answer::status(429).header("retry-after", "2")]);
    s.sql("UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1001").await;
    let first = s.wait_for(PLAIN, 1).await.remove(0);
    until(PATIENCE, "the answer is on record", async || daemon.stderr().contains("delivery failed")).await;
    s.sql("UPDATE features_featurestate SET enabled = NOT enabled WHERE id IN (1002, 1003)").await;
    let got = s.wait_for(PLAIN, 4).await;
    for other in &got[1..] {
        let waited = other.at.duration_since(first.at).as_secs_f64();
        assert!(waited >= 1.9, "asked again after {waited} s, of 2 s wanted");
    }
    daemon.terminate().await.success();
}

#[tokio::test]
async fn what_waited_too_long_behind_an_open_breaker_becomes_a_dead_letter_and_is_kept() {
    let s = Scene::new().await;
    s.flags(3).await;
    let s = s
        .with("FLAGPOST_DELIVERY_RETRY", "100ms")
        .with("FLAGPOST_DELIVERY_MAX_IN_FLIGHT", "1")
        .with("FLAGPOST_DELIVERY_BREAKER_FAILURES", "1")
        .with("FLAGPOST_DELIVERY_BREAKER_AFTER", "0")
        .with("FLAGPOST_DELIVERY_BREAKER_PROBE", "1h");
    s.installation.run(&["setup", "--resnapshot"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.answer(PLAIN, Answer::status(500));
    s.sql("UPDATE features_featurestate SET enabled = NOT enabled WHERE id > 1000").await;
    s.wait_for(PLAIN, 1).await;
    s.wait_for("/dev-signed", 3).await;
    daemon.terminate().await.success();
    assert_eq!(number(&s.status().await, PLAIN, "pending"), 3);
    let s = s.with("FLAGPOST_DELIVERY_MAX_AGE", "1s");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let daemon = Daemon::start(&s.installation).await;
    until(PATIENCE, "they are given up", async || number(&s.status().await, PLAIN, "dead") == 3).await;
    assert_eq!(number(&s.status().await, PLAIN, "pending"), 0);
    daemon.terminate().await.success();
}

#[tokio::test]
async fn retention_forgets_what_is_over_and_never_what_is_still_to_be_sent() {
    let s = Scene::new().await;
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.answer(PLAIN, Answer::status(500));
    for value in ["a", "b", "c"] {
        s.set_value(value).await;
    }
    s.wait_for("/dev-signed", 3).await;
    until(PATIENCE, "it is on record", async || number(&s.status().await, "/dev-signed", "delivered") == 3)
        .await;
    daemon.terminate().await.success();
    let events = async |s: &Scene| s.status().await["ledger"]["events"].as_u64().unwrap();
    assert_eq!(events(&s).await, 3);
    // Everything is too old and too large, but it is pending for one endpoint.
    let s = s.with("FLAGPOST_STATE_RETENTION", "1ms").with("FLAGPOST_STATE_MAX_SIZE", "1");
    let daemon = Daemon::start(&s.installation).await;
    until(PATIENCE, "it says so", async || {
        daemon.stderr().contains("still to be sent: nothing of it is dropped")
    })
    .await;
    assert_eq!(events(&s).await, 3);
    s.receiver.clear();
    s.receiver.answer(PLAIN, Answer::status(200));
    // A call that was answered with 500 may have come after the list was cleared.
    let values = |all: &[Received]| {
        let mut values: Vec<String> = all.iter().filter(|r| r.path == PLAIN).map(value).collect();
        values.dedup();
        values
    };
    let got = s.receiver.wait_for(|all| values(all).len() >= 3, PATIENCE).await.unwrap_or_else(|all| all);
    assert_eq!(values(&got), ["a", "b", "c"]);
    until(PATIENCE, "it is on record", async || number(&s.status().await, PLAIN, "delivered") == 3).await;
    daemon.terminate().await.success();
    s.receiver.clear();
    let daemon = Daemon::start(&s.installation).await;
    until(PATIENCE, "they are forgotten", async || events(&s).await == 0).await;
    // A flag's numbers go on.
    s.set_value("d").await;
    let got = s.wait_for(PLAIN, 1).await;
    assert_eq!(got.last().unwrap().header("x-flagpost-sequence"), Some("4"));
    daemon.terminate().await.success();
}

#[tokio::test]
async fn an_endpoint_gets_so_many_calls_at_once_and_its_backlog_delays_no_other() {
    const FLAGS: u32 = 300;
    let s = Scene::new().await.with("FLAGPOST_DELIVERY_MAX_IN_FLIGHT", "8");
    s.flags(FLAGS).await;
    s.installation.run(&["setup", "--resnapshot"]).await.success();
    let mut operator = Operator::open(&s.installation.state_dir()).unwrap();
    operator.pause(EndpointKey::Environment(2), "to get a backlog").unwrap();
    let daemon = Daemon::start(&s.installation).await;
    s.sql("UPDATE features_featurestate SET enabled = NOT enabled WHERE id > 1000").await;
    s.wait_for("/dev-signed", FLAGS as usize).await;
    let took = Duration::from_millis(100);
    s.receiver.answer(PLAIN, Answer::status(200).after(took));
    operator.resume(EndpointKey::Environment(2)).unwrap();
    s.wait_for(PLAIN, 20).await;
    // In the middle of it, something new for both.
    s.receiver.answer("/dev-signed", Answer::status(200));
    s.set_value("new").await;
    let signed = s.wait_for("/dev-signed", FLAGS as usize + 1).await;
    let of_new = signed.last().unwrap().at;
    let plain = s.wait_for(PLAIN, FLAGS as usize + 1).await;
    let last = plain.iter().map(|r| r.at).max().unwrap();
    assert!(of_new < last, "the new one waited for another endpoint's backlog");
    // Who comes while others are being answered is under way with them; a little less than the answer takes, for the clock.
    let mut arrivals: Vec<i64> = plain.iter().map(|r| r.at.as_microsecond()).collect();
    arrivals.sort_unstable();
    let window = i64::try_from((took - Duration::from_millis(5)).as_micros()).unwrap();
    let at_once = |from: i64| arrivals.iter().filter(|at| (from..from + window).contains(*at)).count();
    let most = arrivals.iter().map(|from| at_once(*from)).max().unwrap();
    assert!((5..=8).contains(&most), "{most} calls at once, of 8");
    daemon.terminate().await.success();
}

/// A metric without labels.
fn figure(metrics: &str, name: &str) -> i64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not in {metrics}")).parse().unwrap()
}

#[tokio::test]
async fn metrics_tell_of_queues_pauses_and_breakers_while_it_runs() {
    let mut s = Scene::new()
        .await
        .with("FLAGPOST_DELIVERY_BREAKER_FAILURES", "1")
        .with("FLAGPOST_DELIVERY_BREAKER_AFTER", "0");
    s.installation = s.installation.with_ops();
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.answer(PLAIN, Answer::status(500));
    s.set_value("a").await;
    let expected = [
        "flagpost_slot_known 1",
        "flagpost_slot_active 1",
        "flagpost_ledger_events 1",
        r#"flagpost_deliveries{endpoint="environment:1",state="delivered"} 1"#,
        r#"flagpost_deliveries{endpoint="environment:2",state="retrying"} 1"#,
        r#"flagpost_endpoint_breaker_open{endpoint="environment:2"} 1"#,
    ];
    let mut metrics = String::new();
    until(PATIENCE, "the metrics say so", async || {
        metrics = s.installation.metrics().await;
        expected.iter().all(|line| metrics.lines().any(|l| l == *line))
    })
    .await;
    assert!(figure(&metrics, "flagpost_ledger_disk_free_bytes") > 0);
    // A second daemon on the same address says so and runs.
    daemon.terminate().await.success();
    let addr = s.installation.variable("FLAGPOST_OPS_LISTEN");
    let _taken = std::net::TcpListener::bind(&addr).unwrap();
    let daemon = Daemon::start(&s.installation).await;
    assert!(daemon.stderr().contains("choose another address for ops.listen"), "{}", daemon.stderr());
    daemon.terminate().await.success();
}

/// Fills a file system to the last page.
pub(crate) fn fill_up(file: &Path) {
    let mut ballast = std::fs::File::create(file).unwrap();
    while ballast.write_all(&[0; 4096]).is_ok() {}
}

#[tokio::test]
async fn a_full_disk_stops_the_reading_loses_nothing_and_goes_on_by_itself() {
    let mut s = Scene::new().await;
    // The mirror is filled on the small disk, when the daemon starts.
    s.installation.run(&["uninstall", "--purge"]).await.success();
    s.installation.run(&["setup", "--no-mirror"]).await.success();
    s.installation = s.installation.on_small_disk(24).with_ops();
    let daemon = Daemon::start(&s.installation).await;
    s.set_value("before").await;
    s.wait_for(PLAIN, 1).await;
    let inside = format!("/proc/{}/root{}", daemon.pid(), s.installation.state_dir().display());
    let ballast = Path::new(&inside).join("ballast");
    fill_up(&ballast);
    let values: Vec<String> = (0..60).map(|n| format!("{n}-{}", "x".repeat(19_000))).collect();
    for value in &values {
        s.set_value(value).await;
    }
    until(PATIENCE, "it says so", async || daemon.stderr().contains("until there is room")).await;
    assert!(daemon.stderr().contains("wal_held_bytes="), "{}", daemon.stderr());
    let slot = "SELECT pg_current_wal_lsn() - confirmed_flush_lsn > 1000 FROM pg_replication_slots";
    let metrics = s.installation.metrics().await;
    assert!(figure(&metrics, "flagpost_wal_held_bytes") > 1000, "{metrics}");
    assert_eq!(figure(&metrics, "flagpost_slot_active"), 0, "{metrics}");
    let (code, text) = s.installation.ops("/readyz").await;
    assert!(code == 503 && text.contains("daemon: there is no room"), "{code} {text}");
    assert_eq!(s.installation.ops("/livez").await.0, 200);
    let is_behind: bool = s.client.query_one(slot, &[]).await.unwrap().get(0);
    assert!(is_behind, "confirmed although it could not be written");
    // It waits, it does not try in vain again and again.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(daemon.stderr().matches("until there is room").count(), 1, "{}", daemon.stderr());
    std::fs::remove_file(&ballast).unwrap();
    until(PATIENCE, "everything has come", async || {
        at(&s.receiver.all(), PLAIN).iter().any(|r| value(r) == values[values.len() - 1])
    })
    .await;
    let mut came: Vec<String> = at(&s.receiver.all(), PLAIN).iter().map(value).collect();
    came.dedup();
    let expected: Vec<String> = std::iter::once("before".to_owned()).chain(values).collect();
    assert_eq!(came.len(), expected.len());
    assert_eq!(came, expected);
    assert_eq!(s.installation.ops("/readyz").await.0, 200);
    daemon.terminate().await.success();
}
