//! The recorded changes of a real Flagsmith in the database, and its own webhooks, as it sent them, to the listener. What shadow
//! mode finds is what SEMANTICS.md §6 knows of Flagsmith, and nothing else; and nothing is sent to anybody.
//!
//! What must be found in a case follows from the case: from its doubles, and from the events that the tables themselves call for.
//! So a case that is dropped into `tests/golden/cases` is played and judged by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use flagpost::demo::cluster::Cluster;
use flagpost::demo::receiver::Receiver;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value as Json, json};
use tokio_postgres::Client;

use super::free_address;
use crate::support::flagsmith::{self, Schema};
use crate::support::oracle::{Effective, flag_events};
use crate::support::process::{Daemon, Installation};
use crate::support::replay::{Pace, Replay, cases, timestamp};
use crate::support::{cluster_options, golden};

/// Gaps within a click as recorded; what only has to be apart is a little more than the settle window (100 ms) apart.
const PACE: Pace =
    Pace { max_gap: Duration::from_millis(150), max_ahead: SignedDuration::from_millis(1_500) };
/// Between two cases: longer than the settle window, so that no change joins the case before.
const BETWEEN: Duration = Duration::from_millis(150);
const GRACE: Duration = Duration::from_secs(3);
/// How long we look whether something is sent.
const SURPLUS: Duration = Duration::from_millis(500);

/// What Flagsmith sent in a case.
struct Sent {
    /// All of it.
    all: usize,
    /// Without its doubles: path and body.
    distinct: BTreeSet<(String, String)>,
}

impl Sent {
    fn flags(&self) -> impl Iterator<Item = &String> {
        let bodies = self.distinct.iter().map(|(_, body)| body);
        bodies.filter(|body| !flag_events(std::iter::once(*body)).is_empty())
    }
}

/// What shadow mode must find in a case.
#[derive(Debug, Default, PartialEq, Eq)]
struct Expected {
    doubled: usize,
    missing: usize,
    /// At least: of a deletion, Flagsmith's author may differ too.
    differs: usize,
    has_deletion: bool,
}

impl Expected {
    /// `events` are those that the tables call for, `endpoints` how many are told of a flag event, by environment.
    fn of(sent: &Sent, events: &[Json], endpoints: &BTreeMap<i64, usize>) -> Expected {
        let environment = |event: &Json| {
            let state = if event[1].is_null() { &event[2] } else { &event[1] };
            state["environment"]["id"].as_i64().unwrap()
        };
        let owed: usize = events.iter().map(|event| endpoints[&environment(event)]).sum();
        let theirs: Vec<Json> = sent.flags().flat_map(|body| flag_events(std::iter::once(body))).collect();
        Expected {
            doubled: sent.all - sent.distinct.len(),
            missing: owed - theirs.len(),
            differs: theirs.iter().filter(|event| !events.contains(event)).count(),
            has_deletion: theirs.iter().any(|event| event[0] == "FLAG_DELETED"),
        }
    }
}

struct Scene {
    schema: Schema,
    client: Client,
    replay_client: Client,
    listen: SocketAddr,
    elsewhere: Receiver,
    installation: Installation,
    http: reqwest::Client,
    _cluster: Cluster,
}

impl Scene {
    async fn new() -> Scene {
        let cluster = Cluster::start(cluster_options()).await.unwrap();
        let schema = Schema::read(&golden().join("schema.json"));
        let (listen, elsewhere) = (free_address(), Receiver::start(0).unwrap());
        let client = flagsmith::database(&cluster, &schema, listen).await;
        let replay_client = cluster.connect("flagsmith").await.unwrap();
        let installation = Installation::new(&cluster.url("postgres", "flagsmith"))
            .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8")
            .with("FLAGPOST_SOURCE_SETTLE", "100ms");
        installation.run(&["setup"]).await.success();
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        Scene { schema, client, replay_client, listen, elsewhere, installation, http, _cluster: cluster }
    }

    async fn shadow(&self) -> Daemon {
        let (address, grace) = (self.listen.to_string(), GRACE.as_secs().to_string());
        let arguments = ["shadow", "--listen", &address, "--grace", &grace, "--json"];
        Daemon::start_as(&self.installation, &arguments).await
    }

    /// Sends what Flagsmith sent in a case.
    async fn play_flagsmith(&self, case: &Json) -> Sent {
        let mut sent = Sent { all: 0, distinct: BTreeSet::new() };
        for request in case["flagsmith_sent"].as_array().unwrap() {
            let (path, body) = (request["endpoint"].as_str().unwrap(), request["body"].as_str().unwrap());
            let mut post = self.http.post(format!("http://{}{path}", self.listen)).body(body.to_owned());
            for (name, value) in request["headers"].as_object().unwrap() {
                post = post.header(name, value.as_str().unwrap());
            }
            assert_eq!(post.send().await.unwrap().status(), 200);
            sent.all += 1;
            sent.distinct.insert((path.to_owned(), body.to_owned()));
        }
        sent
    }

    /// How many endpoints at the listener are told of a flag event, by environment.
    async fn endpoints(&self) -> BTreeMap<i64, usize> {
        let sql = format!(
            "SELECT e.id, (SELECT count(*) FROM environments_webhook w WHERE w.environment_id = e.id AND w.enabled
                           AND w.url LIKE 'http://{listen}/%')
                        + (SELECT count(*) FROM organisations_organisationwebhook w JOIN projects_project p
                           ON p.organisation_id = w.organisation_id AND p.id = e.project_id WHERE w.enabled
                           AND w.url LIKE 'http://{listen}/%')
             FROM environments_environment e",
            listen = self.listen
        );
        let rows = self.client.query(&sql, &[]).await.unwrap();
        let count = |row: &tokio_postgres::Row| usize::try_from(row.get::<_, i64>(1)).unwrap();
        rows.iter().map(|row| (row.get::<_, i32>(0).into(), count(row))).collect()
    }

    /// An endpoint that does not point to the listener. In `run` it would get everything of environment 1 in `classic`.
    async fn add_elsewhere(&self) {
        let row = json!({
            "id": 900, "url": self.elsewhere.url("/elsewhere"), "enabled": true, "environment_id": 1, "secret": "",
            "uuid": "9d1c5c1e-0000-4000-8000-000000000900", "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        });
        let sql = self.schema.insert("environments_webhook", row.as_object().unwrap());
        self.client.batch_execute(&sql).await.unwrap();
    }

    /// Nothing was sent, nothing waits to be sent, and the daemon proper sends nothing of it.
    async fn nothing_is_sent(&self) {
        let status = self.installation.run(&["status", "--json"]).await.json();
        for endpoint in status["endpoints"].as_array().unwrap() {
            let sent =
                ["pending", "retrying", "dead", "delivered"].map(|name| endpoint[name].as_u64().unwrap());
            assert_eq!(sent, [0; 4], "{endpoint}");
        }
        let instead = Receiver::start(self.listen.port()).unwrap();
        let daemon = Daemon::start(&self.installation).await;
        tokio::time::sleep(SURPLUS).await;
        daemon.terminate().await.success();
        assert!(self.elsewhere.all().is_empty() && instead.all().is_empty());
    }
}

/// A case that was played: when it began, and what must be found in it.
struct Played {
    name: String,
    start: Timestamp,
    distinct: usize,
    expected: Expected,
}

async fn play_all(scene: &Scene) -> Vec<Played> {
    let mut replay = Replay::new(&scene.schema, &scene.replay_client, scene.listen, PACE);
    let mut all = Vec::new();
    let mut before = Effective::read(&scene.client).await;
    for path in cases() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let (case, start) = (replay.read(&path), Timestamp::now());
        replay.case(&case).await;
        replay.until_live().await;
        let sent = scene.play_flagsmith(&case).await;
        if name.starts_with("003") {
            scene.add_elsewhere().await;
        }
        let after = Effective::read(&scene.client).await;
        let events = before.events(&after);
        before = after;
        let expected = Expected::of(&sent, &events, &scene.endpoints().await);
        all.push(Played { name, start, distinct: sent.distinct.len(), expected });
        tokio::time::sleep(BETWEEN).await;
    }
    all
}

/// Findings of a class in the case that was played when their event was committed.
fn count(lines: &[Json], class: &str, cases: &[Played], case: &Played) -> usize {
    let of_class = lines.iter().filter(|line| line["class"] == class);
    let found = of_class.filter(|line| {
        let commit = timestamp(&line["commit_time"]);
        cases.iter().rev().find(|played| played.start <= commit).unwrap().name == case.name
    });
    found.count()
}

#[tokio::test]
async fn what_flagsmith_sends_is_compared_and_nothing_is_sent() {
    let scene = Scene::new().await;
    let daemon = scene.shadow().await;
    let cases = play_all(&scene).await;
    tokio::time::sleep(GRACE + SURPLUS).await;
    let output = daemon.terminate().await.success();

    let lines: Vec<Json> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let differences: Vec<Json> = lines.iter().filter(|l| l["type"] == "difference").cloned().collect();
    let summary = lines.last().unwrap();
    let total = |class: &str| usize::try_from(summary["total"][class].as_u64().unwrap()).unwrap();
    let shown = differences.iter().map(|line| format!("{line}\n")).collect::<String>();

    let mut table = format!("\n{:<40} doubled missing differs\n", "recorded cases in shadow mode");
    let (mut wrong, mut differs_in_all) = (Vec::new(), 0);
    for case in &cases {
        let [doubled, missing, differs] =
            ["doubled", "missing", "differs"].map(|class| count(&differences, class, &cases, case));
        differs_in_all += differs;
        writeln!(table, "{:<40} {doubled:>7} {missing:>7} {differs:>7}", case.name).unwrap();
        let Expected { has_deletion, differs: least, .. } = case.expected;
        let is_right = if has_deletion { differs >= least } else { differs == least };
        if (doubled, missing) != (case.expected.doubled, case.expected.missing) || !is_right {
            wrong.push(format!("{}: {:?}", case.name, case.expected));
        }
    }
    // Past the test runner's capture: the table is what a reader of a passing run wants to see.
    std::io::Write::write_all(&mut std::io::stderr(), table.as_bytes()).unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}\n{shown}");

    let unwanted = ["late", "unexplained", "bad_signature", "unjudged"].map(total);
    assert_eq!(unwanted, [0; 4], "{summary}\n{shown}");
    assert_eq!(summary["lost_requests"], 0);
    assert_eq!(total("missing"), total("missing_explained"), "{shown}");
    assert_eq!(total("differs"), total("differs_explained"), "{shown}");
    let distinct: usize = cases.iter().map(|case| case.distinct).sum();
    assert_eq!(total("equal"), distinct - differs_in_all, "everything else is equal");
    let sum = |of: fn(&Expected) -> usize| cases.iter().map(|case| of(&case.expected)).sum::<usize>();
    assert_eq!((total("doubled"), total("missing")), (sum(|e| e.doubled), sum(|e| e.missing)));
    assert!(total("doubled") > 0 && total("missing") > 0 && total("differs") > 0 && total("elsewhere") > 0);
    scene.nothing_is_sent().await;
}
