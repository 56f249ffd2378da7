//! Endpoints beside the database's, and single ones that are called in a way of their own: filters, headers, Basic auth, TLS; told
//! where they belong, and their secrets nowhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flagpost::delivery::{Client as HttpClient, EndpointOptions, Settings, Targets, Tls, Trust};
use flagpost::demo::cluster::Cluster;
use flagpost::demo::receiver::{Answer, Received, Receiver};
use serde_json::Value as Json;
use tokio_postgres::Client;

use crate::cli::flagsmith;
use crate::support::call::{due, endpoint, settings};
use crate::support::cluster_options;
use crate::support::flagsmith::TAGS;
use crate::support::process::{Daemon, Installation};
use crate::support::raw::{Issuer, Peer, Pem, Raw, loopback, server};

const PATIENCE: Duration = Duration::from_secs(20);
/// One commit to Development, one to Production, one to the audit log.
const CHANGES: [&str; 3] = [
    "UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1",
    "UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 2",
    "INSERT INTO audit_auditlog (id, created_date, log, environment_id, project_id, is_system_event)
     VALUES ((SELECT max(id) + 1 FROM audit_auditlog), now(), 'by hand', 2, 1, false)",
];

pub(crate) struct Scene {
    client: Client,
    pub(crate) receiver: Receiver,
    pub(crate) installation: Installation,
    _cluster: Cluster,
}

impl Scene {
    pub(crate) async fn new() -> Scene {
        let cluster = Cluster::start(cluster_options()).await.unwrap();
        let receiver = Receiver::start(0).unwrap();
        let client = flagsmith(&cluster, receiver.addr()).await;
        let installation = Installation::new(&cluster.url("postgres", "flagsmith"))
            .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8")
            .with("FLAGPOST_SOURCE_SETTLE", "0")
            .with("FLAGPOST_DELIVERY_RETRY", "100ms");
        let file = installation.folder().join("flagpost.toml");
        let installation = installation.with("FLAGPOST_CONFIG", file.to_str().unwrap());
        Scene { client, receiver, installation, _cluster: cluster }
    }

    /// Writes the configuration; `RECEIVER` is the receiver's address, `DIR` the installation's folder.
    pub(crate) fn configure(&self, toml: &str) {
        let folder = self.installation.folder();
        let toml = toml.replace("RECEIVER", &self.receiver.addr().to_string());
        std::fs::write(folder.join("flagpost.toml"), toml.replace("DIR", folder.to_str().unwrap())).unwrap();
    }

    async fn change(&self) {
        for sql in CHANGES {
            self.client.batch_execute(sql).await.unwrap();
        }
    }

    /// Waits until what `status` says of an endpoint is so.
    async fn wait_until(&self, key: &str, is_so: impl Fn(&Json) -> bool) -> Json {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.installation.run(&["status", "--json"]).await.json();
            let found = status["endpoints"].as_array().unwrap().iter().find(|part| part["endpoint"] == key);
            if let Some(found) = found.filter(|part| is_so(part)) {
                return found.clone();
            }
            assert!(Instant::now() < deadline, "{key}: {status:#}");
        }
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    async fn check(&self) -> Json {
        self.installation.run(&["check", "--json"]).await.json()
    }

    /// Each path has got so many, and gets no more.
    #[track_caller]
    fn has_got<'a>(&'a self, expected: &'a [(&str, usize)]) -> impl Future<Output = ()> + 'a {
        let place = std::panic::Location::caller();
        async move {
            for (path, count) in expected.iter().filter(|(_, count)| *count > 0) {
                self.wait_for(path, *count).await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            let all = self.receiver.all();
            let got: Vec<(&str, usize)> =
                expected.iter().map(|(path, _)| (*path, at(&all, path).len())).collect();
            assert_eq!(got, expected, "at {place}");
        }
    }

    pub(crate) async fn wait_for(&self, path: &str, count: usize) -> Vec<Received> {
        let all = self.receiver.wait_for(|all| at(all, path).len() >= count, PATIENCE).await;
        at(&all.unwrap_or_else(|all| panic!("{path} got {} of {count}", at(&all, path).len())), path)
    }
}

fn at(all: &[Received], path: &str) -> Vec<Received> {
    all.iter().filter(|r| r.path.split('?').next() == Some(path)).cloned().collect()
}

fn kind(received: &Received) -> String {
    let body: Json = serde_json::from_slice(&received.body).unwrap();
    body["event_type"].as_str().unwrap_or("(bare)").to_owned()
}

fn part<'a>(status: &'a Json, key: &str) -> &'a Json {
    let endpoints = status["endpoints"].as_array().unwrap();
    endpoints.iter().find(|endpoint| endpoint["endpoint"] == key).unwrap_or_else(|| panic!("{status:#}"))
}

const FILTERED: &str = r#"
[[webhooks.endpoint]]
name = "all"
url = "http://RECEIVER/all"
format = "current"
secret_file = "DIR/secret"
[[webhooks.endpoint]]
name = "audit"
url = "http://RECEIVER/audit"
organisations = ["Acme"]
kinds = ["AUDIT_LOG_CREATED"]
[[webhooks.endpoint]]
name = "production"
url = "http://RECEIVER/production"
environments = ["Production", 77]
kinds = ["FLAG_UPDATED", "FLAG_DELETED"]
[[webhooks.endpoint]]
name = "feature"
url = "http://RECEIVER/feature"
projects = [1]
features = ["dark_mode"]
[[webhooks.endpoint]]
name = "nothing"
url = "http://RECEIVER/nothing"
features = ["another", 77]
[[webhooks.endpoint]]
name = "elsewhere"
url = "http://RECEIVER/elsewhere"
organisations = [77]
"#;

#[tokio::test]
async fn an_endpoint_of_the_configuration_gets_what_its_lists_let_through() {
    let s = Scene::new().await;
    std::fs::write(s.installation.folder().join("secret"), "its-own\n").unwrap();
    s.configure(FILTERED);
    s.installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.change().await;
    let all = s.wait_for("/all", 3).await;
    let mut kinds: Vec<String> = all.iter().map(kind).collect();
    kinds.sort();
    assert_eq!(kinds, ["AUDIT_LOG_CREATED", "FLAG_UPDATED", "FLAG_UPDATED"]);
    for received in &all {
        let signature = flagpost::delivery::flagsmith_signature("its-own", &received.body);
        assert_eq!(received.header("x-flagsmith-signature"), signature.as_deref());
    }
    let audit = s.wait_for("/audit", 1).await;
    assert_eq!(kind(&audit[0]), "(bare)", "in format classic");
    let production = s.wait_for("/production", 1).await;
    assert!(String::from_utf8_lossy(&production[0].body).contains("\"environment\": 2"));
    s.wait_for("/feature", 2).await;
    // The database's own get theirs as ever, with the same id.
    let in_database = s.wait_for("/dev-plain", 1).await;
    let id = in_database[0].header("x-flagpost-event-id");
    assert!(all.iter().any(|received| received.header("x-flagpost-event-id") == id));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let got: Vec<usize> = ["/all", "/audit", "/production", "/feature", "/nothing", "/elsewhere"]
        .map(|path| at(&s.receiver.all(), path).len())
        .to_vec();
    assert_eq!(got, [3, 1, 1, 2, 0, 0]);

    let status = s.installation.run(&["status", "--json"]).await.json();
    let mine = part(&status, "configured:feature");
    assert_eq!((&mine["enabled"], &mine["tls_verified"]), (&true.into(), &true.into()));
    let check = s.installation.run(&["check"]).await.success();
    assert!(
        check.contains("configured:all http://") && check.contains("configured:elsewhere http://"),
        "{check}"
    );
    daemon.terminate().await.success();
}

const TAGGED: &str = r#"
[[webhooks.endpoint]]
name = "all"
url = "http://RECEIVER/all"
[[webhooks.endpoint]]
name = "by-label"
url = "http://RECEIVER/by-label"
tags = ["billing", "nowhere"]
[[webhooks.endpoint]]
name = "by-id"
url = "http://RECEIVER/by-id"
tags = [2]
"#;

/// The flags of [`CHANGES`] are of feature 1; this makes another, with one tag, whose state is 900.
const ANOTHER_FEATURE: &str = "
    INSERT INTO tags_tag (label, color, project_id) VALUES ('billing', '#fff', 1), ('growth', '#fff', 1);
    INSERT INTO features_feature SELECT (jsonb_populate_record(f, '{\"id\": 900, \"name\": \"checkout\"}')).* FROM features_feature f
        WHERE id = (SELECT feature_id FROM features_featurestate WHERE id = 1);
    INSERT INTO features_featurestate SELECT (jsonb_populate_record(s, '{\"id\": 900, \"feature_id\": 900}')).*
        FROM features_featurestate s WHERE id = 1;
    INSERT INTO features_feature_tags (feature_id, tag_id) VALUES (900, 1);";

#[tokio::test]
async fn an_endpoint_for_tags_follows_the_tags_that_a_feature_has() {
    let s = Scene::new().await;
    s.sql(TAGS).await;
    s.sql(ANOTHER_FEATURE).await;
    s.configure(TAGGED);
    s.installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    // Of the snapshot: feature 900 is tagged, feature 1 is not. An audit event is about no feature.
    let toggle = "UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 900";
    s.sql(toggle).await;
    s.change().await;
    s.has_got(&[("/all", 4), ("/by-label", 1), ("/by-id", 0)]).await;
    assert!(String::from_utf8_lossy(&at(&s.receiver.all(), "/by-label")[0].body).contains("checkout"));

    // Of the stream. Tags alone are no event.
    s.sql("INSERT INTO features_feature_tags (feature_id, tag_id) SELECT feature_id, 1 FROM features_featurestate WHERE id = 1")
        .await;
    s.sql("INSERT INTO features_feature_tags (feature_id, tag_id) VALUES (900, 2)").await;
    s.sql(CHANGES[0]).await;
    s.has_got(&[("/all", 5), ("/by-label", 2), ("/by-id", 0)]).await;
    s.sql(toggle).await;
    s.has_got(&[("/all", 6), ("/by-label", 3), ("/by-id", 1)]).await;

    daemon.terminate().await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.sql(CHANGES[0]).await;
    s.has_got(&[("/all", 7), ("/by-label", 4), ("/by-id", 1)]).await;

    // A label is its tag's of the moment, an id stays.
    s.sql("UPDATE tags_tag SET label = id::text || label").await;
    s.sql(toggle).await;
    s.has_got(&[("/all", 8), ("/by-label", 4), ("/by-id", 2)]).await;
    s.sql("UPDATE tags_tag SET label = 'billing' WHERE id = 1").await;
    s.sql("DELETE FROM features_feature_tags WHERE feature_id = 900").await;
    s.sql(toggle).await;
    s.sql(CHANGES[1]).await;
    s.has_got(&[("/all", 10), ("/by-label", 5), ("/by-id", 2)]).await;
    daemon.terminate().await.success();
}

#[tokio::test]
async fn a_feature_that_is_tagged_in_the_click_that_makes_it_goes_where_its_tags_say() {
    let mut s = Scene::new().await;
    s.sql(TAGS).await;
    s.configure(TAGGED);
    s.installation.run(&["setup"]).await.success();
    // The window: the tags come in a transaction of their own, a moment after the feature.
    s.installation.set("FLAGPOST_SOURCE_SETTLE", "1s");
    let daemon = Daemon::start(&s.installation).await;
    let (feature, tagging) = ANOTHER_FEATURE.rsplit_once("INSERT").unwrap();
    s.sql(feature).await;
    s.sql(&format!("INSERT{tagging}")).await;
    s.has_got(&[("/all", 1), ("/by-label", 1), ("/by-id", 0)]).await;
    daemon.terminate().await.success();
}

#[tokio::test]
async fn a_filter_by_tags_where_there_are_none_is_told_and_tags_may_come_later() {
    let s = Scene::new().await;
    s.configure(&TAGGED.replace("tags", "#tags"));
    s.installation.run(&["setup"]).await.success();
    let report = s.check().await;
    let checks = report["checks"].as_array().unwrap();
    let optional = checks.iter().find(|check| check["code"] == "flagsmith-optional").unwrap();
    assert!(optional["message"].as_str().unwrap().contains("no tags_tag, features_feature_tags"));

    s.configure(TAGGED);
    let report = s.check().await;
    let checks = report["checks"].as_array().unwrap();
    let failed: Vec<&Json> = checks.iter().filter(|check| check["status"] == "fail").collect();
    assert!(failed.len() == 1 && failed[0]["code"] == "flagsmith-tags", "{failed:#?}");
    let refused = Daemon::try_start(&s.installation).await.err().unwrap();
    assert_eq!(refused.code, 3, "{refused:?}");
    for text in [failed[0]["message"].as_str().unwrap(), &refused.stderr] {
        assert!(text.contains("\"by-label\"") && text.contains("remove tags from the entry"), "{text}");
    }

    // Flagsmith's migration makes the tables under a daemon that does not need them: it goes on.
    s.configure(&TAGGED.replace("tags", "#tags"));
    let daemon = Daemon::start(&s.installation).await;
    s.sql(TAGS).await;
    s.sql(ANOTHER_FEATURE).await;
    s.sql(CHANGES[0]).await;
    s.wait_for("/all", 2).await;
    daemon.terminate().await.success();
    // What came into them was not streamed: as with any table, only a new snapshot is right.
    s.configure(TAGGED);
    let refused = Daemon::try_start(&s.installation).await.err().unwrap();
    assert!(refused.code == 3 && refused.stderr.contains("does not publish tags_tag"), "{refused:?}");
    let refused = s.installation.run(&["setup"]).await;
    assert!(refused.code == 4 && refused.stderr.contains("setup --resnapshot"), "{refused:?}");
    s.installation.run(&["setup", "--resnapshot"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.clear();
    s.sql("UPDATE features_featurestate SET enabled = NOT enabled WHERE id IN (1, 900)").await;
    s.has_got(&[("/all", 2), ("/by-label", 1), ("/by-id", 0)]).await;
    daemon.terminate().await.success();
}

#[tokio::test]
async fn what_waits_for_an_endpoint_that_left_the_configuration_is_dropped_and_said() {
    let s = Scene::new().await;
    s.configure("[[webhooks.endpoint]]\nname = \"old\"\nurl = \"http://RECEIVER/old\"\n");
    s.receiver.answer("/old", Answer::status(500));
    s.installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.change().await;
    s.wait_until("configured:old", |old| old["pending"] == 3).await;
    daemon.terminate().await.success();

    s.configure("[[webhooks.endpoint]]\nname = \"new\"\nurl = \"http://RECEIVER/new\"\n");
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.clear();
    s.change().await;
    s.wait_for("/new", 3).await;
    assert!(at(&s.receiver.all(), "/old").is_empty());
    let old = s.wait_until("configured:old", |old| old["pending"] == 0).await;
    assert!(old["dropped"] == 3 && old["url"].is_null(), "{old:#}");
    let output = daemon.terminate().await;
    assert!(output.stderr.contains("configured:old") && output.stderr.contains("is dropped"), "{output:?}");
    output.success();
}

#[tokio::test]
async fn secrets_of_endpoints_are_sent_where_they_belong_and_shown_nowhere() {
    let s = Scene::new().await;
    let folder = s.installation.folder().to_owned();
    std::fs::write(folder.join("secret"), "sekrit-of-file").unwrap();
    let in_database = format!("http://hook:sekrit-p%40ss@{}/basic?token=sekrit-query", s.receiver.addr());
    s.client.execute("UPDATE environments_webhook SET url = $1 WHERE id = 2", &[&in_database]).await.unwrap();
    s.configure(&format!(
        r#"
[log]
level = "trace,flagpost=trace"
[[webhooks.endpoint]]
name = "mine"
url = "http://RECEIVER/mine?token=sekrit-mine"
secret_file = "DIR/secret"
headers = {{ Authorization = "Bearer sekrit-bearer", X-Team = "sekrit-team" }}
[[webhooks.endpoint]]
url = "{in_database}"
headers = {{ X-Other = "sekrit-other" }}
"#
    ));
    // Receivers that show us what we sent.
    let echo = "Bearer sekrit-bearer sekrit-team sekrit-of-file /mine?token=sekrit-mine";
    s.receiver.script("/mine", [Answer::status(500).body(echo)]);
    let echo = "Basic aG9vazpzZWtyaXQtcEBzcw== hook:sekrit-p@ss sekrit-p%40ss sekrit-query sekrit-other";
    s.receiver.script("/basic", [Answer::status(500).body(echo)]);
    s.installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.client.batch_execute(CHANGES[0]).await.unwrap();
    let mine = s.wait_for("/mine", 2).await;
    assert_eq!(mine[0].header("authorization"), Some("Bearer sekrit-bearer"));
    assert_eq!((mine[0].header("x-team"), mine[0].header("x-other")), (Some("sekrit-team"), None));
    let basic = s.wait_for("/basic", 2).await;
    assert_eq!(basic[0].header("authorization"), Some("Basic aG9vazpzZWtyaXQtcEBzcw=="));
    assert_eq!(basic[0].header("x-other"), Some("sekrit-other"));
    assert_eq!(basic[0].path, "/basic?token=sekrit-query");

    let mut shown = String::new();
    for command in [&["status"][..], &["status", "--json"], &["check"], &["check", "--json"]] {
        let output = s.installation.run(command).await;
        shown += &(output.stdout + &output.stderr);
    }
    let output = daemon.terminate().await;
    shown += &(output.stdout + &output.stderr);
    assert!(shown.contains("configured:mine") && shown.contains("starting new connection"), "{shown}");
    let line = shown.lines().find(|line| line.contains("sekrit") || line.contains("aG9va"));
    assert_eq!(line, None);
    for name in ["ledger.sqlite3", "ledger.sqlite3-wal"] {
        let bytes = std::fs::read(s.installation.state_dir().join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("sekrit") && !text.contains("aG9va"), "{name}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_verified_is_told_loudly_wherever_it_is_from() {
    let s = Scene::new().await;
    let issuer = Issuer::new("nobody");
    let tls = Some(server(&issuer.issue(&["elsewhere.example.com"], |_| {}), None));
    let raw = Raw::start_at((loopback(1), 0).into(), tls, answer_204).await;
    let url = format!("https://localhost:{}/hook", raw.addr.port());
    s.client.execute("UPDATE environments_webhook SET url = $1 WHERE id = 2", &[&url]).await.unwrap();
    let entry = format!("[[webhooks.endpoint]]\nurl = \"{url}\"\nverify = false\n");
    s.configure(&format!("{entry}{}", entry.replace("url", "name = \"mine\"\nurl")));
    s.installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.client.batch_execute(CHANGES[0]).await.unwrap();
    for key in ["environment:2", "configured:mine"] {
        s.wait_until(key, |part| part["delivered"] == 1).await;
    }
    let status = s.installation.run(&["status", "--json"]).await.json();
    for (key, verified) in [("environment:1", true), ("environment:2", false), ("configured:mine", false)] {
        assert_eq!(part(&status, key)["tls_verified"], verified);
    }
    let text = s.installation.run(&["status"]).await.success();
    assert_eq!(text.matches("TLS IS NOT VERIFIED").count(), 2, "{text}");
    let check = s.installation.run(&["check"]).await.success();
    assert_eq!(check.matches("TLS IS NOT VERIFIED").count(), 2, "{check}");
    let output = daemon.terminate().await;
    assert_eq!(output.stderr.matches("TLS IS NOT VERIFIED").count(), 2, "{output:?}");
    output.success();
}

async fn answer_204(mut peer: Peer) {
    peer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
}

/// A client with these options for one URL, that trusts `issuer`.
fn client(url: &str, options: EndpointOptions, issuer: &Issuer, whole: Duration) -> HttpClient {
    let targets = Arc::new(Targets::new(Vec::new(), [(url.to_owned(), options)].into()));
    let trust = Trust::from_pem(issuer.pem().as_bytes()).unwrap();
    HttpClient::new(Settings { targets, trust, ..settings(whole) }).unwrap()
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_the_endpoint_that_it_is_for() {
    let (issuer, clients) = (Issuer::new("servers"), Issuer::new("clients"));
    let tls = server(&issuer.issue(&["localhost"], |_| {}), Some(&clients));
    let raw = Raw::start_at((loopback(1), 0).into(), Some(tls), answer_204).await;
    let url = format!("https://localhost:{}/hook", raw.addr.port());
    let ours = clients.issue(&["flagpost"], |_| {});
    let strange = Issuer::new("strange").issue(&["flagpost"], |_| {});
    let with = |pem: &Pem| {
        let tls = Tls::default().with_identity(pem.certificate.as_bytes(), pem.key.as_bytes()).unwrap();
        EndpointOptions { tls, ..EndpointOptions::default() }
    };
    let send = async |client: &HttpClient, url: &str| client.send(&endpoint(url, ""), due("{}")).await;
    let good = client(&url, with(&ours), &issuer, PATIENCE);
    assert_eq!(send(&good, &url).await.status, Some(204));
    // Another URL, though the same server: no certificate is shown.
    let other = send(&good, &url.replace("hook", "other")).await.error.unwrap();
    assert!(other.contains("client_certificate and client_key"), "{other}");
    assert!(send(&client(&url, with(&strange), &issuer, PATIENCE), &url).await.error.is_some());
}

#[tokio::test]
async fn an_endpoint_can_have_a_time_of_its_own() {
    let silent = Raw::start(async |mut peer: Peer| peer.hold().await).await;
    let options = EndpointOptions { timeout: Some(Duration::from_millis(200)), ..EndpointOptions::default() };
    let client = client(&silent.url(), options, &Issuer::new("unused"), PATIENCE);
    let began = Instant::now();
    let answer = client.send(&endpoint(&silent.url(), ""), due("{}")).await;
    assert_eq!(answer.error.as_deref(), Some("no answer within 200ms"));
    assert!(began.elapsed() < PATIENCE);
}

#[test]
fn the_documents_name_what_endpoints_can_have() {
    let documents =
        [include_str!("../../docs/endpoints.md"), include_str!("../../docs/configuration.md")].concat();
    for key in [
        "`tags`",
        "network.https_only",
        "network.ca_file",
        "`verify`",
        "`client_certificate`",
        "`secret_file`",
    ] {
        assert!(documents.contains(key), "docs/endpoints.md and docs/configuration.md do not name {key}");
    }
}
