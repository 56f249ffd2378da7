//! What an operator can do: look events up, send them again, hold an endpoint back, try one; beside a daemon and without one.

use flagpost::demo::receiver::{Answer, Receiver};
use serde_json::Value as Json;

use crate::delivery::{PATIENCE, Scene, at, id, value};
use crate::support::process::{Daemon, Output, until};

const PLAIN: &str = "/dev-plain";
const SIGNED: &str = "/dev-signed";
/// The endpoint behind [`PLAIN`].
const PLAIN_KEY: &str = "environment:2";
const SIGNED_KEY: &str = "environment:1";
/// Its secret.
const SECRET: &str = "s3cr3t";

impl Scene {
    async fn run(&self, arguments: &[&str]) -> Output {
        self.installation.run(arguments).await
    }

    /// What a command says that must succeed.
    async fn say(&self, arguments: &[&str]) -> String {
        self.run(arguments).await.success()
    }

    /// What `log --json` says.
    async fn log(&self, arguments: &[&str]) -> Vec<Json> {
        let text = self.say(&[&["log", "--json"], arguments].concat()).await;
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn endpoint(&self, key: &str) -> Json {
        let status = self.status().await;
        let endpoints = status["endpoints"].as_array().unwrap();
        endpoints.iter().find(|e| e["endpoint"] == key).unwrap_or_else(|| panic!("{status:#}")).clone()
    }

    /// Waits until so many deliveries of an endpoint are in this state.
    async fn count(&self, key: &str, state: &str, count: u64) {
        until(PATIENCE, &format!("{count} {state} at {key}"), async || {
            self.endpoint(key).await[state].as_u64() == Some(count)
        })
        .await;
    }
}

/// A scene in which `a`, `b` and `c` were delivered to one endpoint and given up at the other. The daemon runs.
async fn given_up() -> (Scene, Daemon) {
    let s = Scene::new().await.with("FLAGPOST_DELIVERY_MAX_AGE", "300ms");
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.answer(PLAIN, Answer::status(500).body("the receiver is broken"));
    for value in ["a", "b", "c"] {
        s.set_value(value).await;
    }
    s.count(PLAIN_KEY, "dead", 3).await;
    s.count(SIGNED_KEY, "delivered", 3).await;
    s.receiver.answer(PLAIN, Answer::status(200));
    (s, daemon)
}

#[tokio::test]
async fn log_finds_events_by_what_they_are_about_with_the_daemon_running_or_not() {
    let (s, daemon) = given_up().await;
    let all = s.log(&[]).await;
    assert_eq!(all.len(), 3);
    assert_eq!(all[0]["sequence"], 1, "the newest come last");
    assert_eq!(
        (&all[0]["kind"], &all[0]["action"], &all[0]["feature"], &all[0]["environment"]),
        (&"FLAG_UPDATED".into(), &"updated;scope=default".into(), &"dark_mode".into(), &"Development".into())
    );
    let fates: Vec<(&str, &str)> = all[0]["deliveries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| (d["endpoint"].as_str().unwrap(), d["status"].as_str().unwrap()))
        .collect();
    assert_eq!(fates, [(SIGNED_KEY, "delivered"), (PLAIN_KEY, "dead")]);
    daemon.terminate().await.success();

    let third = all[2]["commit_time"].as_str().unwrap();
    let url = s.receiver.url(PLAIN);
    for (arguments, count) in [
        (&["--limit", "2"][..], 2),
        (&["--limit", "0"], 0),
        (&["--endpoint", PLAIN_KEY], 3),
        (&["--endpoint", &url], 3),
        (&["--endpoint", "organisation:1"], 0),
        (&["--status", "dead"], 3),
        (&["--status", "dead", "--endpoint", SIGNED_KEY], 0),
        (&["--status", "delivered", "--limit", "1"], 1),
        (&["--status", "pending"], 0),
        (&["--environment", "Development"], 3),
        (&["--environment", "1"], 3),
        (&["--environment", "2"], 0),
        (&["--organisation", "Acme"], 3),
        (&["--feature", "dark_mode"], 3),
        (&["--feature", "1"], 3),
        (&["--feature", "light_mode"], 0),
        (&["--kind", "flag_updated"], 3),
        (&["--kind", "AUDIT_LOG_CREATED"], 0),
        (&["--since", "1h"], 3),
        (&["--until", "1h"], 0),
        (&["--since", third], 1),
        (&["--until", third], 2),
    ] {
        assert_eq!(s.log(arguments).await.len(), count, "{arguments:?}");
    }
    let text = s.say(&["log", "--limit", "1"]).await;
    assert!(
        text.contains("Development/dark_mode  →  delivered environment:1, dead environment:2")
            && text.lines().count() == 1,
        "{text}"
    );
    for bad in [
        &["log", "--since", "soon"][..],
        &["log", "--status", "lost"],
        &["log", "--kind", "FLAG"],
        &["log", "--environment", "Nowhere"],
        &["log", "--endpoint", "environment:99"],
        &["log", "--endpoint", "http://user:sekrit@nowhere/"],
    ] {
        let output = s.run(bad).await;
        assert!(output.code == 2 && !output.stderr.contains("sekrit"), "{bad:?}: {output:?}");
    }
}

#[tokio::test]
async fn log_goes_on_with_what_happens_and_with_what_becomes_of_it() {
    let s = Scene::new().await;
    let daemon = Daemon::start(&s.installation).await;
    s.set_value("before").await;
    s.count(PLAIN_KEY, "delivered", 1).await;
    let follow = Daemon::at_once(&s.installation, &["log", "--follow", "--json"]);
    let seen =
        || -> Vec<Json> { follow.stdout().lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
    until(PATIENCE, "the last events are there", async || seen().len() == 1).await;
    s.receiver.script(PLAIN, [Answer::status(500)]);
    s.set_value("after").await;
    let fate = |event: &Json| event["deliveries"][1]["status"].as_str().unwrap().to_owned();
    until(PATIENCE, "the new event and its end are there", async || {
        seen().iter().any(|event| event["sequence"] == 2 && fate(event) == "delivered")
    })
    .await;
    assert!(seen().iter().all(|event| event["sequence"] == 2 || event["sequence"] == 1));
    assert_eq!(seen().iter().filter(|event| event["sequence"] == 1).count(), 1);
    follow.terminate().await.success();
    daemon.terminate().await.success();
}

#[tokio::test]
async fn show_tells_what_changed_who_got_it_and_what_they_answered() {
    let (s, daemon) = given_up().await;
    let all = s.log(&[]).await;
    let id = all[1]["id"].as_str().unwrap();
    let text = s.say(&["show", &id[..12]]).await;
    for part in [
        id,
        "dark_mode (1)",
        "Development (1)",
        "transaction (xid)",
        "value    \"a\" → \"b\"",
        "environment:2  dead",
        "HTTP 500",
        "| the receiver is broken",
        "#1   ",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let json: Json = s.run(&["show", id, "--json"]).await.json();
    assert_eq!(json["lsn"], all[1]["lsn"]);
    let change = &json["changes"][1];
    assert_eq!(
        (&change["field"], &change["previous"], &change["new"]),
        (&"value".into(), &"a".into(), &"b".into())
    );
    let attempt = &json["attempts"][PLAIN_KEY][0];
    assert_eq!(
        (&attempt["number"], &attempt["http_status"], &attempt["answer"]),
        (&1.into(), &500.into(), &"the receiver is broken".into())
    );
    assert!(attempt["milliseconds"].is_u64() && json["xid"].as_i64() > Some(0));
    daemon.terminate().await.success();
    assert!(s.say(&["show", id]).await.contains("value    \"a\" → \"b\""));
    for bad in ["ffffffff-ffff", "", "dark_mode"] {
        let output = s.run(&["show", bad]).await;
        assert!(output.code == 2 && output.stderr.contains("event"), "{bad}: {output:?}");
    }
}

#[tokio::test]
async fn a_dead_letter_is_sent_again_as_it_was_and_marked() {
    let (s, daemon) = given_up().await;
    let first = at(&s.receiver.all(), PLAIN).remove(0);
    let dry = s.say(&["replay", "--failed", "--dry-run"]).await;
    assert!(dry.contains("3 deliveries would be sent again") && dry.contains("environment:2"), "{dry}");
    assert_eq!(s.endpoint(PLAIN_KEY).await["dead"], 3, "a dry run changed something");
    s.receiver.clear();
    let done = s.say(&["replay", id(&first), "--failed"]).await;
    assert!(done.contains("1 delivery queued again"), "{done}");
    let again = s.wait_for(PLAIN, 1).await.remove(0);
    assert_eq!((id(&again), &again.body), (id(&first), &first.body));
    assert_eq!(again.header("x-flagpost-replay"), Some("true"));
    assert_eq!(first.header("x-flagpost-replay"), None);
    s.count(PLAIN_KEY, "delivered", 1).await;
    assert_eq!(s.endpoint(PLAIN_KEY).await["replays"], 1);
    assert!(at(&s.receiver.all(), SIGNED).is_empty(), "what was not asked for was sent");

    // The others in their order, asked for while no daemon runs.
    daemon.terminate().await.success();
    let done = s.say(&["replay", "--failed", "--endpoint", PLAIN_KEY, "--since", "1h"]).await;
    assert!(done.contains("2 deliveries queued again"), "{done}");
    let daemon = Daemon::start(&s.installation).await;
    let got = s.wait_for(PLAIN, 3).await;
    assert_eq!(got.iter().map(value).collect::<Vec<_>>(), ["a", "b", "c"]);
    // And what had been delivered, to the other one.
    s.count(PLAIN_KEY, "delivered", 3).await;
    s.receiver.clear();
    s.say(&["replay", "--endpoint", SIGNED_KEY]).await;
    let got = s.wait_for(SIGNED, 3).await;
    assert_eq!(got.iter().map(value).collect::<Vec<_>>(), ["a", "b", "c"]);
    let shown = s.say(&["show", id(&got[0])]).await;
    assert!(shown.contains("ms  replay") && shown.contains("asked for again"), "{shown}");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn replay_leaves_alone_what_is_pending_dropped_or_gone_and_never_takes_everything() {
    let (s, daemon) = given_up().await;
    let refused = s.run(&["replay"]).await;
    assert!(refused.code == 2 && refused.stderr.contains("--failed"), "{refused:?}");
    let refused = s.run(&["replay", "--dry-run"]).await;
    assert_eq!(refused.code, 2, "{refused:?}");
    s.say(&["pause", PLAIN_KEY]).await;
    s.set_value("d").await;
    s.count(PLAIN_KEY, "pending", 1).await;
    let done = s.say(&["replay", "--endpoint", PLAIN_KEY]).await;
    assert!(
        done.contains("3 deliveries queued again")
            && done.contains("left alone: 1 still pending")
            && done.contains("flagpost resume environment:2"),
        "{done}"
    );
    s.count(PLAIN_KEY, "pending", 4).await;
    // The endpoint goes, and its queue with it.
    s.sql("DELETE FROM environments_webhook WHERE id IN (1, 2)").await;
    s.count(PLAIN_KEY, "dropped", 4).await;
    let done = s.say(&["replay", "--since", "1h"]).await;
    assert!(
        done.contains("nothing to send again") && done.contains("8 for an endpoint that was deleted"),
        "{done}"
    );
    daemon.terminate().await.success();
}

#[tokio::test]
async fn another_place_gets_what_is_replayed_to_it_without_any_signature_of_a_real_one() {
    let (s, daemon) = given_up().await;
    let other = Receiver::start(0).unwrap();
    let url = other.url("/sandbox");
    s.receiver.clear();
    let before = s.status().await["endpoints"].clone();
    let dry = s.say(&["replay", "--since", "1h", "--to", &url, "--dry-run"]).await;
    assert!(dry.contains("3 would be sent") && other.all().is_empty(), "{dry}");
    let done = s.say(&["replay", "--since", "1h", "--to", &url]).await;
    assert!(done.contains("3 sent to") && done.contains("unsigned"), "{done}");
    let got = other.all();
    assert_eq!(got.iter().map(value).collect::<Vec<_>>(), ["a", "b", "c"], "each event once, in order");
    for one in &got {
        assert_eq!(one.header("x-flagpost-replay"), Some("true"));
        assert_eq!((one.header("x-flagsmith-signature"), one.header("webhook-signature")), (None, None));
    }
    let secret = s.installation.folder().join("secret");
    std::fs::write(&secret, "sandbox\n").unwrap();
    s.say(&["replay", id(&got[0]), "--to", &url, "--secret-file", secret.to_str().unwrap()]).await;
    let signed = other.all().pop().unwrap();
    let expected = flagpost::delivery::flagsmith_signature("sandbox", &signed.body);
    assert_eq!(signed.header("x-flagsmith-signature"), expected.as_deref());
    assert_ne!(expected, flagpost::delivery::flagsmith_signature(SECRET, &signed.body));
    assert!(s.receiver.all().is_empty(), "a real endpoint got something");
    assert_eq!(s.status().await["endpoints"], before);
    daemon.terminate().await.success();

    other.answer("/sandbox", Answer::status(500));
    let failed = s.run(&["replay", "--since", "1h", "--to", &url]).await;
    assert!(failed.code == 1 && failed.stdout.contains("3 failed"), "{failed:?}");
    let s = s.with("FLAGPOST_NETWORK_ALLOW", "");
    let refused = s.run(&["replay", "--since", "1h", "--to", &url]).await;
    assert!(refused.code == 1 && refused.stdout.contains("network.allow"), "{refused:?}");
}

#[tokio::test]
async fn a_paused_endpoint_gets_nothing_and_everything_in_order_when_it_is_resumed() {
    let s = Scene::new().await;
    let daemon = Daemon::start(&s.installation).await;
    let said = s.say(&["pause", &s.receiver.url(PLAIN), "--why", "the receiver moves"]).await;
    assert!(said.contains("paused environment:2"), "{said}");
    for value in ["a", "b", "c"] {
        s.set_value(value).await;
    }
    s.wait_for(SIGNED, 3).await;
    s.count(PLAIN_KEY, "pending", 3).await;
    assert!(at(&s.receiver.all(), PLAIN).is_empty(), "a paused endpoint was called");
    let paused = s.endpoint(PLAIN_KEY).await["paused"].clone();
    assert_eq!((&paused["by"], &paused["why"]), (&"operator".into(), &"the receiver moves".into()));
    let text = s.say(&["status"]).await;
    assert!(text.contains("PAUSED by the operator") && text.contains("the receiver moves"), "{text}");
    let check = s.run(&["check", "--json"]).await.json();
    let warned = check["checks"].as_array().unwrap().iter().find(|c| c["code"] == "endpoint-paused").unwrap();
    assert_eq!(
        (&warned["status"], &warned["mend"]),
        (&"warn".into(), &"flagpost resume environment:2".into())
    );
    let said = s.say(&["resume", PLAIN_KEY]).await;
    assert!(said.contains("resumed environment:2"), "{said}");
    let got = s.wait_for(PLAIN, 3).await;
    assert_eq!(got.iter().map(value).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(s.endpoint(PLAIN_KEY).await["paused"].is_null());

    // Without a daemon: paused before it starts.
    daemon.terminate().await.success();
    s.say(&["pause", PLAIN_KEY]).await;
    let daemon = Daemon::start(&s.installation).await;
    s.set_value("d").await;
    s.wait_for(SIGNED, 4).await;
    assert_eq!(at(&s.receiver.all(), PLAIN).len(), 3);
    daemon.terminate().await.success();
    assert!(s.say(&["resume", PLAIN_KEY]).await.contains("1 now"));
    let daemon = Daemon::start(&s.installation).await;
    assert_eq!(value(&s.wait_for(PLAIN, 4).await[3]), "d");
    daemon.terminate().await.success();
    for command in ["pause", "resume", "test"] {
        assert_eq!(s.run(&[command, "environment:99"]).await.code, 2, "{command}");
    }
}

#[tokio::test]
async fn status_and_check_say_what_holds_deliveries_back() {
    let s = Scene::new()
        .await
        .with("FLAGPOST_DELIVERY_BREAKER_FAILURES", "1")
        .with("FLAGPOST_DELIVERY_BREAKER_AFTER", "0")
        .with("FLAGPOST_DELIVERY_BREAKER_PROBE", "1h");
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.answer(PLAIN, Answer::status(410));
    s.receiver.answer(SIGNED, Answer::status(503));
    s.set_value("a").await;
    until(PATIENCE, "one is paused, the other's breaker open", async || {
        !s.endpoint(PLAIN_KEY).await["paused"].is_null() && !s.endpoint(SIGNED_KEY).await["breaker"].is_null()
    })
    .await;
    let text = s.say(&["status"]).await;
    for part in ["PAUSED by the endpoint", "HTTP 410 Gone", "BREAKER OPEN since", "next probe in", "HTTP 503"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let breaker = s.endpoint(SIGNED_KEY).await["breaker"].clone();
    assert!(breaker["failures"].as_u64() > Some(0) && breaker["next_probe_seconds"].is_u64(), "{breaker}");
    let ledger = s.status().await["ledger"].clone();
    assert!(ledger["free_bytes"].as_u64() > Some(4 << 20) && ledger["full"] == false, "{ledger}");
    let text = s.say(&["check", "--full"]).await;
    for part in
        ["ledger-integrity", "and its indexes fit", "endpoint-breaker", "endpoint-paused", "ledger-modes"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let resumed = s.say(&["resume", SIGNED_KEY]).await;
    assert!(resumed.contains("closed the breaker of environment:1"), "{resumed}");
    daemon.terminate().await.success();

    // A key that others may read, and a file that is damaged.
    use std::os::unix::fs::PermissionsExt;
    let key = s.installation.state_dir().join("ledger.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let text = s.say(&["check"]).await;
    assert!(text.contains(&format!("chmod 600 '{}'", key.display())), "{text}");
    let ledger = s.installation.state_dir().join("ledger.sqlite3");
    let mut bytes = std::fs::read(&ledger).unwrap();
    let pages = bytes.len() / 4096;
    // The first page says what the file is; what follows is torn.
    bytes[4096 * (pages / 2)..].fill(0xA5);
    std::fs::write(&ledger, bytes).unwrap();
    let output = s.run(&["check", "--json"]).await;
    let checks = output.json()["checks"].clone();
    let is_told =
        checks.as_array().unwrap().iter().any(|c| c["code"] == "ledger-integrity" && c["status"] == "fail");
    assert!(is_told && output.code > 0, "{output:?}");
}

#[tokio::test]
async fn a_test_event_is_signed_and_plainly_none_and_leaves_no_trace() {
    let s = Scene::new().await;
    let said = s.say(&["test", SIGNED_KEY]).await;
    assert!(said.contains("answered HTTP 200") && said.contains("signed with its secret"), "{said}");
    assert!(!said.contains(SECRET));
    let got = at(&s.receiver.all(), SIGNED).remove(0);
    let body: Json = serde_json::from_slice(&got.body).unwrap();
    assert_eq!(
        (&body["event_type"], &body["data"]["new_state"]["feature"]["name"]),
        (&"FLAG_UPDATED".into(), &"flagpost_test".into())
    );
    let expected = flagpost::delivery::flagsmith_signature(SECRET, &got.body);
    assert_eq!(got.header("x-flagsmith-signature"), expected.as_deref());
    assert_eq!(got.header("x-flagpost-sequence"), Some("0"));
    let again = s.say(&["test", SIGNED_KEY]).await;
    assert_ne!(said, again, "each test is an event of its own");

    // With a daemon, to an organisation's endpoint in another format; and one that fails.
    let s = s.with("FLAGPOST_WEBHOOKS_FORMAT", "current");
    let daemon = Daemon::start(&s.installation).await;
    s.say(&["test", "organisation:1"]).await;
    let got = at(&s.receiver.all(), "/org-signed").remove(0);
    let body: Json = serde_json::from_slice(&got.body).unwrap();
    assert_eq!(body["event_type"], "AUDIT_LOG_CREATED");
    s.receiver.answer("/org-plain", Answer::status(403).body("who are you?"));
    let failed = s.run(&["test", "organisation:2"]).await;
    assert!(
        failed.code == 1 && failed.stdout.contains("HTTP 403") && failed.stdout.contains("who are you?"),
        "{failed:?}"
    );
    assert!(s.log(&[]).await.is_empty());
    daemon.terminate().await.success();
    let s = s.with("FLAGPOST_NETWORK_ALLOW", "");
    let refused = s.run(&["test", SIGNED_KEY]).await;
    assert!(refused.code == 1 && refused.stdout.contains("network.allow"), "{refused:?}");
}

#[tokio::test]
async fn commands_say_where_they_looked_when_there_is_no_ledger() {
    let s = Scene::new().await;
    s.installation.run(&["uninstall", "--purge"]).await.success();
    for arguments in [
        &["log"][..],
        &["show", "aa"],
        &["replay", "--failed"],
        &["pause", PLAIN_KEY],
        &["resume", PLAIN_KEY],
        &["test", PLAIN_KEY],
    ] {
        let output = s.run(arguments).await;
        assert!(output.code == 1 && output.stderr.contains("state.dir"), "{arguments:?}: {output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    }
    assert!(!s.installation.state_dir().join("ledger.sqlite3").exists(), "a command has made a ledger");
}

#[tokio::test]
async fn an_endpoint_of_the_configuration_is_named_like_any_other() {
    let s = Scene::new().await;
    let file = s.installation.folder().join("flagpost.toml");
    let url = s.receiver.url("/configured?token=sekrit");
    let toml = format!("[[webhooks.endpoint]]\nname = \"audit\"\nurl = \"{url}\"\nformat = \"current\"\n");
    std::fs::write(&file, toml).unwrap();
    let s = s.with("FLAGPOST_CONFIG", file.to_str().unwrap());
    let daemon = Daemon::start(&s.installation).await;
    let said = s.say(&["test", "configured:audit"]).await;
    assert!(said.contains("format current") && !said.contains("sekrit"), "{said}");
    let paused = s.say(&["pause", &url]).await;
    assert!(paused.contains("paused configured:audit") && !paused.contains("sekrit"), "{paused}");
    s.set_value("a").await;
    s.count("configured:audit", "pending", 1).await;
    s.say(&["resume", "configured:audit"]).await;
    s.count("configured:audit", "delivered", 1).await;
    let done = s.say(&["replay", "--endpoint", "configured:audit"]).await;
    assert!(done.contains("1 delivery queued again"), "{done}");
    // The test, the delivery, the replay.
    let got = s.wait_for("/configured?token=sekrit", 3).await;
    assert_eq!((id(&got[1]), got[2].header("x-flagpost-replay")), (id(&got[2]), Some("true")));
    let shown = s.say(&["show", id(&got[1])]).await;
    assert!(shown.contains("configured:audit  ") && !shown.contains("sekrit"), "{shown}");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn a_disk_without_room_cannot_be_overlooked() {
    let mut s = Scene::new().await;
    s.installation = s.installation.on_small_disk(3);
    let output = s.run(&["status"]).await;
    let text = &output.stdout;
    assert!(
        text.contains("DISK FULL") && text.contains("of its log for us") && text.contains("make room"),
        "{text}"
    );
    assert_eq!(s.status().await["ledger"]["full"], true);
}
