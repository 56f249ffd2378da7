//! What an operator sees of the outbox: `check` advises the source and names each fault with its mend, `status` and metrics
//! show what waits and what was missed.

use flagpost::demo::cluster::{Cluster, Options, StopMode};
use flagpost::demo::receiver::Receiver;
use serde_json::Value as Json;
use tokio_postgres::Client;

use crate::cli::{assert_check, checks, program, site, toggle};
use crate::support::pooler::Pooler;
use crate::support::process::{Daemon, Installation, LONG};
use crate::support::{Source, cluster_options};

/// Codes of checks that only one source has.
const OF_REPLICATION: [&str; 8] = [
    "wal-level",
    "role-replication",
    "replication-slots",
    "wal-senders",
    "replication-connection",
    "slot",
    "publication",
    "replica-identity",
];
const OF_OUTBOX: [&str; 8] = [
    "outbox-installed",
    "outbox-privilege",
    "outbox-triggers",
    "outbox-failures",
    "outbox-size",
    "outbox-waiting",
    "outbox-reader",
    "ledger-position",
];

struct Scene {
    cluster: Cluster,
    client: Client,
    receiver: Receiver,
    installation: Installation,
}

impl Scene {
    /// A Flagsmith on this server, and an installation that reads the outbox and is not set up.
    async fn new(options: Options) -> Scene {
        let (cluster, client, receiver, installation) = site(Source::Outbox, options).await;
        Scene { cluster, client, receiver, installation }
    }

    async fn set_up() -> Scene {
        let scene = Scene::new(server()).await;
        scene.installation.run(&["setup"]).await.success();
        scene
    }

    async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// What `check` says, with the exit code that it must have.
    async fn check(&self, code: i32) -> Json {
        report(&self.installation, code).await
    }

    async fn status(&self) -> Json {
        let output = self.installation.run(&["status", "--json"]).await;
        assert_eq!(output.code, 0, "{output:?}");
        output.json()
    }
}

/// A server without logical replication.
fn server() -> Options {
    Source::Outbox.options().set("track_commit_timestamp", "on")
}

async fn report(installation: &Installation, code: i32) -> Json {
    let output = installation.run(&["check", "--json"]).await;
    assert_eq!(output.code, code, "{output:?}");
    output.json()
}

/// Runs the SQL of the mend of the only check with this code.
fn mend(s: &Scene, report: &Json, code: &str) {
    let mend = checks(report, code)[0]["mend"].as_str().unwrap();
    program(&s.cluster, "psql", &["-v", "ON_ERROR_STOP=1"], mend);
}

#[tokio::test]
async fn from_setup_to_the_first_delivery_check_status_and_metrics_tell_of_the_outbox_and_of_no_slot() {
    let mut s = Scene::new(server()).await;
    let before = s.check(3).await;
    assert_check(&before, "outbox-installed", "fail", "flagpost setup --mode outbox");
    assert_check(&before, "source-mode", "ok", "outbox, which is configured, is advised");
    let text = s.installation.run(&["status"]).await.success();
    assert!(text.contains("source     outbox") && text.contains("setup --mode outbox"), "{text}");

    s.installation.run(&["setup"]).await.success();
    let after = s.check(0).await;
    for code in OF_OUTBOX.iter().chain(&["ledger-identity", "pooler"]) {
        assert_check(&after, code, "ok", "");
    }
    for code in OF_REPLICATION {
        assert!(checks(&after, code).is_empty(), "{code}: {after:#}");
    }

    toggle(&s.client).await;
    assert_check(&s.check(0).await, "outbox-waiting", "ok", "1 change waits, the oldest for ");
    s.sql("UPDATE flagpost.outbox SET at = at - interval '3 hours'").await;
    assert_check(&s.check(0).await, "outbox-waiting", "warn", "1 change waits, the oldest for 3 h");
    let status = s.status().await;
    let outbox = &status["database"]["outbox"];
    assert_eq!((&status["source"], &outbox["rows"]), (&"outbox".into(), &1.into()), "{status:#}");
    assert_eq!((&outbox["failures"], &outbox["full"]), (&0.into(), &false.into()), "{status:#}");
    assert_eq!((&outbox["reader"], &outbox["max_bytes"]), (&"this_ledger".into(), &(1 << 30).into()));
    assert!(outbox["oldest_seconds"].is_number() && outbox["bytes"].is_u64(), "{status:#}");
    assert!(status["database"]["slot"].is_null(), "{status:#}");
    let text = s.installation.run(&["status"]).await.success();
    for line in [
        "waiting    1 change, the oldest for 3 h",
        "of at most 1.0 GiB",
        "failures   0 statements",
        "outbox     it belongs to this ledger",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("retained") && !text.contains("CAPTURED") && !text.contains("FULL"), "{text}");

    s.installation = s.installation.with_ops();
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.wait_for(|all| !all.is_empty(), LONG).await.unwrap();
    let deadline = tokio::time::Instant::now() + LONG;
    while s.status().await["database"]["outbox"]["rows"] != 0 {
        assert!(tokio::time::Instant::now() < deadline, "it is not emptied");
    }
    s.check(0).await;
    let metrics = s.installation.metrics().await;
    for name in ["known 1", "rows 0", "oldest_seconds 0.0", "failures 0"] {
        assert!(metrics.contains(&format!("flagpost_outbox_{name}\n")), "{name}: {metrics}");
    }
    assert!(metrics.contains("flagpost_outbox_bytes "), "{metrics}");
    assert!(!metrics.contains("flagpost_slot") && !metrics.contains("wal_held"), "{metrics}");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn the_source_is_advised_by_what_server_and_role_allow() {
    let s = Scene::new(server()).await;
    s.sql("CREATE ROLE weak LOGIN").await;
    let weak = Installation::new(&s.cluster.url("weak", "flagsmith"));
    let on_its_own = report(&weak, 3).await;
    assert_check(&on_its_own, "source-mode", "warn", "outbox is advised, replication is configured");
    let message = checks(&on_its_own, "source-mode")[0]["message"].as_str().unwrap().to_owned();
    for why in [
        "wal_level is replica",
        "role weak lacks REPLICATION",
        "CREATE on the database",
        "CREATEROLE",
        "ownership of 22 tables",
    ] {
        assert!(message.contains(why), "{why}: {message}");
    }
    assert_check(&on_its_own, "source-mode", "warn", "flagpost setup --mode outbox --print");
    assert_check(&on_its_own, "wal-level", "fail", "ALTER SYSTEM SET wal_level = logical;");
    for code in ["wal-level", "role-replication"] {
        assert_check(&on_its_own, code, "fail", "flagpost setup --mode outbox");
    }

    s.sql("CREATE ROLE rds_superuser; CREATE ROLE rds_replication").await;
    let managed = report(&weak, 3).await;
    assert_check(&managed, "source-mode", "warn", "this is Amazon RDS");
    assert_check(&managed, "wal-level", "fail", "rds.logical_replication = 1");
    assert_check(&managed, "wal-level", "fail", "flagpost setup --mode outbox");
    assert!(!checks(&managed, "wal-level")[0]["mend"].as_str().unwrap().contains("ALTER SYSTEM"));
    assert_check(&managed, "role-replication", "fail", "GRANT rds_replication TO \"weak\";");
}

#[tokio::test]
async fn where_replication_can_be_had_it_is_advised_and_what_a_source_left_behind_is_told() {
    let s = Scene::new(cluster_options()).await;
    s.installation.run(&["setup"]).await.success();
    assert_check(&s.check(0).await, "source-mode", "ok", "replication is advised, outbox is configured");
    assert!(checks(&s.check(0).await, "leftover-slot").is_empty());

    let replication = Installation::new(&s.cluster.url("postgres", "flagsmith"));
    replication.run(&["setup"]).await.success();
    let told = report(&replication, 0).await;
    assert_check(&told, "source-mode", "ok", "replication, which is configured, is advised");
    assert_check(&told, "leftover-outbox", "warn", "nobody empties");
    assert_check(&s.check(0).await, "leftover-slot", "warn", "pg_drop_replication_slot('flagpost')");
    mend(&s, &told, "leftover-outbox");
    assert!(checks(&report(&replication, 0).await, "leftover-outbox").is_empty());
    // The outbox is gone, and the ledger had been filled from it.
    let gone = s.check(4).await;
    assert_check(&gone, "outbox-installed", "fail", "--resnapshot");
    mend(&s, &gone, "leftover-slot");
    assert!(checks(&s.check(4).await, "leftover-slot").is_empty());

    // A ledger goes on with the source that it was filled from.
    let mixed = replication.with("FLAGPOST_SOURCE_MODE", "outbox");
    Installation::new(&s.cluster.url("postgres", "flagsmith"))
        .run(&["setup", "--mode", "outbox", "--no-mirror"])
        .await
        .success();
    assert_check(&report(&mixed, 4).await, "ledger-identity", "fail", "source.mode = \"replication\"");
}

#[tokio::test]
async fn each_way_in_which_triggers_miss_changes_is_named_with_its_table_and_mend() {
    let s = Scene::new(server()).await;
    s.installation.run(&["setup", "--no-mirror"]).await.success();
    for (sql, part) in [
        ("DROP TRIGGER flagpost_update ON features_feature", "features_feature: no trigger flagpost_update"),
        ("ALTER TABLE features_feature DISABLE TRIGGER flagpost_delete", "features_feature: flagpost_delete disabled"),
        (
            "CREATE OR REPLACE TRIGGER flagpost_insert AFTER INSERT ON features_feature REFERENCING NEW TABLE AS new_rows
             FOR EACH STATEMENT EXECUTE FUNCTION flagpost.capture('', 'id');
             ALTER TABLE features_feature ENABLE ALWAYS TRIGGER flagpost_insert",
            "features_feature: flagpost_insert made for other columns",
        ),
    ] {
        // Nothing has been read yet: setting up again mends it.
        s.sql(sql).await;
        let report = s.check(3).await;
        assert_check(&report, "outbox-triggers", "fail", part);
        assert_check(&report, "outbox-triggers", "fail", "flagpost setup --mode outbox");
        s.installation.run(&["setup", "--mode", "outbox", "--no-mirror"]).await.success();
        s.check(0).await;
    }
    // Once it has, changes have been missed.
    s.installation.run(&["setup"]).await.success();
    s.sql(
        "DROP TRIGGER flagpost_update ON features_feature; DROP TRIGGER flagpost_insert ON features_feature",
    )
    .await;
    let report = s.check(4).await;
    assert_check(&report, "outbox-triggers", "fail", "no trigger flagpost_insert, flagpost_update");
    assert_check(&report, "outbox-triggers", "fail", "--resnapshot");
    s.installation.run(&["recover"]).await.success();
    // A trigger more is told, and costs nothing but room.
    s.sql(
        "CREATE TABLE foreigner (id int);
         CREATE TRIGGER flagpost_insert AFTER INSERT ON foreigner REFERENCING NEW TABLE AS new_rows
         FOR EACH STATEMENT EXECUTE FUNCTION flagpost.capture('', 'id');
         ALTER TABLE foreigner ENABLE ALWAYS TRIGGER flagpost_insert",
    )
    .await;
    let report = s.check(0).await;
    assert_check(&report, "outbox-surplus", "warn", "foreigner");
    mend(&s, &report, "outbox-surplus");
    assert!(checks(&s.check(0).await, "outbox-surplus").is_empty());
}

/// Fills the outbox up to this part of its cap.
async fn fill(s: &Scene, percent: i64, cap: i64) {
    loop {
        let size: i64 =
            s.client.query_one("SELECT pg_table_size('flagpost.outbox')", &[]).await.unwrap().get(0);
        if size >= cap / 100 * percent {
            return;
        }
        s.sql("INSERT INTO flagpost.outbox (op, table_name, new_row) SELECT 'I', 'x', '{}' FROM generate_series(1, 100)")
            .await;
    }
}

#[tokio::test]
async fn a_full_outbox_and_statements_that_were_not_captured_are_told_loudly() {
    let mut s = Scene::set_up().await;
    let cap = 512 << 10;
    s.installation.set("FLAGPOST_SOURCE_OUTBOX_MAX_SIZE", "512KiB");
    // The triggers are told by setup.
    let report = s.check(0).await;
    assert_check(&report, "outbox-cap", "warn", "flagpost setup --mode outbox");
    assert_check(&report, "outbox-size", "ok", "of at most 1.0 GiB");
    s.installation.run(&["setup"]).await.success();
    let report = s.check(0).await;
    assert!(checks(&report, "outbox-cap").is_empty(), "{report:#}");
    assert_check(&report, "outbox-size", "ok", "of at most 512.0 KiB");

    fill(&s, 81, cap).await;
    assert_check(&s.check(0).await, "outbox-size", "warn", "nearly full");
    fill(&s, 101, cap).await;
    let report = s.check(4).await;
    assert_check(&report, "outbox-size", "fail", "CHANGES ARE NOT CAPTURED ANY MORE");
    assert_check(&report, "outbox-size", "fail", "flagpost must then begin anew");
    let text = s.installation.run(&["status"]).await.success();
    assert!(text.contains("\nOUTBOX FULL ") && !text.contains("\nNOT CAPTURED "), "{text}");

    toggle(&s.client).await;
    toggle(&s.client).await;
    let report = s.check(4).await;
    assert_check(&report, "outbox-failures", "fail", "NOT CAPTURED: 2 statements");
    assert_check(
        &report,
        "outbox-failures",
        "fail",
        "UPDATE of features_featurestate: flagpost.outbox has reached its cap",
    );
    assert_check(&report, "outbox-failures", "fail", "flagpost recover");
    let text = s.installation.run(&["status"]).await.success();
    assert!(text.contains("\nNOT CAPTURED 2 statements") && text.contains("reached its cap"), "{text}");
    let outbox = s.status().await["database"]["outbox"].clone();
    assert_eq!((&outbox["failures"], &outbox["full"]), (&2.into(), &true.into()), "{outbox:#}");
    assert!(outbox["failure"].as_str().unwrap().contains("53400"), "{outbox:#}");

    // The daemon stops and says why; check knows that it has.
    let ended = Daemon::try_start(&s.installation).await.err().expect("it must not run");
    assert_eq!(ended.code, 4, "{ended:?}");
    s.installation.run(&["recover"]).await.success();
    let report = s.check(0).await;
    assert_check(&report, "outbox-failures", "ok", "");
    assert_check(&report, "outbox-size", "ok", "");
    let text = s.installation.run(&["status"]).await.success();
    assert!(!text.contains("CAPTURED") && !text.contains("FULL"), "{text}");
}

#[tokio::test]
async fn a_daemon_that_has_missed_changes_leaves_its_reason_for_check() {
    let s = Scene::set_up().await;
    let daemon = Daemon::start(&s.installation).await;
    s.sql("DROP TRIGGER flagpost_update ON features_featurestate; UPDATE features_featurestate SET enabled = NOT enabled").await;
    assert_eq!(daemon.ended(LONG).await.code, 4);
    // Somebody puts the trigger back: what was missed stays missed.
    let printed = s.installation.run(&["setup", "--print"]).await.success();
    program(&s.cluster, "psql", &["-v", "ON_ERROR_STOP=1"], &printed);
    let report = s.check(4).await;
    assert_check(&report, "outbox-triggers", "ok", "");
    assert_check(&report, "ledger-broken", "fail", "flagpost_update on features_featurestate");
    assert_check(&report, "ledger-broken", "fail", "flagpost recover");
}

#[tokio::test]
async fn an_outbox_that_belongs_to_another_ledger_or_was_set_back_is_told() {
    let s = Scene::set_up().await;
    let other = Source::Outbox.installation(&s.cluster.url("postgres", "flagsmith"));
    assert_check(&report(&other, 4).await, "outbox-reader", "fail", "belongs to another ledger");
    other.run(&["setup", "--resnapshot"]).await.success();
    let taken = s.check(4).await;
    assert_check(&taken, "outbox-reader", "fail", "another ledger");
    assert_check(&taken, "outbox-reader", "fail", "--resnapshot");
    let text = s.installation.run(&["status"]).await.success();
    assert!(text.contains("it belongs to ANOTHER LEDGER"), "{text}");
    assert_eq!(s.status().await["database"]["outbox"]["reader"], "another_ledger");
    s.sql("UPDATE flagpost.reader SET ledger = NULL").await;
    assert_check(&s.check(4).await, "outbox-reader", "fail", "belongs to no ledger");
    assert_eq!(s.status().await["database"]["outbox"]["reader"], "nobody");

    s.installation.run(&["setup", "--resnapshot"]).await.success();
    assert_check(&s.check(0).await, "ledger-position", "ok", "");
    s.sql("UPDATE flagpost.reader SET consumed = 900000000").await;
    assert_check(&s.check(4).await, "ledger-position", "fail", "read further");
    s.sql("UPDATE flagpost.reader SET consumed = NULL").await;
    let ledger = rusqlite::Connection::open(s.installation.state_dir().join("ledger.sqlite3")).unwrap();
    let ahead = "900000000:900000000: 900000000 900000000:900000000: 0";
    ledger.execute("UPDATE meta SET value = ?1 WHERE key = 'cursor'", [ahead]).unwrap();
    assert_check(&s.check(4).await, "ledger-position", "fail", "restored from an older state");
}

#[tokio::test]
async fn what_a_lesser_role_lacks_is_named_and_granted_by_the_mend() {
    let mut s = Scene::new(server()).await;
    let printed = s.installation.run(&["setup", "--print", "--role", "lesser"]).await.success();
    program(&s.cluster, "psql", &["-v", "ON_ERROR_STOP=1"], &printed);
    s.installation.set("FLAGPOST_DATABASE_URL", &s.cluster.url("lesser", "flagsmith"));
    assert_check(&s.check(0).await, "outbox-privilege", "ok", "lesser");

    s.sql("REVOKE DELETE ON flagpost.outbox FROM lesser; REVOKE UPDATE ON flagpost.failures FROM lesser")
        .await;
    let report = s.check(3).await;
    let message = "role lesser lacks DELETE on flagpost.outbox, UPDATE on flagpost.failures";
    assert_check(&report, "outbox-privilege", "fail", message);
    mend(&s, &report, "outbox-privilege");
    s.check(0).await;

    s.sql("REVOKE USAGE ON SCHEMA flagpost FROM lesser").await;
    let report = s.check(3).await;
    assert_check(&report, "outbox-privilege", "fail", "USAGE on schema flagpost");
    let refused = s.installation.run(&["status"]).await;
    assert!(refused.code == 3 && refused.stdout.contains("flagpost check"), "{refused:?}");
    mend(&s, &report, "outbox-privilege");
    s.check(0).await;
    // And with that it runs.
    Daemon::start(&s.installation).await.terminate().await.success();
}

#[tokio::test]
async fn a_pooler_costs_the_outbox_promptness_only_and_replication_everything() {
    let mut s = Scene::new(cluster_options()).await;
    s.installation.run(&["setup"]).await.success();
    let pooler = Pooler::start(&s.cluster, "transaction").await;
    s.installation.set("FLAGPOST_DATABASE_URL", &pooler.url("flagsmith"));
    for _ in 0..2 {
        let report = s.check(0).await;
        assert_check(&report, "pooler", "warn", "source.outbox_poll");
        assert_check(&report, "pooler", "warn", &format!("port {}", s.cluster.port()));
        for code in OF_OUTBOX {
            assert_check(&report, code, "ok", "");
        }
    }
    let daemon = Daemon::start(&s.installation).await;
    toggle(&s.client).await;
    s.receiver.wait_for(|all| !all.is_empty(), LONG).await.unwrap();
    assert_eq!(s.status().await["database"]["outbox"]["failures"], 0);
    daemon.terminate().await.success();

    let replication = Installation::new(&pooler.url("flagsmith"));
    let through = report(&replication, 3).await;
    assert_check(&through, "pooler", "fail", &format!("port {}", s.cluster.port()));
    assert_check(&through, "pooler", "fail", "flagpost setup --mode outbox");
    assert_check(&through, "source-mode", "warn", "a pooler stands between");
    assert!(checks(&through, "replication-connection").is_empty(), "{through:#}");

    // One client, one session: no harm but to replication, which it refuses.
    let session = Pooler::start(&s.cluster, "session").await;
    s.installation.set("FLAGPOST_DATABASE_URL", &session.url("flagsmith"));
    assert_check(&s.check(0).await, "pooler", "ok", "");
    let through = report(&Installation::new(&session.url("flagsmith")), 3).await;
    assert_check(&through, "replication-connection", "fail", "a pooler stands between");
}

#[tokio::test]
async fn on_a_standby_no_outbox_can_be_had_and_none_is_advised() {
    let mut s = Scene::new(cluster_options()).await;
    s.installation.run(&["setup"]).await.success();
    s.sql("CREATE ROLE weak LOGIN").await;
    // It waits for a log that nobody sends.
    s.cluster.stop(StopMode::Fast).await.unwrap();
    std::fs::write(s.cluster.data_dir().join("standby.signal"), "").unwrap();
    s.cluster.restart().await.unwrap();
    let report = s.check(3).await;
    assert_check(&report, "standby", "fail", "nothing can be taken out of the outbox");
    assert_check(&report, "source-mode", "warn", "triggers cannot write there");
    let weak = self::report(&Installation::new(&s.cluster.url("weak", "flagsmith")), 3).await;
    let mend = checks(&weak, "role-replication")[0]["mend"].as_str().unwrap();
    assert!(!mend.contains("outbox"), "{mend}");
    // From PostgreSQL 16 on a standby decodes.
    let decodes = std::fs::read_to_string(s.cluster.data_dir().join("PG_VERSION")).unwrap().trim() >= "16";
    assert_check(
        &weak,
        "standby",
        if decodes { "warn" } else { "fail" },
        "give database.url the primary's host",
    );
}
