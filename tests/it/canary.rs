//! A canary: secrets are planted wherever there can be one, everything is made to go right and wrong at the finest log level, and
//! then nothing that flagpost wrote or said may hold one of them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flagpost::demo::cluster::{Auth, Cluster};
use flagpost::demo::receiver::{Answer, Receiver};

use crate::check::contents;
use crate::cli::flagsmith;
use crate::delivery::PATIENCE;
use crate::support::process::{Daemon, Installation};
use crate::support::{Source, on_both_sources};

/// Every secret holds this word, and nothing else does.
const CANARY: &str = "CANARY";
/// What is no secret, and none of the business of whoever reads a bug report: values of flags, paths of URLs, what endpoints answer.
const PRIVATE: &str = "PRIVATE-MATTER";

/// Ways in which a secret could be written: as it is, percent-encoded, in Base64 at each of the three alignments, in hexadecimal.
fn disguises() -> Vec<Vec<u8>> {
    let hex = CANARY.bytes().map(|b| format!("{b:02x}")).collect::<String>();
    let base64 = ["Q0FOQVJZ", "NBTkFSW", "DQU5BUl"];
    let mut all: Vec<Vec<u8>> = base64.iter().map(|text| text.as_bytes().to_vec()).collect();
    all.extend([CANARY.into(), CANARY.to_lowercase().into(), hex.clone().into(), hex.to_uppercase().into()]);
    all
}

fn leak_in(bytes: &[u8]) -> Option<String> {
    disguises().iter().find_map(|secret| {
        let at = bytes.windows(secret.len()).position(|window| window == secret)?;
        let around = bytes[at.saturating_sub(120)..(at + 60).min(bytes.len())].to_vec();
        Some(String::from_utf8_lossy(&around).into_owned())
    })
}

fn files(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, all) } else { all.push(path) }
    }
}

#[test]
fn the_canary_is_found_in_every_disguise() {
    for text in ["xCANARYx", "xxcanary", "43414e415259", "Q0FOQVJZ", "eENBTkFSWQ==", "eHhDQU5BUlk="] {
        assert!(leak_in(text.as_bytes()).is_some(), "{text}");
    }
    assert!(leak_in(b"nothing").is_none());
}

/// A bug report of this installation, with a log in which somebody has written every secret.
async fn bug_report_holds_nothing(installation: &Installation, log: &Path, folder: &Path) {
    let leaky = folder.join("leaky.log");
    let mut text = std::fs::read_to_string(log).unwrap();
    for secret in [
        "CANARY-database",
        "CANARY-environment-2",
        "CANARY-environment-1",
        "CANARY-new",
        "CANARY-smtp",
        "CANARY-alerts",
        "CANARY-query",
        "CANARY%2Dnew",
        "CANARY no url at all",
        "https://CANARY:CANARY@example.com/PRIVATE-MATTER?CANARY#CANARY",
    ] {
        text += &format!("2026-11-25T00:00:00Z  WARN flagpost: it says {secret}, and goes on\n");
    }
    text += "2026-11-25T00:00:00Z TRACE hyper: PRIVATE-MATTER\n";
    std::fs::write(&leaky, text).unwrap();
    let out = folder.join("report.tar");
    let arguments =
        ["bugreport", "--out", out.to_str().unwrap(), "--log", leaky.to_str().unwrap(), "--lines", "100000"];
    installation.run(&arguments).await.success();
    let bytes = std::fs::read(&out).unwrap();
    assert_eq!(leak_in(&bytes), None, "in the bug report");
    for (name, text) in contents(&out) {
        assert!(!text.contains(PRIVATE), "in {name} of the bug report: {text}");
        assert!(text.len() > 10, "{name} is empty");
        if name == "log.txt" {
            assert!(text.contains("it says [secret], and goes on"), "the log is not in it");
            assert!(text.contains("it says https://example.com/…"), "the log is cut");
        }
    }
}

on_both_sources!(no_secret_is_in_logs_errors_the_ledger_or_what_a_command_says);

async fn no_secret_is_in_logs_errors_the_ledger_or_what_a_command_says(source: Source) {
    let auth = Auth::Scram { password: "CANARY-database".into() };
    let cluster =
        Cluster::start(flagpost::demo::cluster::Options { auth, ..source.options() }).await.unwrap();
    let receiver = Receiver::start(0).unwrap();
    let client = flagsmith(&cluster, receiver.addr()).await;
    let with_secrets =
        "UPDATE environments_webhook SET secret = 'CANARY-environment-' || id,
             url = replace(url, 'http://', 'http://user:CANARY-userinfo@') || '?token=CANARY-query#CANARY-fragment';
         UPDATE organisations_organisationwebhook SET secret = 'CANARY-organisation-' || id;
         INSERT INTO environments_webhook SELECT (jsonb_populate_record(w, jsonb_build_object(
             'id', 90, 'url', 'CANARY no url at all'))).* FROM environments_webhook w WHERE w.id = 2;
         INSERT INTO environments_webhook SELECT (jsonb_populate_record(w, jsonb_build_object(
             'id', 91, 'url', 'https://u:CANARY@127.0.0.1:1/x?y=CANARY'))).* FROM environments_webhook w WHERE w.id = 2;
         INSERT INTO environments_webhook SELECT (jsonb_populate_record(w, jsonb_build_object(
             'id', 92, 'url', 'http://u:CANARY@10.0.0.1/?CANARY'))).* FROM environments_webhook w WHERE w.id = 2;
         INSERT INTO environments_webhook SELECT (jsonb_populate_record(w, jsonb_build_object(
             'id', 93, 'url', 'http://u:CANARY@no-such-host.invalid/PRIVATE-MATTER?CANARY'))).* FROM environments_webhook w WHERE w.id = 2";
    client.batch_execute(with_secrets).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let installation = source
        .installation(&cluster.url("postgres", "flagsmith"))
        .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8")
        .with("FLAGPOST_SOURCE_SETTLE", "0")
        .with("FLAGPOST_LOG_LEVEL", "trace,flagpost=trace")
        .with("RUST_BACKTRACE", "full")
        .with("FLAGPOST_DELIVERY_RETRY", "100ms")
        .with("FLAGPOST_DELIVERY_BREAKER_FAILURES", "2")
        .with("FLAGPOST_DELIVERY_BREAKER_AFTER", "0")
        .with("FLAGPOST_NOTIFY_SMTP", "smtp://user:CANARY-smtp@127.0.0.1:1")
        .with("FLAGPOST_NOTIFY_FROM", "flagpost@example.com")
        .with("FLAGPOST_NOTIFY_TO", "ops@example.com")
        .with("FLAGPOST_NOTIFY_WEBHOOK", "http://user:CANARY-alerts@127.0.0.1:1/?token=CANARY")
        .with("FLAGPOST_NOTIFY_AFTER", "0")
        .log_into(log.clone())
        .with_ops();
    let mut said = Vec::new();
    said.push(installation.run(&["setup"]).await);
    let daemon = Daemon::start(&installation).await;
    receiver.answer("/dev-plain?token=CANARY-query", Answer::status(500).body("PRIVATE-MATTER"));
    let change = |n: u32| {
        format!(
            "UPDATE features_featurestatevalue SET type = 'unicode', string_value = 'PRIVATE-MATTER-v{n}' WHERE feature_state_id = 1"
        )
    };
    client.batch_execute(&change(1)).await.unwrap();
    // Rotated, moved, and deleted while something waits.
    client.batch_execute("UPDATE environments_webhook SET secret = 'CANARY-new' WHERE id = 1").await.unwrap();
    client.batch_execute(&change(2)).await.unwrap();
    client.batch_execute("DELETE FROM environments_webhook WHERE id = 92").await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !(daemon.stderr().contains("nobody could be told") && daemon.stderr().contains("breaker is open")) {
        assert!(Instant::now() < deadline, "{}", daemon.stderr());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let command_line = std::fs::read(format!("/proc/{}/cmdline", daemon.pid())).unwrap();
    for command in [
        &["status"][..],
        &["status", "--json"],
        &["check"],
        &["check", "--json"],
        &["log"],
        &["log", "--json"],
        &["replay", "--failed", "--dry-run"],
        &["test", "environment:91"],
        &["test", "environment:2"],
        &["test", "http://u:CANARY-typed@127.0.0.1/?token=CANARY-typed"],
        &["pause", "environment:2"],
        &["resume", "environment:2"],
        &["replay", "--endpoint", "environment:2"],
        &["replay", "--since", "1h", "--to", "http://u:CANARY-typed@127.0.0.1:1/?token=CANARY-typed"],
    ] {
        said.push(installation.run(command).await);
    }
    let last = installation.run(&["log", "--json", "--limit", "1"]).await;
    let newest = last.json()["id"].as_str().unwrap().to_owned();
    said.extend([
        last,
        installation.run(&["show", &newest]).await,
        installation.run(&["show", &newest, "--json"]).await,
    ]);
    bug_report_holds_nothing(&installation, &log, folder.path()).await;
    let metrics = installation.metrics().await;
    assert!(metrics.contains("flagpost_deliveries"), "{metrics}");
    // The database goes away, and comes back with another password.
    client
        .batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        .await
        .ok();
    tokio::time::sleep(Duration::from_millis(500)).await;
    said.push(daemon.terminate().await);
    let url = cluster.url_with_password("postgres", "CANARY-wrong", "flagsmith");
    let refused = Installation::new(&url).with("FLAGPOST_LOG_LEVEL", "trace,flagpost=trace");
    for command in [&["run"][..], &["check"], &["status"], &["setup"], &["uninstall"]] {
        said.push(refused.run(command).await);
    }
    let broken = Installation::new("postgresql://user:CANARY@host:port:CANARY/x")
        .with("FLAGPOST_LOG_LEVEL", "trace,flagpost=trace");
    said.push(broken.run(&["run"]).await);
    let file = folder.path().join("flagpost.toml");
    std::fs::write(&file, "[database]\nurl = \"postgresql://u:CANARY@h/d\nslot = CANARY").unwrap();
    said.push(installation.run(&["--config", file.to_str().unwrap(), "check"]).await);

    for output in &said {
        for text in [&output.stdout, &output.stderr] {
            assert_eq!(leak_in(text.as_bytes()), None, "in what a command said");
        }
    }
    assert_eq!(leak_in(&command_line), None, "in the command line");
    assert_eq!(leak_in(metrics.as_bytes()), None, "in the metrics");
    let logged = std::fs::read(&log).unwrap();
    assert!(logged.windows(5).any(|window| window == b"TRACE"), "the log is not at the finest level");
    assert_eq!(leak_in(&logged), None, "in the log");
    let mut all = Vec::new();
    files(&installation.state_dir(), &mut all);
    assert!(all.len() >= 2, "{all:?}");
    for path in all {
        assert_eq!(leak_in(&std::fs::read(&path).unwrap()), None, "in {}", path.display());
    }
}
