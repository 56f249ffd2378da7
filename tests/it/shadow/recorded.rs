//! Shadow mode, live: the recorded changes of a real Flagsmith in the database, and its own webhooks, as it sent them, to the
//! listener. What it finds is what SEMANTICS.md §6 knows of Flagsmith, and nothing else; and nothing is sent to anybody.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use flagpost::demo::cluster::Cluster;
use flagpost::demo::receiver::Receiver;
use jiff::Timestamp;
use serde_json::{Value as Json, json};

use super::free_address;
use crate::support::flagsmith::{self, Schema};
use crate::support::process::{Daemon, Installation};
use crate::support::replay::{Pace, Replay, cases, timestamp};
use crate::support::{cluster_options, golden};

/// Between two cases: longer than the settle window, so that no change joins the case before.
const BETWEEN: Duration = Duration::from_millis(160);
const GRACE: Duration = Duration::from_secs(4);
/// How long we look whether something is sent.
const SURPLUS: Duration = Duration::from_millis(700);

const CASES: usize = 68;
const DOUBLED: [&str; 8] = ["014", "023", "029", "034", "037", "038", "043", "044"];
const MISSING: [&str; 9] = ["032", "035", "040", "042", "045", "047", "057", "058", "059"];
const OLDER_PREVIOUS: [&str; 4] = ["022", "062", "066", "068"];

/// Sends what Flagsmith sent in a case, and counts it: all, and without its doubles.
async fn play_flagsmith(http: &reqwest::Client, listen: SocketAddr, case: &Path) -> (usize, usize) {
    let case: Json = serde_json::from_str(&std::fs::read_to_string(case).unwrap()).unwrap();
    let mut seen: HashMap<(String, String), usize> = HashMap::new();
    for sent in case["flagsmith_sent"].as_array().unwrap() {
        let (path, body) = (sent["endpoint"].as_str().unwrap(), sent["body"].as_str().unwrap());
        let mut request = http.post(format!("http://{listen}{path}")).body(body.to_owned());
        for (name, value) in sent["headers"].as_object().unwrap() {
            request = request.header(name, value.as_str().unwrap());
        }
        assert_eq!(request.send().await.unwrap().status(), 200);
        *seen.entry((path.to_owned(), body.to_owned())).or_default() += 1;
    }
    (seen.values().sum(), seen.len())
}

/// Findings of a class by case, each told by its commit time.
fn by_case(lines: &[Json], class: &str, starts: &[(String, Timestamp)]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in lines.iter().filter(|line| line["class"] == class) {
        let commit = timestamp(&line["commit_time"]);
        let (case, _) = starts.iter().rev().find(|(_, start)| *start <= commit).unwrap();
        *counts.entry(case.clone()).or_default() += 1;
    }
    counts
}

fn names(counts: &BTreeMap<String, usize>) -> Vec<&str> {
    counts.keys().map(String::as_str).collect()
}

#[tokio::test]
async fn what_flagsmith_sends_is_compared_and_nothing_is_sent() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let schema = Schema::read(&golden().join("schema.json"));
    let (listen, elsewhere) = (free_address(), Receiver::start(0).unwrap());
    let client = flagsmith::database(&cluster, &schema, listen).await;
    // In `run`, this endpoint would get everything of environment 1 in `classic`, the default.
    let installation = Installation::new(&cluster.url("postgres", "flagsmith"))
        .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8")
        .with("FLAGPOST_SOURCE_SETTLE", "100ms");
    installation.run(&["setup"]).await.success();
    let (address, grace) = (listen.to_string(), GRACE.as_secs().to_string());
    let arguments = ["shadow", "--listen", &address, "--grace", &grace, "--json"];
    let daemon = Daemon::start_as(&installation, &arguments).await;

    let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
    let replay_client = cluster.connect("flagsmith").await.unwrap();
    let mut replay = Replay::new(&schema, &replay_client, listen, Pace::AS_RECORDED);
    let (mut starts, mut doubles, mut distinct) = (Vec::new(), BTreeMap::new(), 0);
    for path in cases().into_iter().take(CASES) {
        let number = path.file_stem().unwrap().to_str().unwrap()[..3].to_owned();
        starts.push((number.clone(), Timestamp::now()));
        replay.case(&replay.read(&path)).await;
        let (all, once) = play_flagsmith(&http, listen, &path).await;
        distinct += once;
        if all > once {
            doubles.insert(number.clone(), all - once);
        }
        if number == "003" {
            let row = json!({
                "id": 900, "url": elsewhere.url("/elsewhere"), "enabled": true, "environment_id": 1, "secret": "",
                "uuid": "9d1c5c1e-0000-4000-8000-000000000900", "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
            });
            let sql = schema.insert("environments_webhook", row.as_object().unwrap());
            client.batch_execute(&sql).await.unwrap();
        }
        tokio::time::sleep(BETWEEN).await;
    }
    tokio::time::sleep(GRACE + SURPLUS).await;
    let output = daemon.terminate().await.success();

    let lines: Vec<Json> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let differences: Vec<Json> = lines.iter().filter(|l| l["type"] == "difference").cloned().collect();
    let summary = lines.last().unwrap();
    let total = &summary["total"];
    let shown = differences.iter().map(|line| format!("{line}\n")).collect::<String>();
    let unwanted =
        ["late", "unexplained", "bad_signature", "unjudged"].map(|class| total[class].as_u64().unwrap());
    assert_eq!(unwanted, [0; 4], "{total}\n{shown}");
    assert_eq!(summary["lost_requests"], 0);

    let doubled = by_case(&differences, "doubled", &starts);
    assert_eq!(names(&doubled), DOUBLED);
    assert_eq!(doubled, doubles);
    let missing = by_case(&differences, "missing", &starts);
    assert_eq!(names(&missing), MISSING, "{shown}");
    let differs = by_case(&differences, "differs", &starts);
    assert_eq!(names(&differs), OLDER_PREVIOUS, "{shown}");
    assert_eq!(total["differs"], total["differs_explained"]);
    let previous = |path: &Json| path.as_str().unwrap().starts_with("data.previous_state");
    let of_differs = differences.iter().filter(|line| line["class"] == "differs");
    assert!(of_differs.flat_map(|line| line["paths"].as_array().unwrap()).all(previous));
    assert_eq!(total["missing"], total["missing_explained"], "{shown}");
    let count = |counts: &BTreeMap<String, usize>| counts.values().sum::<usize>();
    assert_eq!(total["equal"], distinct - count(&differs), "everything else is equal");
    assert_eq!(total["missing"], count(&missing));
    assert!(total["elsewhere"].as_u64().unwrap() > 0);

    // Nothing was sent, nothing waits to be sent, and the daemon proper sends nothing of it.
    let status = installation.run(&["status", "--json"]).await.json();
    for endpoint in status["endpoints"].as_array().unwrap() {
        let sent = ["pending", "retrying", "dead", "delivered"].map(|name| endpoint[name].as_u64().unwrap());
        assert_eq!(sent, [0; 4], "{endpoint}");
    }
    let instead = Receiver::start(listen.port()).unwrap();
    let daemon = Daemon::start(&installation).await;
    tokio::time::sleep(SURPLUS).await;
    daemon.terminate().await.success();
    assert!(elsewhere.all().is_empty() && instead.all().is_empty());
    std::io::Write::write_all(&mut std::io::stderr(), format!("\n{summary:#}\n").as_bytes()).unwrap();
}
