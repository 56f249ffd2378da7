//! Shadow mode and `run` in turns on one ledger: what shadow mode has read is never sent, what `run` has read is owed; whether
//! they are stopped or killed, and also of changes that have not settled yet.

use std::time::{Duration, Instant};

use flagpost::demo::cluster::Cluster;
use flagpost::demo::receiver::{Answer, Received, Receiver};
use serde_json::Value as Json;
use tokio_postgres::Client;

use super::free_address;
use crate::cli::flagsmith;
use crate::support::cluster_options;
use crate::support::process::{Daemon, Installation, LONG};

/// A group stays open for as long as these tests want it to.
const NEVER_SETTLES: &str = "10m";
const SETTLES: &str = "100ms";
const POLL: Duration = Duration::from_millis(10);
/// How long we look whether more comes than should.
const SURPLUS: Duration = Duration::from_millis(300);

struct Scene {
    client: Client,
    receiver: Receiver,
    installation: Installation,
    _cluster: Cluster,
}

impl Scene {
    async fn new() -> Scene {
        let cluster = Cluster::start(cluster_options()).await.unwrap();
        let receiver = Receiver::start(0).unwrap();
        let client = flagsmith(&cluster, receiver.addr()).await;
        let installation = Installation::new(&cluster.url("postgres", "flagsmith"))
            .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8")
            .with("FLAGPOST_DELIVERY_RETRY", "100ms");
        installation.run(&["setup"]).await.success();
        Scene { client, receiver, installation, _cluster: cluster }
    }

    fn settle(&mut self, settle: &str) {
        self.installation.set("FLAGPOST_SOURCE_SETTLE", settle);
        self.installation.set("FLAGPOST_SOURCE_SETTLE_MAX", settle);
    }

    async fn run(&self) -> Daemon {
        Daemon::start(&self.installation).await
    }

    async fn shadow(&self) -> Daemon {
        let listen = free_address().to_string();
        Daemon::start_as(&self.installation, &["shadow", "--listen", &listen, "--json"]).await
    }

    async fn set_value(&self, value: &str) {
        let sql = "UPDATE features_featurestatevalue SET type = 'unicode', string_value = $1 WHERE feature_state_id = 1";
        assert_eq!(self.client.execute(sql, &[&value]).await.unwrap(), 1);
    }

    /// Waits until the ledger holds so many rows of a kind, or more.
    async fn has(&self, from: &str, count: i64) {
        let ledger =
            rusqlite::Connection::open(self.installation.state_dir().join("ledger.sqlite3")).unwrap();
        let deadline = Instant::now() + LONG;
        loop {
            let sql = format!("SELECT count(*) FROM {from}");
            let there: i64 = ledger.query_row(&sql, [], |row| row.get(0)).unwrap();
            if there >= count {
                return;
            }
            assert!(Instant::now() < deadline, "{there} of {from}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// What came to the endpoint without a secret, as previous and new value: when so much is there, and a moment later.
    async fn told(&self, count: usize) -> Vec<[String; 2]> {
        let is_complete = |all: &[Received]| at_dev(all).len() >= count;
        self.receiver.wait_for(is_complete, LONG).await.unwrap_or_else(|all| panic!("{:?}", at_dev(&all)));
        tokio::time::sleep(SURPLUS).await;
        at_dev(&self.receiver.all())
    }
}

fn at_dev(all: &[Received]) -> Vec<[String; 2]> {
    let value = |body: &Json, state: &str| {
        body["data"][state]["feature_state_value"].as_str().unwrap_or("none").to_owned()
    };
    let bodies = all.iter().filter(|r| r.path == "/dev-plain");
    let bodies = bodies.map(|r| serde_json::from_slice::<Json>(&r.body).unwrap());
    bodies.map(|body| [value(&body, "previous_state"), value(&body, "new_state")]).collect()
}

#[tokio::test]
async fn a_change_that_settles_when_shadow_mode_is_stopped_is_never_sent() {
    for is_killed in [false, true] {
        let mut scene = Scene::new().await;
        scene.settle(NEVER_SETTLES);
        let shadow = scene.shadow().await;
        scene.set_value("in the shadow").await;
        scene.has("open_group", 1).await;
        if is_killed {
            shadow.kill();
        } else {
            shadow.terminate().await.success();
        }
        scene.set_value("between").await;
        scene.settle(SETTLES);
        let daemon = scene.run().await;
        scene.set_value("sent").await;
        let told = scene.told(1).await;
        assert_eq!(told.first().map(|[previous, _]| previous.as_str()), Some("in the shadow"), "{told:?}");
        assert_eq!(told.last().map(|[_, new]| new.as_str()), Some("sent"), "{told:?}");
        daemon.terminate().await.success();
    }
}

#[tokio::test]
async fn what_run_owes_waits_for_the_next_run_and_shadow_mode_says_so() {
    let mut scene = Scene::new().await;
    let daemon = scene.run().await;
    scene.receiver.answer("/dev-plain", Answer::status(500));
    scene.set_value("refused").await;
    scene.has("attempt WHERE error IS NOT NULL", 1).await;
    daemon.kill();
    // A group that is open when `run` dies is owed too, in the format of `run`.
    scene.settle(NEVER_SETTLES);
    let daemon = scene.run().await;
    scene.set_value("not settled").await;
    scene.has("open_group", 1).await;
    daemon.kill();
    scene.receiver.clear();

    let shadow = scene.shadow().await;
    scene.set_value("in the shadow").await;
    scene.has("open_group", 1).await;
    let output = shadow.terminate().await;
    let ready: Json = serde_json::from_str(output.stdout.lines().next().unwrap()).unwrap();
    assert!(ready["waiting"].as_u64().unwrap() >= 2, "{output:?}");
    assert!(scene.receiver.all().is_empty(), "shadow mode sends nothing");

    scene.settle(SETTLES);
    scene.receiver.answer("/dev-plain", Answer::status(200));
    let daemon = scene.run().await;
    let told = scene.told(2).await;
    assert_eq!(told, [["none", "refused"], ["refused", "not settled"]]);
    let is_classic = |r: &Received| String::from_utf8_lossy(&r.body).contains(r#""environment": 1"#);
    assert!(scene.receiver.all().iter().all(is_classic));
    daemon.terminate().await.success();
}

#[tokio::test]
async fn earlier_states_prove_an_older_previous_state_also_after_a_restart() {
    let scene = Scene::new().await;
    let (listen, receiver) = (free_address().to_string(), scene.receiver.url(""));
    let arguments = ["shadow", "--listen", &listen, "--as", &receiver, "--grace", "1", "--json"];
    let shadow = Daemon::start_as(&scene.installation, &arguments).await;
    for (count, value) in (1..).zip(["one", "two"]) {
        scene.set_value(value).await;
        scene.has("event WHERE feature_id IS NOT NULL", count).await;
    }
    shadow.terminate().await.success();

    let shadow = Daemon::start_as(&scene.installation, &arguments).await;
    scene.set_value("three").await;
    scene.has("event WHERE feature_id IS NOT NULL", 3).await;
    let ledger = rusqlite::Connection::open(scene.installation.state_dir().join("ledger.sqlite3")).unwrap();
    let sql = "SELECT body FROM body WHERE format = 'current' ORDER BY event DESC LIMIT 1";
    let ours: String = ledger.query_row(sql, [], |row| row.get(0)).unwrap();
    // As Flagsmith may send it to one endpoint, and as nothing explains it to the other.
    for (path, previous) in [("/org-plain", "one"), ("/dev-plain", "never")] {
        let theirs = ours.replace(r#""two""#, &format!("{previous:?}"));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let sent = http.post(format!("http://{listen}{path}")).body(theirs).send().await.unwrap();
        assert_eq!(sent.status(), 200);
    }
    let deadline = Instant::now() + LONG;
    let differs = |text: String| -> Vec<Json> {
        let lines = text.lines().filter(|line| line.contains(r#""class":"differs""#));
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    while differs(shadow.stdout()).len() < 2 {
        assert!(Instant::now() < deadline, "{}", shadow.stdout());
        tokio::time::sleep(POLL).await;
    }
    for line in differs(shadow.terminate().await.success()) {
        let is_organisation = line["endpoint"].as_str().unwrap().starts_with("organisation");
        assert_eq!(line.get("explained").is_some(), is_organisation, "{line}");
        assert_eq!(line["paths"], serde_json::json!(["data.previous_state.feature_state_value"]));
    }
}
