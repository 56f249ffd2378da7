//! After a lost slot or outbox: `flagpost recover` brings receivers to what the database shows, once, marked, and in order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flagpost::demo::cluster::Cluster;
use flagpost::demo::receiver::{Answer, Received, Receiver};
use serde_json::Value as Json;
use tokio_postgres::Client;

use crate::cli::{count, site};
use crate::support::flagsmith::{self, Schema};
use crate::support::oracle::{Effective, flag_events};
use crate::support::process::{Daemon, Installation};
use crate::support::replay::{Pace, Replay, cases};
use crate::support::{Source, golden, on_both_sources};

const PATIENCE: Duration = Duration::from_secs(30);
const MARK: &str = "x-flagpost-reconstructed";
/// Gets every flag event, and the audit log.
const ALL: &str = "/org-plain";

on_both_sources!(
    what_a_running_flagsmith_did_meanwhile_ends_right_at_every_receiver,
    what_was_queued_goes_first_and_several_changes_of_one_flag_are_one_event,
    a_recovery_that_is_killed_at_any_moment_is_done_once_by_the_next,
    a_dry_run_changes_nothing_and_a_running_daemon_is_not_disturbed,
);

/// Takes away what the source depends on.
async fn lose(source: Source, client: &Client) {
    match source {
        Source::Replication => {
            // The server may need a moment to notice that the daemon is gone.
            let drop = "SELECT pg_drop_replication_slot('flagpost')";
            while client.batch_execute(drop).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Source::Outbox => client.batch_execute("DROP SCHEMA flagpost CASCADE").await.unwrap(),
    }
}

fn body(received: &Received) -> Json {
    serde_json::from_slice(&received.body).unwrap()
}

fn at<'a>(all: &'a [Received], path: &str) -> Vec<&'a Received> {
    all.iter().filter(|received| received.path == path).collect()
}

fn is_audit(received: &Received) -> bool {
    body(received)["event_type"] == "AUDIT_LOG_CREATED"
}

/// Flagsmith's dates as if it had all happened just now, within milliseconds and in the same order: recorded rows keep the dates of
/// their recording, and what was before the ledger is nothing that it has missed.
async fn bring_dates_to_now(client: &Client, before: &BTreeMap<&str, i64>) {
    let mut sql = String::new();
    for (table, key, date) in DATED {
        let last = before[table];
        sql.push_str(&format!(
            "UPDATE {table} SET {date} = now() - ((SELECT max({date}) FROM {table}) - {date}) / 100000 WHERE {key} > {last};"
        ));
    }
    client.batch_execute(&sql).await.unwrap();
}

const DATED: [(&str, &str, &str); 4] = [
    ("features_historicalfeaturestate", "history_id", "history_date"),
    ("features_historicalfeaturestatevalue", "history_id", "history_date"),
    ("multivariate_historicalmultivariatefeaturestatevalue", "history_id", "history_date"),
    ("audit_auditlog", "id", "created_date"),
];

async fn last_ids(client: &Client) -> BTreeMap<&'static str, i64> {
    let mut ids = BTreeMap::new();
    for (table, key, _) in DATED {
        let sql = format!("SELECT coalesce(max({key}), 0)::bigint FROM {table}");
        ids.insert(table, client.query_one(&sql, &[]).await.unwrap().get(0));
    }
    ids
}

/// Deliveries that are still to be made.
async fn pending(installation: &Installation) -> u64 {
    let status = installation.run(&["status", "--json"]).await.json();
    status["endpoints"].as_array().unwrap().iter().map(|endpoint| endpoint["pending"].as_u64().unwrap()).sum()
}

async fn environments(client: &Client) -> BTreeSet<i64> {
    let rows = client.query("SELECT id::bigint FROM environments_environment", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn what_a_running_flagsmith_did_meanwhile_ends_right_at_every_receiver(source: Source) {
    // Told as it happened; the rest is missed.
    const TOLD: usize = 12;
    let cluster = Cluster::start(source.options()).await.unwrap();
    let schema = Schema::read(&golden().join("schema.json"));
    let receiver = Receiver::start(0).unwrap();
    let client = flagsmith::database(&cluster, &schema, receiver.addr()).await;
    let installation = source
        .installation(&cluster.url("postgres", "flagsmith"))
        .with("FLAGPOST_WEBHOOKS_FORMAT", "current")
        .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8");
    installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&installation).await;
    let mut replay = Replay::new(&schema, &client, receiver.addr(), Pace::AT_ONCE);
    for path in &cases()[..TOLD] {
        let case = replay.read(path);
        replay.case(&case).await;
    }
    client
        .batch_execute(
            "INSERT INTO audit_auditlog (id, created_date, log, project_id, is_system_event)
             VALUES (900000, clock_timestamp(), 'end of what is told', 1, false)",
        )
        .await
        .unwrap();
    let is_told = |all: &[Received]| {
        at(all, ALL).iter().any(|r| String::from_utf8_lossy(&r.body).contains("end of what"))
    };
    receiver.wait_for(is_told, PATIENCE).await.unwrap();
    while pending(&installation).await > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    daemon.terminate().await.success();
    assert!(receiver.all().iter().all(|received| received.header(MARK).is_none()));
    receiver.clear();
    client.batch_execute("DELETE FROM audit_auditlog WHERE id = 900000").await.unwrap();

    lose(source, &client).await;
    let before = Effective::read(&client).await;
    let (known, ids) = (environments(&client).await, last_ids(&client).await);
    // In the end everything is deleted, and nobody would be told of anything.
    let missed = cases().into_iter().skip(TOLD).take_while(|path| !path.to_string_lossy().contains("/085-"));
    for path in &missed.collect::<Vec<_>>() {
        let case = replay.read(path);
        replay.case(&case).await;
    }
    bring_dates_to_now(&client, &ids).await;
    let expected = before.events(&Effective::read(&client).await);
    let audits = count(&client, &format!("audit_auditlog WHERE id > {}", ids["audit_auditlog"])).await;

    let refused = installation.run(&["run"]).await;
    assert!(refused.code == 4 && refused.stderr.contains("flagpost recover"), "{refused:?}");
    let said = installation.run(&["recover"]).await.success();
    let daemon = Daemon::start(&installation).await;
    let is_complete = |all: &[Received]| at(all, ALL).iter().filter(|r| is_audit(r)).count() as i64 >= audits;
    let all = receiver.wait_for(is_complete, PATIENCE).await.unwrap_or_else(|all| all);
    assert!(all.iter().all(|received| received.header(MARK) == Some("true")));
    let came = at(&all, ALL);
    // Of an environment that is new the recording has more than the oracle judges: features that came after it.
    let is_judged = |received: &&&Received| {
        let data = &body(received)["data"];
        let state = if data["new_state"].is_null() { &data["previous_state"] } else { &data["new_state"] };
        state["environment"]["id"].as_i64().is_none_or(|id| known.contains(&id))
    };
    let judged: Vec<String> = came
        .iter()
        .filter(|r| !is_audit(r))
        .filter(is_judged)
        .map(|r| String::from_utf8_lossy(&r.body).into_owned())
        .collect();
    assert!(expected.len() > 10, "only {}", expected.len());
    let got = flag_events(judged.iter());
    assert_eq!(got.len(), expected.len(), "{said}");
    for (got, expected) in got.iter().zip(&expected) {
        assert_eq!(got, expected, "{said}");
    }
    // The audit log is told whole, each row once, in the order of its ids.
    let logs: Vec<String> =
        came.iter().filter(|r| is_audit(r)).map(|r| body(r)["data"]["created_date"].to_string()).collect();
    assert_eq!(logs.len() as i64, audits, "{said}");
    let listed =
        said.lines().filter(|line| line.starts_with("  FLAG_") || line.starts_with("  AUDIT_")).count();
    assert!(listed >= came.len(), "{said}");
    // It goes on as ever: nothing is marked any more.
    receiver.clear();
    client
        .batch_execute(
            "INSERT INTO audit_auditlog (id, created_date, log, project_id, is_system_event)
             VALUES (900001, clock_timestamp(), 'as ever', 1, false)",
        )
        .await
        .unwrap();
    let as_ever =
        |all: &[Received]| at(all, ALL).iter().any(|r| String::from_utf8_lossy(&r.body).contains("as ever"));
    let all = receiver.wait_for(as_ever, PATIENCE).await.unwrap();
    assert!(all.iter().all(|received| received.header(MARK).is_none()));
    daemon.terminate().await.success();
}

struct Scene {
    cluster: Cluster,
    client: Client,
    receiver: Receiver,
    installation: Installation,
}

/// The flag value of a body of format `classic`.
fn values(received: &Received) -> (Json, Json) {
    let data = &body(received)["data"];
    (data["previous_state"]["feature_state_value"].clone(), data["new_state"]["feature_state_value"].clone())
}

impl Scene {
    /// Five flags in Development, with states and values 1001 to 1005.
    async fn new(source: Source) -> Scene {
        let (cluster, client, receiver, installation) = site(source, source.options()).await;
        let installation = installation
            .with("FLAGPOST_SOURCE_SETTLE", "0")
            .with("FLAGPOST_DELIVERY_RETRY", "100ms")
            .with("FLAGPOST_DELIVERY_BREAKER_FAILURES", "0");
        let scene = Scene { cluster, client, receiver, installation };
        scene
            .sql(
                "INSERT INTO features_feature SELECT (jsonb_populate_record(f, jsonb_build_object(
                     'id', 1000 + n, 'name', 'flag_' || n, 'uuid', gen_random_uuid()))).*
                 FROM features_feature f, generate_series(1, 5) n WHERE f.id = (SELECT min(id) FROM features_feature);
                 INSERT INTO features_featurestate SELECT (jsonb_populate_record(s, jsonb_build_object(
                     'id', 1000 + n, 'feature_id', 1000 + n, 'uuid', gen_random_uuid()))).*
                 FROM features_featurestate s, generate_series(1, 5) n WHERE s.id = 1;
                 INSERT INTO features_featurestatevalue SELECT (jsonb_populate_record(v, jsonb_build_object(
                     'id', 1000 + n, 'feature_state_id', 1000 + n, 'type', 'unicode', 'string_value', 'first',
                     'uuid', gen_random_uuid()))).*
                 FROM features_featurestatevalue v, generate_series(1, 5) n WHERE v.id = 1",
            )
            .await;
        // Nobody is told of what was before flagpost.
        scene.audit(900_000).await;
        scene.installation.run(&["setup"]).await.success();
        scene
    }

    async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// A row of the audit log, just now.
    async fn audit(&self, id: u32) {
        self.sql(&format!(
            "INSERT INTO audit_auditlog (id, created_date, log, project_id, is_system_event)
             VALUES ({id}, clock_timestamp(), 'row {id}', 1, false)"
        ))
        .await;
    }

    async fn set(&self, flag: u32, value: &str) {
        self.sql(&format!(
            "UPDATE features_featurestatevalue SET string_value = '{value}' WHERE feature_state_id = {}",
            1000 + flag
        ))
        .await;
    }

    /// As Flagsmith does it: with the row of the history, by the first user.
    async fn set_by_user(&self, flag: u32, value: &str) {
        self.set(flag, value).await;
        self.sql(&format!(
            "INSERT INTO features_historicalfeaturestate SELECT (jsonb_populate_record(h, jsonb_build_object(
                 'id', {id}, 'history_id', (SELECT max(history_id) + 1 FROM features_historicalfeaturestate),
                 'history_date', clock_timestamp(), 'history_type', '~',
                 'history_user_id', (SELECT min(id) FROM users_ffadminuser)))).*
             FROM features_historicalfeaturestate h LIMIT 1",
            id = 1000 + flag
        ))
        .await;
    }

    async fn wait_for(&self, path: &str, count: usize) -> Vec<Received> {
        let all = self.receiver.wait_for(|all| at(all, path).len() >= count, PATIENCE).await;
        let all = all.unwrap_or_else(|all| panic!("{path} got {} of {count}", at(&all, path).len()));
        at(&all, path).into_iter().cloned().collect()
    }

    async fn events(&self) -> i64 {
        let status = self.installation.run(&["status", "--json"]).await.json();
        status["ledger"]["events"].as_i64().unwrap()
    }
}

const PLAIN: &str = "/dev-plain";

async fn what_was_queued_goes_first_and_several_changes_of_one_flag_are_one_event(source: Source) {
    let s = Scene::new(source).await;
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.answer(PLAIN, Answer::status(500));
    s.set(1, "told").await;
    s.wait_for("/dev-signed", 1).await;
    s.audit(900_001).await;
    s.wait_for(ALL, 1).await;
    daemon.terminate().await.success();
    lose(source, &s.client).await;
    // One flag several times, one there and back, one by nobody, one after the others by an earlier edit, one new, one gone.
    s.set_by_user(1, "on the way").await;
    s.set_by_user(3, "third").await;
    s.set_by_user(1, "last").await;
    s.set(2, "there").await;
    s.set(2, "first").await;
    s.set(4, "by sql").await;
    s.sql("UPDATE features_feature SET deleted_at = clock_timestamp() WHERE id = 1005").await;
    s.sql("DELETE FROM environments_webhook WHERE url LIKE '%/prod-plain'").await;
    let said = s.installation.run(&["recover"]).await.success();
    assert!(said.contains("events to be sent, marked as reconstructed: 4\n"), "{said}");
    s.receiver.clear();
    s.receiver.answer(PLAIN, Answer::status(200));
    let daemon = Daemon::start(&s.installation).await;
    let came = s.wait_for(PLAIN, 5).await;
    let of_first: Vec<&Received> =
        came.iter().filter(|r| r.header("x-flagpost-sequence").is_some() && is_of(r, 1001)).collect();
    let shown: Vec<(Json, Json)> = of_first.iter().map(|r| values(r)).collect();
    assert_eq!(shown, [("first".into(), "told".into()), ("told".into(), "last".into())], "{said}");
    let number = |r: &&Received| r.header("x-flagpost-sequence").unwrap().to_owned();
    assert_eq!(of_first.iter().map(number).collect::<Vec<_>>(), ["1", "2"]);
    let marked: Vec<bool> = of_first.iter().map(|r| r.header(MARK) == Some("true")).collect();
    assert_eq!(marked, [false, true], "what was queued is no reconstruction");
    let by: Vec<String> =
        of_first.iter().map(|r| body(r)["data"]["changed_by"].as_str().unwrap().to_owned()).collect();
    assert!(by[0].is_empty() && !by[1].is_empty(), "{by:?}");
    assert!(!came.iter().any(|r| is_of(r, 1002)), "changed there and back, and told: {said}");
    let gone = came.iter().find(|r| is_of(r, 1005)).unwrap();
    assert!(
        body(gone)["event_type"] == "FLAG_DELETED"
            && gone.header("x-flagpost-action") == Some("removed;scope=default")
    );
    // In the order of the last changes: the third was edited before the first's last edit.
    let order: Vec<u32> = said
        .lines()
        .filter_map(|line| {
            let flag = line.strip_prefix("  FLAG_")?.split("flag_").nth(1)?;
            flag.split(' ').next()?.parse().ok()
        })
        .collect();
    assert_eq!(order, [3, 1, 5, 4], "{said}");
    // The record says it as well.
    let log: Vec<Json> = s
        .installation
        .run(&["log", "--json"])
        .await
        .success()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(log.iter().filter(|event| event["reconstructed"] == true).count(), 4, "{log:#?}");
    let text = s.installation.run(&["log"]).await.success();
    assert_eq!(text.matches("(reconstructed)").count(), 4, "{text}");
    let id = log.iter().find(|event| event["reconstructed"] == true).unwrap()["id"].as_str().unwrap();
    let shown = s.installation.run(&["show", id]).await.success();
    assert!(
        shown.contains("(reconstructed)") && shown.contains("the changes themselves were missed"),
        "{shown}"
    );
    // A second one finds nothing.
    daemon.terminate().await.success();
    let again = s.installation.run(&["recover"]).await.success();
    assert!(again.contains("reconstructed: 0\n") && s.events().await == 6, "{again}");
}

/// Whether a body of format `classic` is about this feature.
fn is_of(received: &Received, feature: i64) -> bool {
    let data = &body(received)["data"];
    [&data["new_state"], &data["previous_state"]].iter().any(|state| state["feature"]["id"] == feature)
}

fn ids<'a>(received: &[&'a Received]) -> BTreeSet<&'a str> {
    received.iter().map(|received| received.header("x-flagpost-event-id").unwrap()).collect()
}

async fn a_recovery_that_is_killed_at_any_moment_is_done_once_by_the_next(source: Source) {
    let s = Scene::new(source).await;
    let daemon = Daemon::start(&s.installation).await;
    s.set(1, "told").await;
    s.wait_for(PLAIN, 1).await;
    daemon.kill();
    lose(source, &s.client).await;
    for flag in 1..=5 {
        s.set(flag, "missed").await;
    }
    let mut interrupted = 0;
    for attempt in 0..8_u64 {
        let recovery = Daemon::at_once(&s.installation, &["recover"]);
        tokio::time::sleep(Duration::from_millis(attempt * 9 + 5)).await;
        recovery.kill();
        // In between nobody goes on as if nothing had been missed.
        if s.events().await == 1 {
            interrupted += 1;
            let refused = s.installation.run(&["run"]).await;
            assert!(
                refused.code == 4 && refused.stderr.contains("flagpost recover"),
                "{attempt}: {refused:?}"
            );
        }
    }
    assert!(interrupted > 0, "none was killed before its end");
    s.installation.run(&["recover"]).await.success();
    assert_eq!(s.events().await, 6);
    let daemon = Daemon::start(&s.installation).await;
    // The daemon that was killed may not have noted what it had sent: that comes again, with the same id.
    let all = s.receiver.wait_for(|all| ids(&at(all, PLAIN)).len() >= 6, PATIENCE).await.unwrap();
    let came = at(&all, PLAIN);
    assert_eq!(ids(&came).len(), 6);
    for flag in 1001..=1005_i64 {
        let told: Vec<(Json, Json)> = came.iter().filter(|r| is_of(r, flag)).map(|r| values(r)).collect();
        let first = if flag == 1001 { "told" } else { "first" };
        assert_eq!(told.last(), Some(&(first.into(), "missed".into())), "{flag}");
    }
    daemon.terminate().await.success();
    assert_eq!(s.events().await, 6);
}

async fn a_dry_run_changes_nothing_and_a_running_daemon_is_not_disturbed(source: Source) {
    let s = Scene::new(source).await;
    let daemon = Daemon::start(&s.installation).await;
    for arguments in [&["recover"][..], &["recover", "--dry-run"]] {
        let refused = s.installation.run(arguments).await;
        assert!(refused.code == 4 && refused.stderr.contains("another flagpost works"), "{refused:?}");
    }
    s.set(1, "told").await;
    s.wait_for(PLAIN, 1).await;
    daemon.terminate().await.success();
    // Not lost at all: it is asked for on demand. What lies in the source is told once, by the recovery.
    s.set(1, "missed").await;
    for _ in 0..2 {
        let said = s.installation.run(&["recover", "--dry-run"]).await.success();
        assert!(
            said.contains("events would be sent, marked as reconstructed: 1\n") && said.contains("flag_1"),
            "{said}"
        );
    }
    assert_eq!(s.events().await, 1);
    s.installation.run(&["recover"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.set(1, "as ever").await;
    let told: Vec<Json> = s.wait_for(PLAIN, 3).await.iter().map(|r| values(r).1).collect();
    assert_eq!(told, ["told", "missed", "as ever"]);
    daemon.terminate().await.success();

    // Another database is taken for the same Flagsmith only if somebody says so.
    let url = s.cluster.url("postgres", "moved");
    let maintenance = s.cluster.connect("postgres").await.unwrap();
    let Scene { client, receiver, mut installation, cluster, .. } = s;
    drop(client);
    let copy = "CREATE DATABASE moved TEMPLATE flagsmith";
    while maintenance.batch_execute(copy).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    installation.set("FLAGPOST_DATABASE_URL", &url);
    // The slot stays behind with the other database.
    installation.set("FLAGPOST_SOURCE_SLOT", "moved");
    let client = cluster.connect("moved").await.unwrap();
    let set =
        "UPDATE features_featurestatevalue SET string_value = 'elsewhere' WHERE feature_state_id = 1001";
    client.batch_execute(set).await.unwrap();
    let refused = installation.run(&["recover"]).await;
    assert!(refused.code == 4 && refused.stderr.contains("recover --moved"), "{refused:?}");
    let said = installation.run(&["recover", "--moved"]).await.success();
    assert!(said.contains("events to be sent, marked as reconstructed: 1\n"), "{said}");
    let daemon = Daemon::start(&installation).await;
    let told = receiver.wait_for(|all| at(all, PLAIN).len() >= 4, PATIENCE).await.unwrap();
    assert_eq!(values(at(&told, PLAIN)[3]), ("as ever".into(), "elsewhere".into()));
    daemon.terminate().await.success();
}

#[tokio::test]
async fn there_must_be_something_to_recover() {
    let (_cluster, _client, _receiver, installation) =
        site(Source::Replication, Source::Replication.options()).await;
    let refused = installation.run(&["recover"]).await;
    assert!(refused.code == 4 && refused.stderr.contains("flagpost setup"), "{refused:?}");
    assert!(!installation.state_dir().exists());
}
