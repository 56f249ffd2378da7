//! A daemon that cannot get on holds the server's log: it says so in time, and where it was told to, it lets the server off.

use std::path::{Path, PathBuf};
use std::time::Duration;

use flagpost::demo::cluster::Options;
use flagpost::demo::receiver::{Received, Receiver};
use serde_json::Value as Json;
use tokio_postgres::Client;

use crate::cli::{count, site};
use crate::outage::fill_up;
use crate::support::Source;
use crate::support::process::{Daemon, Installation, until};

const PATIENCE: Duration = Duration::from_secs(30);
const PLAIN: &str = "/dev-plain";
/// More than a slot holds that follows.
const LIMIT: &str = "48MiB";

struct Scene {
    client: Client,
    receiver: Receiver,
    installation: Installation,
    _cluster: flagpost::demo::cluster::Cluster,
}

impl Scene {
    /// A daemon will run on a small disk.
    async fn new(action: &str) -> Scene {
        // Little log is little enough for `wal_status` to tell.
        let options = Options::default().set("max_wal_size", "32MB").set("min_wal_size", "32MB");
        let (_cluster, client, receiver, installation) = site(Source::Replication, options).await;
        let installation = installation
            .with("FLAGPOST_SOURCE_SETTLE", "0")
            .with("FLAGPOST_SOURCE_MAX_RETAINED_WAL", LIMIT)
            .with("FLAGPOST_SOURCE_MAX_RETAINED_WAL_ACTION", action);
        // The mirror is filled on the small disk, when the daemon starts.
        installation.run(&["setup", "--no-mirror"]).await.success();
        let scene = Scene { client, receiver, installation: installation.on_small_disk(24), _cluster };
        scene.client.batch_execute("CREATE TABLE other (payload text)").await.unwrap();
        scene
    }

    async fn set(&self, value: &str) {
        let sql = format!(
            "UPDATE features_featurestatevalue SET type = 'unicode', string_value = '{value}' WHERE feature_state_id = 1"
        );
        self.client.batch_execute(&sql).await.unwrap();
    }

    async fn wait_for_value(&self, value: &str) -> Received {
        let is_it = |r: &Received| r.path == PLAIN && new_value(r) == value;
        let all = self.receiver.wait_for(|all| all.iter().any(is_it), PATIENCE).await;
        all.unwrap_or_else(|_| panic!("{value} has not come")).into_iter().find(is_it).unwrap()
    }

    /// Fills the daemon's disk, and waits until it has stopped reading. Returns what fills it.
    async fn fill_disk(&self, daemon: &Daemon) -> PathBuf {
        let ballast = self.state_of(daemon).join("ballast");
        fill_up(&ballast);
        for n in 0..20 {
            self.set(&format!("{n}-{}", "x".repeat(19_000))).await;
        }
        until(PATIENCE, "it stops reading", async || daemon.stderr().contains("until there is room")).await;
        ballast
    }

    /// The daemon's state directory, which only it sees.
    fn state_of(&self, daemon: &Daemon) -> PathBuf {
        format!("/proc/{}/root{}", daemon.pid(), self.installation.state_dir().display()).into()
    }

    /// Some 12 MB of log that the slot holds.
    async fn write_log(&self) {
        let sql = "INSERT INTO other SELECT repeat(md5(n::text), 30) FROM generate_series(1, 10000) n";
        self.client.batch_execute(sql).await.unwrap();
    }
}

fn new_value(received: &Received) -> String {
    let body: Json = serde_json::from_slice(&received.body).unwrap();
    body["data"]["new_state"]["feature_state_value"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn what_the_server_keeps_for_us_is_told_once_when_it_becomes_much_and_when_it_is_over() {
    let s = Scene::new("warn").await;
    let daemon = Daemon::start(&s.installation).await;
    s.set("before").await;
    s.wait_for_value("before").await;
    let ballast = s.fill_disk(&daemon).await;
    let parts = [
        "more than half of source.max_retained_wal",
        "keeps more than source.max_retained_wal",
        "wal_status extended",
    ];
    for (part, amount) in parts.into_iter().zip([3, 2, 4]) {
        for _ in 0..amount {
            s.write_log().await;
        }
        until(PATIENCE, part, async || daemon.stderr().contains(part)).await;
    }
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let said = daemon.stderr();
    for part in parts {
        assert_eq!(said.matches(part).count(), 1, "{part}: {said}");
    }
    assert_eq!(count(&s.client, "pg_replication_slots").await, 1, "dropped although nobody said so");
    std::fs::remove_file(&ballast).unwrap();
    s.set("after").await;
    s.wait_for_value("after").await;
    until(PATIENCE, "it is told that it is over", async || {
        s.client.batch_execute("CHECKPOINT").await.unwrap();
        daemon.stderr().contains("the server keeps little of its log for the slot again")
    })
    .await;
    daemon.terminate().await.success();
}

#[tokio::test]
async fn the_last_resort_lets_the_server_off_and_a_recovery_brings_receivers_right() {
    let mut s = Scene::new("drop-slot").await;
    let daemon = Daemon::start(&s.installation).await;
    s.set("before").await;
    s.wait_for_value("before").await;
    s.fill_disk(&daemon).await;
    assert_eq!(count(&s.client, "pg_replication_slots").await, 1, "dropped too early");
    // The small disk goes with the daemon; nothing writes to the ledger while it waits.
    let kept = s.installation.folder().join("kept");
    copy(&s.state_of(&daemon), &kept);
    let mut written = 0;
    until(PATIENCE, "the slot is dropped", async || {
        if written < 10 {
            s.write_log().await;
            written += 1;
        }
        count(&s.client, "pg_replication_slots").await == 0
    })
    .await;
    let ended = daemon.ended(PATIENCE).await;
    assert_eq!(ended.code, 4, "{ended:?}");
    let said = ended.stderr.lines().last().unwrap_or_default();
    assert!(said.contains("was dropped to save the server") && said.contains("flagpost recover"), "{said}");
    s.set("last").await;
    s.installation.set("FLAGPOST_STATE_DIR", kept.to_str().unwrap());
    let installation = s.installation.on_any_disk();
    let refused = installation.run(&["run"]).await;
    assert!(refused.code == 4 && refused.stderr.contains("flagpost recover"), "{refused:?}");
    installation.run(&["recover"]).await.success();
    let daemon = Daemon::start(&installation).await;
    let is_last = |r: &Received| r.path == PLAIN && new_value(r) == "last";
    let all = s.receiver.wait_for(|all| all.iter().any(is_last), PATIENCE).await.unwrap();
    let last = all.iter().find(|r| is_last(r)).unwrap();
    assert_eq!(last.header("x-flagpost-reconstructed"), Some("true"));
    daemon.terminate().await.success();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "ballast" {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test]
async fn a_slot_that_the_server_has_given_up_is_told_and_recovered() {
    let options = Options::default()
        .set("max_wal_size", "32MB")
        .set("min_wal_size", "32MB")
        .set("max_slot_wal_keep_size", "32MB");
    let (_cluster, client, receiver, installation) = site(Source::Replication, options).await;
    let installation = installation.with("FLAGPOST_SOURCE_SETTLE", "0");
    installation.run(&["setup"]).await.success();
    client.batch_execute("CREATE TABLE other (payload text)").await.unwrap();
    let s = Scene { client, receiver, installation, _cluster };
    let status = s.installation.run(&["status", "--json"]).await.json();
    let slot = &status["database"]["slot"];
    assert!(slot["safe_bytes"].as_i64().is_some_and(|bytes| bytes > 0), "{status:#}");
    // Nobody runs.
    s.set("missed").await;
    until(PATIENCE, "the server gives the slot up", async || {
        s.write_log().await;
        s.client.batch_execute("CHECKPOINT").await.unwrap();
        let sql = "SELECT wal_status = 'lost' FROM pg_replication_slots";
        s.client.query_one(sql, &[]).await.unwrap().get(0)
    })
    .await;
    let version: i32 =
        s.client.query_one("SELECT current_setting('server_version_num')::int", &[]).await.unwrap().get(0);
    let status = s.installation.run(&["status", "--json"]).await.json();
    let slot = &status["database"]["slot"];
    let knows_more = version >= 170_000;
    assert_eq!(slot["wal_status"], "lost", "{status:#}");
    assert_eq!(slot["invalidation_reason"] == "wal_removed", knows_more, "{status:#}");
    assert_eq!(slot["failover"] == true, knows_more, "{status:#}");
    assert_eq!(slot["synced"] == false, knows_more, "{status:#}");
    let text = s.installation.run(&["status"]).await.success();
    let named = text.contains("SLOT LOST") && text.contains("flagpost recover");
    assert!(named && text.contains("(wal_removed)") == knows_more, "{text}");
    let refused = s.installation.run(&["run"]).await;
    assert!(refused.code == 4 && refused.stderr.contains("flagpost recover"), "{refused:?}");
    s.installation.run(&["recover"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    let came = s.wait_for_value("missed").await;
    assert_eq!(came.header("x-flagpost-reconstructed"), Some("true"));
    daemon.terminate().await.success();
}
