//! The commands do what they say: setup, check, status, run and uninstall, on the real binary.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use flagpost::demo::cluster::{Cluster, Options, find_bindir};
use flagpost::demo::receiver::{Answer, Receiver};
use serde_json::Value as Json;
use tokio_postgres::Client;

use crate::support::flagsmith::{self, Schema};
use crate::support::process::{Daemon, Installation, LONG};
use crate::support::replay::{Pace, Replay, cases};
use crate::support::{Source, cluster_options, golden, has_column_lists};

const CATALOGUE: &str = include_str!("support/catalogue.sql");

/// A Flagsmith with a project, two environments, their webhooks and a flag.
pub(crate) async fn flagsmith(cluster: &Cluster, receiver: SocketAddr) -> Client {
    let schema = Schema::read(&golden().join("schema.json"));
    let client = flagsmith::database(cluster, &schema, receiver).await;
    let mut replay = Replay::new(&schema, &client, receiver, Pace::AT_ONCE);
    for path in cases().iter().take(4) {
        let case = replay.read(path);
        replay.case(&case).await;
    }
    client
}

/// A Flagsmith on a server of this kind, its endpoints' receiver, and an installation that reads this source and may reach it;
/// nothing is set up yet.
pub(crate) async fn site(source: Source, options: Options) -> (Cluster, Client, Receiver, Installation) {
    let cluster = Cluster::start(options).await.unwrap();
    let receiver = Receiver::start(0).unwrap();
    let client = flagsmith(&cluster, receiver.addr()).await;
    let installation = source
        .installation(&cluster.url("postgres", "flagsmith"))
        .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8");
    (cluster, client, receiver, installation)
}

/// Runs a PostgreSQL client program on the database `flagsmith`, with `input` on its standard input.
pub(crate) fn program(cluster: &Cluster, name: &str, arguments: &[&str], input: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("input");
    std::fs::write(&file, input).unwrap();
    // The server binaries of tools/postgres come without client programs. psql speaks to older and newer servers.
    let program = own_program(name).unwrap_or_else(|| name.into());
    let output = Command::new(program)
        .args(arguments)
        .args(["-h", "127.0.0.1", "-p", &cluster.port().to_string(), "-U", "postgres", "-d", "flagsmith"])
        .stdin(std::fs::File::open(&file).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A client program that came with the server's binaries.
fn own_program(name: &str) -> Option<PathBuf> {
    Some(find_bindir().unwrap().join(name)).filter(|path| path.is_file())
}

/// All that the database consists of: what its catalogue has, and what the server's own pg_dump says where there is one (a
/// pg_dump refuses a newer server), without the lines that differ from one dump to the next.
pub(crate) fn dump(cluster: &Cluster) -> String {
    let catalogue = program(cluster, "psql", &["-XqAt", "-v", "ON_ERROR_STOP=1"], CATALOGUE);
    let dump = own_program("pg_dump").map(|_| program(cluster, "pg_dump", &["--schema-only"], ""));
    let lines = dump.as_deref().unwrap_or_default().lines().filter(|line| !line.contains("restrict "));
    format!("{catalogue}{}", lines.collect::<Vec<_>>().join("\n"))
}

pub(crate) async fn count(client: &Client, from: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {from}"), &[]).await.unwrap().get(0)
}

/// The checks with this code.
pub(crate) fn checks<'a>(report: &'a Json, code: &str) -> Vec<&'a Json> {
    report["checks"].as_array().unwrap().iter().filter(|check| check["code"] == code).collect()
}

/// The only check with this code has this status, and its message or its mend has this part.
#[track_caller]
pub(crate) fn assert_check(report: &Json, code: &str, status: &str, part: &str) {
    let found = checks(report, code);
    assert_eq!(found.len(), 1, "{code}: {report:#}");
    let text = format!(
        "{} {}",
        found[0]["message"].as_str().unwrap(),
        found[0]["mend"].as_str().unwrap_or_default()
    );
    assert!(found[0]["status"] == status && text.contains(part), "{part:?}: {:#}", found[0]);
}

pub(crate) async fn toggle(client: &Client) {
    let changed = client
        .execute(
            "UPDATE features_featurestate SET enabled = NOT enabled WHERE id = (SELECT min(id) FROM features_featurestate)",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(changed, 1);
}

/// The endpoints that have something in `status --json`, by what is counted.
async fn wait_for_status(installation: &Installation, is_there: impl Fn(&Json) -> bool) -> Json {
    let deadline = tokio::time::Instant::now() + LONG;
    loop {
        let status = installation.run(&["status", "--json"]).await.json();
        if is_there(&status) {
            return status;
        }
        assert!(tokio::time::Instant::now() < deadline, "{status:#}");
    }
}

fn endpoint<'a>(status: &'a Json, key: &str) -> &'a Json {
    let endpoints = status["endpoints"].as_array().unwrap();
    endpoints.iter().find(|endpoint| endpoint["endpoint"] == key).unwrap_or_else(|| panic!("{status:#}"))
}

#[tokio::test]
async fn from_setup_to_uninstall_nothing_is_left_behind() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let receiver = Receiver::start(0).unwrap();
    let client = flagsmith(&cluster, receiver.addr()).await;
    let before = dump(&cluster);
    let installation = Installation::new(&cluster.url("postgres", "flagsmith"))
        .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8");

    // Before setup: the publication is missing; the rest is told and stands in nobody's way.
    let output = installation.run(&["check", "--json"]).await;
    assert_eq!(output.code, 3, "{output:?}");
    assert_check(&output.json(), "publication", "fail", "CREATE PUBLICATION \"flagpost\" FOR TABLE");
    assert_check(&output.json(), "slot", "warn", "flagpost setup");
    assert_check(&output.json(), "ledger", "warn", "flagpost setup");
    let text = installation.run(&["status"]).await.success();
    assert!(text.contains("is not there") && text.contains("none in"), "{text}");

    installation.run(&["setup"]).await.success();
    // From PostgreSQL 17 on it outlives a failover.
    let failover = "SELECT to_jsonb(s) ->> 'failover', current_setting('server_version_num')::int FROM pg_replication_slots s";
    let row = client.query_one(failover, &[]).await.unwrap();
    let expected = (row.get::<_, i32>(1) >= 170_000).then(|| "true".to_owned());
    assert_eq!(row.get::<_, Option<String>>(0), expected);
    assert_ne!(dump(&cluster), before, "the dump has the publication");
    let again = installation.run(&["setup"]).await.success();
    assert!(again.contains("is as it must be") && again.contains("is there"), "{again}");

    let text = installation.run(&["check"]).await.success();
    assert!(text.contains("nothing stands in the way"), "{text}");
    let report = installation.run(&["check", "--json"]).await.json();
    for code in ["wal-level", "slot", "publication", "ledger-identity", "ledger-position", "replica-identity"]
    {
        assert_check(&report, code, "ok", "");
    }
    assert_check(&report, "flagsmith-webhooks", "warn", "DISABLE_WEBHOOKS=true");

    let stopped = installation.run(&["status", "--json"]).await;
    assert_eq!(stopped.code, 0);
    let stopped = stopped.json();
    assert_eq!(
        (&stopped["database"]["slot"]["active"], &stopped["ledger"]["events"]),
        (&false.into(), &0.into())
    );

    let daemon = Daemon::start(&installation).await;
    toggle(&client).await;
    let running = wait_for_status(&installation, |status| {
        let endpoints = status["endpoints"].as_array().unwrap();
        endpoints.iter().any(|endpoint| endpoint["delivered"].as_u64() > Some(0))
    })
    .await;
    let slot = &running["database"]["slot"];
    assert_eq!((&slot["active"], slot["wal_status"].as_str().unwrap()), (&true.into(), "reserved"));
    assert!(slot["lag_bytes"].is_u64() && slot["lag_seconds"].is_number() && slot["retained_bytes"].is_u64());
    assert_eq!(running["ledger"]["events"], 1);
    assert!(!receiver.all().is_empty());

    for arguments in [&["uninstall"][..], &["uninstall", "--purge"]] {
        let refused = installation.run(arguments).await;
        assert!(refused.code >= 3 && refused.stderr.contains("stop"), "{refused:?}");
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
    }
    assert_eq!(count(&client, "pg_publication").await, 1);
    assert_eq!(daemon.terminate().await.code, 0);

    let printed = installation.run(&["uninstall", "--print"]).await.success();
    assert!(
        printed.contains("WHERE slot_name = 'flagpost'") && printed.contains("EXISTS \"flagpost\""),
        "{printed}"
    );
    assert_eq!(count(&client, "pg_replication_slots").await, 1);
    let done = installation.run(&["uninstall"]).await.success();
    assert!(done.contains("pg_drop_replication_slot") && done.contains("the ledger stays in"), "{done}");
    let again = installation.run(&["uninstall", "--purge"]).await.success();
    assert_eq!(again.matches("nothing to drop").count(), 3, "{again}");
    assert!(again.contains("ledger.sqlite3") && !installation.state_dir().exists(), "{again}");
    assert_eq!(
        (count(&client, "pg_replication_slots").await, count(&client, "pg_publication").await),
        (0, 0)
    );
    assert_eq!(dump(&cluster), before);
}

#[tokio::test]
async fn what_setup_prints_lets_a_lesser_role_run_the_daemon() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let receiver = Receiver::start(0).unwrap();
    let client = flagsmith(&cluster, receiver.addr()).await;
    let mut installation = Installation::new(&cluster.url("postgres", "flagsmith"))
        .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8");
    let sql = installation.run(&["setup", "--print", "--role", "lesser"]).await.success();
    assert_eq!(
        (count(&client, "pg_replication_slots").await, count(&client, "pg_publication").await),
        (0, 0)
    );
    program(&cluster, "psql", &["-v", "ON_ERROR_STOP=1"], &sql);

    installation.set("FLAGPOST_DATABASE_URL", &cluster.url("lesser", "flagsmith"));
    let report = installation.run(&["check", "--json"]).await;
    assert_eq!(report.code, 0, "{report:?}");
    assert_check(&report.json(), "select-privilege", "ok", "lesser");
    let daemon = Daemon::start(&installation).await;
    toggle(&client).await;
    receiver.wait_for(|all| !all.is_empty(), LONG).await.unwrap();
    let status = installation.run(&["status", "--json"]).await;
    assert_eq!((status.code, &status.json()["database"]["slot"]["active"]), (0, &true.into()));
    assert_eq!(daemon.terminate().await.code, 0);

    // It may drop the slot, which it could make; not the publication, which is not its own.
    let output = installation.run(&["uninstall"]).await;
    assert!(output.code == 3 && output.stderr.contains("uninstall --print"), "{output:?}");
    program(
        &cluster,
        "psql",
        &["-v", "ON_ERROR_STOP=1"],
        &installation.run(&["uninstall", "--print"]).await.success(),
    );
    assert_eq!(count(&client, "pg_publication").await, 0);
}

#[tokio::test]
async fn check_names_each_obstacle_with_its_mend_and_the_mend_mends() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let client = flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    client
        .batch_execute(
            "CREATE ROLE weak LOGIN;
             ALTER TABLE features_feature REPLICA IDENTITY NOTHING;
             UPDATE environments_webhook SET url = 'sekrit' WHERE id = (SELECT min(id) FROM environments_webhook);
             UPDATE environments_webhook SET url = 'https://nowhere.invalid/'
             WHERE id = (SELECT max(id) FROM environments_webhook WHERE enabled);",
        )
        .await
        .unwrap();
    let columns = if has_column_lists(&client).await { "(id)" } else { "" };
    let publication = format!("CREATE PUBLICATION flagpost FOR TABLE features_featurestate {columns}");
    client.batch_execute(&publication).await.unwrap();
    let installation = Installation::new(&cluster.url("weak", "flagsmith"));
    let output = installation.run(&["check", "--json"]).await;
    assert_eq!(output.code, 3, "{output:?}");
    let report = output.json();
    let statements: Vec<(&str, &str)> = vec![
        ("role-replication", "ALTER ROLE \"weak\" REPLICATION;"),
        ("select-privilege", "GRANT USAGE ON SCHEMA \"public\" TO \"weak\";"),
        ("select-privilege", "GRANT SELECT (\"id\", \"name\""),
        ("replica-identity", "ALTER TABLE \"public\".\"features_feature\" REPLICA IDENTITY DEFAULT;"),
        ("publication", "ALTER PUBLICATION \"flagpost\" SET TABLE"),
    ];
    for (code, part) in statements {
        assert_check(&report, code, "fail", part);
    }
    // Where there are column lists they are part of it, and a column that is not in them is missed like a table.
    let publication = checks(&report, "publication")[0];
    assert_eq!(
        publication["mend"].as_str().unwrap().contains("\"features_featurestate\" (\"id\","),
        columns == "(id)"
    );
    let message = publication["message"].as_str().unwrap();
    assert_eq!(message.contains("features_featurestate.enabled"), columns == "(id)", "{message}");
    assert!(checks(&report, "replication-connection").is_empty(), "it cannot work yet");
    let refused = Installation::new(&cluster.url("postgres", "flagsmith")).run(&["setup"]).await;
    assert!(refused.code == 3 && refused.stderr.contains("REPLICA IDENTITY DEFAULT"), "{refused:?}");

    for check in report["checks"].as_array().unwrap().iter().filter(|check| check["status"] == "fail") {
        let mend = check["mend"].as_str().unwrap().lines();
        let sql: Vec<&str> = mend.filter(|line| !line.starts_with("flagpost ")).collect();
        program(&cluster, "psql", &["-v", "ON_ERROR_STOP=1"], &sql.join("\n"));
    }
    let output = installation.run(&["check", "--json"]).await;
    assert_eq!(output.code, 0, "{output:?}");
    // Now the endpoints can be read: the guard refuses one kind, and one is no URL.
    let report = output.json();
    let has = |message: &str, mend: &str| {
        checks(&report, "endpoint").iter().any(|check| {
            let part = |key: &str| check[key].as_str().unwrap().to_owned();
            part("message").contains(message) && part("mend").ends_with(mend)
        })
    };
    assert!(has("loopback", "network.allow (FLAGPOST_NETWORK_ALLOW)"), "{report:#}");
    assert!(has("(no URL): it is no URL", "correct or disable it in Flagsmith"), "{report:#}");
    assert!(has("https://nowhere.invalid/", "getent hosts NAME"), "{report:#}");
    assert!(!output.stdout.contains("sekrit"));
}

#[tokio::test]
async fn check_tells_of_full_limits_foreign_slots_and_lost_ones() {
    let options = cluster_options().set("max_replication_slots", "1").set("max_slot_wal_keep_size", "1GB");
    let cluster = Cluster::start(options).await.unwrap();
    let client = flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let installation = Installation::new(&cluster.url("postgres", "flagsmith"));
    client.batch_execute("SELECT pg_create_physical_replication_slot('flagpost')").await.unwrap();
    let output = installation.run(&["check", "--json"]).await;
    assert_eq!(output.code, 3, "{output:?}");
    assert_check(&output.json(), "slot", "fail", "somebody else's");
    let output = installation.run(&["uninstall"]).await;
    assert!(output.code == 3 && output.stderr.contains("somebody else's"), "{output:?}");
    assert_eq!(count(&client, "pg_replication_slots").await, 1);

    client
        .batch_execute(
            "SELECT pg_drop_replication_slot('flagpost'); SELECT pg_create_physical_replication_slot('x')",
        )
        .await
        .unwrap();
    let output = installation.run(&["check", "--json"]).await;
    assert_check(&output.json(), "replication-slots", "fail", "ALTER SYSTEM SET max_replication_slots = 6");

    client.batch_execute("SELECT pg_drop_replication_slot('x')").await.unwrap();
    installation.run(&["setup"]).await.success();
    assert_check(
        &installation.run(&["check", "--json"]).await.json(),
        "slot-retention",
        "ok",
        "at most 1GB (max_slot_wal_keep_size)",
    );
    client.batch_execute("SELECT pg_drop_replication_slot('flagpost')").await.unwrap();
    let output = installation.run(&["check", "--json"]).await;
    assert_eq!(output.code, 4, "{output:?}");
    assert_check(&output.json(), "slot", "fail", "flagpost recover");
}

#[tokio::test]
async fn an_endpoint_that_is_no_url_harms_no_other_and_status_says_what_is_wrong() {
    let mut cluster = Cluster::start(cluster_options()).await.unwrap();
    let receiver = Receiver::start(0).unwrap();
    let client = flagsmith(&cluster, receiver.addr()).await;
    let bad: i32 = client
        .query_one(
            "UPDATE environments_webhook SET url = 'sekrit', enabled = true
             WHERE id = (SELECT w.id FROM environments_webhook w JOIN features_featurestate s USING (environment_id)
                         WHERE s.id = (SELECT min(id) FROM features_featurestate) ORDER BY w.id LIMIT 1) RETURNING id",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    let installation = Installation::new(&cluster.url("postgres", "flagsmith"))
        .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8");
    installation.run(&["setup"]).await.success();
    receiver.answer_others(Answer::status(200));
    let daemon = Daemon::start(&installation).await;
    toggle(&client).await;
    receiver.wait_for(|all| !all.is_empty(), LONG).await.unwrap();
    let key = format!("environment:{bad}");
    let status =
        wait_for_status(&installation, |status| endpoint(status, &key)["last_error"].is_string()).await;
    let failing = endpoint(&status, &key);
    assert_eq!(
        (&failing["pending"], &failing["retrying"], &failing["url"]),
        (&1.into(), &1.into(), &"(no URL)".into())
    );
    assert!(failing["last_error"].as_str().unwrap().contains("correct it in Flagsmith"), "{failing}");
    assert!(failing["oldest_pending_seconds"].is_u64());
    let text = installation.run(&["status"]).await.success();
    assert!(text.contains(&key) && text.contains("correct it in Flagsmith"), "{text}");

    // Without the database the ledger is shown all the same.
    cluster.stop(flagpost::demo::cluster::StopMode::Immediate).await.unwrap();
    let output = installation.run(&["status", "--json"]).await;
    assert_eq!(output.code, 3, "{output:?}");
    let alone = output.json();
    assert!(alone["database"]["error"].is_string() && alone["database"]["slot"].is_null(), "{alone:#}");
    assert_eq!(endpoint(&alone, &key)["pending"], 1);
    let text = installation.run(&["status"]).await;
    assert!(text.code == 3 && text.stdout.contains(&key), "{text:?}");

    assert!(!daemon.stderr().contains("sekrit"), "{}", daemon.stderr());
    let output = daemon.terminate().await;
    assert_eq!(output.code, 0, "a stop without a database is a stop: {output:?}");
    tokio::time::sleep(Duration::ZERO).await;
}
