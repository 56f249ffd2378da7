//! The checks that it takes more to provoke: what has been so for hours, what the server's limits, its certificate and its disk
//! say. Each warns or fails as it must, and its mend, where it can be run, makes it well.
//!
//! Hours and gigabytes are told by the server's views and functions: a superuser can make these say them.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use flagpost::demo::cluster::{Cluster, Options, Tls};
use flagpost::demo::receiver::Answer;
use rcgen::{CertificateParams, date_time_ymd};
use serde_json::Value as Json;
use tokio_postgres::Client;

use crate::check::{Scene, programs, report};
use crate::cli::{assert_check, checks, program, site, toggle};
use crate::support::process::{Daemon, Installation, LONG, until};
use crate::support::raw::{Issuer, Raw, server};
use crate::support::{Source, cluster_options};

/// Leads to this machine too (Linux takes it for 127.0.0.1), which `check` does not know: to it the server is elsewhere.
const ELSEWHERE: &str = "0.0.0.0";

/// From now on this view of the server's has `expression` in a column's place. `false` where it has no such column.
async fn pretend(client: &Client, view: &str, column: &str, expression: &str) -> bool {
    let sql = "SELECT string_agg(CASE attname WHEN $2 THEN '(' || $3 || ') AS ' ELSE '' END || quote_ident(attname), ', '
                                 ORDER BY attnum), bool_or(attname = $2), rtrim(pg_get_viewdef($1::text::regclass), ';')
               FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0";
    let row = client.query_one(sql, &[&view, &column, &expression]).await.unwrap();
    let (columns, is_there, definition): (&str, bool, &str) = (row.get(0), row.get(1), row.get(2));
    if is_there {
        let sql = format!(
            "SET allow_system_table_mods = on; CREATE OR REPLACE VIEW pg_catalog.{view} AS SELECT {columns} FROM ({definition}) x"
        );
        client.batch_execute(&sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
    is_there
}

fn psql(cluster: &Cluster, sql: &str) {
    program(cluster, "psql", &["-v", "ON_ERROR_STOP=1"], sql);
}

/// What mends the only check with this code.
fn mend<'a>(report: &'a Json, code: &str) -> &'a str {
    checks(report, code)[0]["mend"].as_str().unwrap()
}

/// The same without the lines that are commands.
fn sql_of(report: &Json, code: &str) -> String {
    mend(report, code).lines().filter(|line| !line.starts_with("flagpost ")).collect::<Vec<_>>().join("\n")
}

/// The check with this code that names `part`.
fn of<'a>(report: &'a Json, code: &str, part: &str) -> &'a Json {
    let all = checks(report, code);
    let found = all.iter().find(|one| one["message"].as_str().unwrap().contains(part));
    found.unwrap_or_else(|| panic!("{code} {part:?}: {report:#}"))
}

#[track_caller]
fn assert_warns(report: &Json, code: &str, part: &str, mend: &str) {
    let found = of(report, code, part);
    assert!(
        found["status"] == "warn" && found["mend"].as_str().unwrap().contains(mend),
        "{mend:?}: {found:#}"
    );
}

#[tokio::test]
async fn what_has_been_there_for_hours_is_told_and_ended_by_its_mend() {
    let options =
        cluster_options().set("max_prepared_transactions", "2").set("max_slot_wal_keep_size", "2GB");
    let mut s = Scene::new(options).await;
    // Of other roles' transactions a lesser role does not see since when they are open.
    s.installation.set("FLAGPOST_DATABASE_URL", &s.cluster.url("postgres", "flagsmith"));
    let forgotten = s.cluster.connect("flagsmith").await.unwrap();
    forgotten.batch_execute("BEGIN; SELECT FROM features_feature").await.unwrap();
    pretend(&s.client, "pg_stat_activity", "xact_start", "xact_start - interval '2 hours'").await;
    s.mends(0, "old-transactions", "1 transaction has been open for more than an hour").await;
    assert!(forgotten.batch_execute("COMMIT").await.is_err(), "it has been ended");

    s.sql("BEGIN; CREATE TABLE half (x int); PREPARE TRANSACTION 'nobody''s'").await;
    pretend(&s.client, "pg_prepared_xacts", "prepared", "prepared - interval '2 hours'").await;
    s.mends(0, "prepared-transactions", "\"nobody's\" was prepared 2 h").await;
    assert!(s.client.execute("SELECT FROM half", &[]).await.is_err(), "it is rolled back");

    // 2 GiB more than there were, until it is counted anew.
    let spilled = "spill_bytes + CASE WHEN stats_reset IS NULL THEN 2147483648 ELSE 0 END";
    pretend(&s.client, "pg_stat_replication_slots", "spill_bytes", spilled).await;
    let told = s.check(0).await;
    assert_check(&told, "slot-spill", "warn", "logical_decoding_work_mem = '256MB'");
    psql(&s.cluster, &sql_of(&told, "slot-spill"));
    // PostgreSQL 14 has a process for its statistics, which takes its time.
    until(LONG, "it is counted anew", async || checks(&s.check(0).await, "slot-spill")[0]["status"] == "ok")
        .await;
    let memory: String = s.client.query_one("SHOW logical_decoding_work_mem", &[]).await.unwrap().get(0);
    assert_eq!(memory, "256MB");

    let old = "((catalog_xmin::text::bigint + 4294967296 - 150000000) % 4294967296)::text::xid";
    pretend(&s.client, "pg_replication_slots", "catalog_xmin", old).await;
    assert_check(&s.check(0).await, "slot-catalog", "warn", "flagpost run  -- moves the slot on");
    // PostgreSQL 17 and later tell.
    let is_told =
        pretend(&s.client, "pg_replication_slots", "inactive_since", "inactive_since - interval '2 hours'")
            .await;
    // As if 2 GiB had been written since.
    s.sql(
        "CREATE OR REPLACE FUNCTION pg_catalog.pg_current_wal_lsn() RETURNS pg_lsn LANGUAGE sql AS
         'SELECT pg_catalog.pg_current_wal_insert_lsn() + 2147483648::numeric'",
    )
    .await;
    let unread = s.check(0).await;
    assert_check(&unread, "slot-retention", "warn", "start it with \"flagpost run\"");
    if is_told {
        assert_check(&unread, "slot-inactive", "warn", "nobody has read the slot for 2 h");
        assert_check(&unread, "slot-inactive", "warn", "flagpost run  -- or");
    }
    let daemon = Daemon::start(&s.installation).await;
    let read = s.check(0).await;
    assert!(checks(&read, "slot-inactive").is_empty(), "{read:#}");
    assert_check(&read, "slot-retention", "ok", "");
    assert_check(&read, "slot-lag", "warn", "flagpost status  -- is its disk full");
    daemon.terminate().await.success();

    s.sql(
        "CREATE OR REPLACE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
         'SELECT pg_catalog.statement_timestamp() - interval ''10 minutes'''",
    )
    .await;
    let told = s.check(0).await;
    assert_check(&told, "clock-skew", "warn", "ahead of the database server's: receivers refuse signatures");
    assert_check(&told, "clock-skew", "warn", "timedatectl set-ntp true");
}

#[tokio::test]
async fn a_slot_that_the_server_is_about_to_give_up_is_told_until_it_has() {
    let s = Scene::new(cluster_options().set("max_slot_wal_keep_size", "64MB")).await;
    assert_check(&s.check(0).await, "slot-limit", "warn", "a slot may hold back 64.0 MiB only");
    s.sql("CREATE TABLE other (x int)").await;
    let status = async || -> String {
        let sql = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'flagpost'";
        s.client.query_one(sql, &[]).await.unwrap().get(0)
    };
    // A segment of 16 MB each time.
    while status().await != "unreserved" {
        s.sql("INSERT INTO other VALUES (1)").await;
        s.sql("SELECT pg_switch_wal()").await;
    }
    let told = s.check(0).await;
    assert_check(&told, "slot-reserve", "warn", "flagpost run  -- reads it; or more room");
    assert_check(
        &told,
        "slot-retention",
        "warn",
        "start flagpost before the server gives the slot up, or: ALTER SYSTEM",
    );
    psql(&s.cluster, mend(&told, "slot-retention").split_once("or: ").unwrap().1);
    assert_check(&s.check(0).await, "slot-retention", "ok", "");
    s.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'").await;
    s.sql("SELECT pg_reload_conf()").await;
    s.mends(0, "slot-limit", "a slot may hold back 64.0 MiB only").await;
    for code in ["slot-reserve", "slot-retention"] {
        assert_check(&s.check(0).await, code, "ok", "");
    }

    s.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'").await;
    s.sql("SELECT pg_reload_conf()").await;
    until(LONG, "it is given up", async || {
        s.sql("CHECKPOINT").await;
        status().await == "lost"
    })
    .await;
    let lost = s.check(4).await;
    assert_check(&lost, "slot", "fail", "the server has given up replication slot \"flagpost\"");
    assert!(mend(&lost, "slot").starts_with("flagpost recover  -- "));
    s.installation.run(&["recover"]).await.success();
    assert_check(&s.check(0).await, "slot", "ok", "");
}

#[tokio::test]
async fn what_a_failover_or_an_idle_timeout_would_end_is_told_where_the_server_has_them() {
    let s = Scene::new(cluster_options()).await;
    let has = async |sql: &str| s.client.query_opt(sql, &[]).await.unwrap().is_some();
    s.sql("SELECT pg_create_physical_replication_slot('standby')").await;
    s.sql("SELECT pg_drop_replication_slot('flagpost'), pg_create_logical_replication_slot('flagpost', 'pgoutput')")
        .await;
    let has_failover =
        "SELECT FROM pg_attribute WHERE attrelid = 'pg_replication_slots'::regclass AND attname = 'failover'";
    if has(has_failover).await {
        let told = s.check(4).await;
        assert_check(&told, "slot-failover", "warn", "(1 standby slot), and our slot is lost in a failover");
        let place = format!("dbname=flagsmith replication=database host=127.0.0.1 port={}", s.cluster.port());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mend.sql");
        std::fs::write(&file, mend(&told, "slot-failover")).unwrap();
        let ran = Command::new("psql")
            .args(["-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", &place, "-f"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(ran.status.success(), "{ran:?}");
        assert_check(&s.check(4).await, "slot-failover", "ok", "");
    } else {
        assert!(checks(&s.check(4).await, "slot-failover").is_empty());
    }
    s.installation.run(&["setup", "--resnapshot"]).await.success();

    if has("SELECT FROM pg_settings WHERE name = 'idle_replication_slot_timeout'").await {
        s.sql("ALTER SYSTEM SET idle_replication_slot_timeout = '1d'").await;
        s.sql("SELECT pg_reload_conf()").await;
        s.mends(0, "slot-idle-timeout", "the server gives up a slot that nobody reads for 1d").await;
    }
    assert!(checks(&s.check(0).await, "slot-idle-timeout").is_empty());
}

#[tokio::test]
async fn a_server_that_is_full_forgetful_or_of_another_encoding_is_told() {
    let options = cluster_options().set("max_wal_senders", "0").set("max_connections", "8");
    let (mut cluster, client, _receiver, installation) = site(Source::Replication, options).await;
    client.batch_execute("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII'").await.unwrap();
    let told = report(&installation, 3).await;
    assert_check(&told, "wal-senders", "fail", "all 0 are in use");
    assert_check(&told, "server-connections", "warn", "of 5 connections in use: flagpost needs up to 5");
    assert_check(&told, "server-durability", "warn", "fsync");
    assert_check(&told, "server-encoding", "ok", "UTF8");
    for code in ["wal-senders", "server-connections", "server-durability"] {
        psql(&cluster, mend(&told, code));
    }
    drop(client);
    cluster.restart().await.unwrap();
    let after = report(&installation, 3).await;
    for code in ["wal-senders", "server-connections", "server-durability"] {
        assert_check(&after, code, "ok", "");
    }

    let ascii = report(&Installation::new(&cluster.url("postgres", "ascii")), 3).await;
    assert_check(&ascii, "server-encoding", "warn", "restore it into one that was made with ENCODING 'UTF8'");
    // It is empty, too.
    assert_check(&ascii, "flagsmith-tables", "fail", "correct the database in database.url");
    let nowhere = report(&Installation::new(&cluster.url("postgres", "nowhere")), 3).await;
    assert_check(&nowhere, "connect", "fail", "correct the database's name in database.url");
}

#[tokio::test]
async fn what_is_withheld_from_our_role_and_what_is_too_much_is_told_with_the_statement() {
    let s = Scene::new(cluster_options()).await;
    // Before anything else is asked; for the sessions; for the role; for what the slot costs.
    for (view, code) in [
        ("pg_replication_slots", "settings"),
        ("pg_stat_database", "settings"),
        ("pg_stat_activity", "role-excess"),
        ("pg_stat_replication_slots", "slot-limit"),
    ] {
        s.sql(&format!("REVOKE SELECT ON pg_catalog.{view} FROM PUBLIC, lesser")).await;
        let told = s.check(3).await;
        assert_check(&told, code, "fail", &format!("permission denied for view {view}"));
        assert_check(&told, code, "fail", "TO \"lesser\";");
        psql(&s.cluster, mend(&told, code));
        s.check(0).await;
    }

    s.sql("ALTER ROLE lesser VALID UNTIL '2001-01-01'").await;
    s.mends(0, "role-expiry", "the next login may be refused").await;
    s.sql("GRANT SELECT ON users_ffadminuser TO lesser").await;
    let told = s.check(0).await;
    let found = of(&told, "password-hashes", "may read the users' password hashes");
    assert_eq!(found["status"], "warn");
    psql(&s.cluster, found["mend"].as_str().unwrap());
    // With the table's privilege its columns' are gone; the mend said so.
    let told = s.check(3).await;
    assert_check(&told, "select-privilege", "fail", "may not read users_ffadminuser");
    psql(&s.cluster, mend(&told, "select-privilege"));
    assert!(checks(&s.check(0).await, "password-hashes").iter().all(|one| one["status"] == "ok"));

    for (sql, exit_code, status, part) in [
        (
            "DROP PUBLICATION flagpost; CREATE PUBLICATION flagpost FOR ALL TABLES",
            0,
            "warn",
            "is FOR ALL TABLES",
        ),
        (
            "ALTER PUBLICATION flagpost SET (publish = 'insert, update')",
            3,
            "fail",
            "leaves out some of insert",
        ),
    ] {
        s.sql(sql).await;
        let told = s.check(exit_code).await;
        assert_check(&told, "publication", status, part);
        psql(&s.cluster, &sql_of(&told, "publication"));
        assert_check(&s.check(0).await, "publication", "ok", "");
    }

    let ledger = rusqlite::Connection::open(s.installation.state_dir().join("ledger.sqlite3")).unwrap();
    let format: i64 = ledger.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    ledger.pragma_update(None, "user_version", format + 1).unwrap();
    assert_check(&s.check(4).await, "ledger", "fail", "run the flagpost that wrote it");
    ledger.pragma_update(None, "user_version", format).unwrap();
    drop(ledger);

    let folder = tempfile::tempdir().unwrap();
    let path = programs(folder.path(), &[("systemctl", "LoadState=not-found\nActiveState=inactive")]);
    let installation = s.installation.with("PATH", &path);
    assert_check(&report(&installation, 0).await, "unit", "warn", "/etc/systemd/system/flagpost.service");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let installation = installation.with("FLAGPOST_STATE_DIR", file.join("state").to_str().unwrap());
    let told = installation.run(&["check", "--json"]).await.json();
    assert_check(&told, "state-dir", "fail", "cannot be written");
    assert_check(&told, "state-dir", "fail", "state.dir (FLAGPOST_STATE_DIR)");
}

#[tokio::test]
async fn the_way_to_a_server_elsewhere_is_looked_at() {
    let issuer = Issuer::new("ours");
    let lasting = |days: i64| issuer.issue(&[ELSEWHERE], expiring_in(days));
    let soon = lasting(3);
    let tls = Tls { certificate: soon.certificate, key: soon.key };
    let cluster = Cluster::start(Options { tls: Some(tls), ..cluster_options() }).await.unwrap();
    cluster.create_database("flagsmith").await.unwrap();
    let client = cluster.connect("flagsmith").await.unwrap();
    let ca = cluster.folder().join("ca.pem");
    std::fs::write(&ca, issuer.pem()).unwrap();
    let at = async |parameters: &str| {
        let url = format!("postgresql://postgres@{ELSEWHERE}:{}/flagsmith?{parameters}", cluster.port());
        // Nothing else is there.
        report(&Installation::new(&url), 3).await
    };
    let plain = at("sslmode=disable").await;
    assert_check(&plain, "database-tls", "warn", "turn ssl on at the server, and add sslmode=verify-full");
    assert!(checks(&plain, "database-certificate").is_empty());
    let trusting = at("sslmode=require").await;
    assert_check(&trusting, "database-tls", "warn", "nothing verifies who answers");
    assert_check(
        &trusting,
        "database-tls",
        "warn",
        "add sslmode=verify-full to database.url, and sslrootcert=FILE",
    );
    assert_check(&trusting, "database-certificate", "warn", "expires in 2 days");

    let verified = format!("sslmode=verify-full&sslrootcert={}", ca.display());
    let replace = async |days: i64| {
        let pem = lasting(days);
        for (name, text) in [("server.crt", pem.certificate), ("server.key", pem.key)] {
            std::fs::write(cluster.data_dir().join(name), text).unwrap();
        }
        client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    };
    // The mends: the parameters, and another certificate.
    replace(400).await;
    until(LONG, "the server has the new certificate", async || {
        at(&verified).await["checks"].to_string().contains("is good for 399 days")
    })
    .await;
    let well = at(&verified).await;
    assert_check(&well, "database-tls", "ok", "the server's name is verified");
    assert_check(&well, "database-certificate", "ok", "");
    replace(-2).await;
    until(LONG, "the server has the old certificate", async || {
        checks(&at(&verified).await, "connect")[0]["status"] == "fail"
    })
    .await;
    assert_check(&at("sslmode=require").await, "database-certificate", "warn", "expired 3 days ago");
    assert_check(&at("sslmode=require").await, "database-certificate", "warn", "ssl_cert_file");
}

/// A certificate that has expired so many days from now, less a moment.
fn expiring_in(days: i64) -> impl FnOnce(&mut CertificateParams) {
    let now = UNIX_EPOCH.elapsed().unwrap().as_secs().cast_signed();
    let at = u64::try_from(now + days * 86_400 - 60).unwrap();
    move |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(at);
    }
}

#[tokio::test]
async fn a_state_directory_that_does_not_last_is_full_or_is_not_ours_is_told() {
    let s = Scene::new(cluster_options()).await;
    let installation = s.installation.on_small_disk(3);
    // There is no ledger on it, and there will be none.
    let told = report(&installation, 1).await;
    assert_check(&told, "state-dir-disk", "warn", "on tmpfs: it is gone when the machine starts again");
    assert_check(&told, "state-dir-disk", "warn", "state.dir (FLAGPOST_STATE_DIR)");
    assert_check(&told, "ledger-room", "fail", "make room there");

    let installation = installation.on_any_disk();
    let well = report(&installation, 0).await;
    for code in ["ledger-room", "ledger-owner", "ledger-size"] {
        assert_check(&well, code, "ok", "");
    }
    // Only root can give files away; for other accounts the unit test of the judgement has to do.
    if rustix::process::geteuid().is_root() {
        let key = installation.state_dir().join("ledger.key");
        std::os::unix::fs::chown(&key, Some(65_534), None).unwrap();
        let told = report(&installation, 0).await;
        assert_check(&told, "ledger-owner", "warn", "belong to another account than the directory (uid 0)");
        let chown = Command::new("sh").arg("-c").arg(mend(&told, "ledger-owner")).status();
        assert!(chown.unwrap().success());
        assert_eq!(std::fs::metadata(&key).unwrap().uid(), 0);
        assert_check(&report(&installation, 0).await, "ledger-owner", "ok", "");
    }
    let installation = installation.with("FLAGPOST_STATE_MAX_SIZE", "4KiB");
    let told = report(&installation, 0).await;
    assert_check(&told, "ledger-size", "warn", "of at most 4.0 KiB (state.max_size)");
    assert_check(&told, "ledger-size", "warn", "raise state.max_size");
    let installation = installation.with("FLAGPOST_STATE_MAX_SIZE", "1GiB");
    assert_check(&report(&installation, 0).await, "ledger-size", "ok", "");
}

#[tokio::test]
async fn what_was_given_up_and_what_is_held_back_is_told_and_the_commands_of_the_mends_send_it() {
    let s = Scene::new(cluster_options()).await;
    let Scene { cluster: _cluster, client, receiver, installation } = s;
    let installation =
        installation.with("FLAGPOST_SOURCE_SETTLE", "0").with("FLAGPOST_DELIVERY_MAX_AGE", "300ms");
    let statuses = async |installation: &Installation, code: &str, status: &str| {
        let told = report(installation, 0).await;
        let found = checks(&told, code);
        !found.is_empty() && found.iter().all(|one| one["status"] == status)
    };
    receiver.answer_others(Answer::status(500));
    let daemon = Daemon::start(&installation).await;
    toggle(&client).await;
    until(LONG, "it is given up", async || statuses(&installation, "dead-letters", "warn").await).await;
    let told = report(&installation, 0).await;
    assert_check(&told, "dead-letters", "warn", "given up, most of them to environment:");
    receiver.answer_others(Answer::status(200));
    let shown = mend(&told, "dead-letters").split("  -- ").next().unwrap();
    assert_eq!(shown, "flagpost replay --failed --dry-run");
    assert!(
        installation
            .run(&["replay", "--failed", "--dry-run"])
            .await
            .success()
            .contains("would be sent again")
    );
    installation.run(&["replay", "--failed"]).await.success();
    until(LONG, "it is delivered", async || statuses(&installation, "dead-letters", "ok").await).await;
    daemon.terminate().await.success();

    let installation = installation
        .with("FLAGPOST_DELIVERY_MAX_AGE", "1h")
        .with("FLAGPOST_DELIVERY_BREAKER_FAILURES", "1")
        .with("FLAGPOST_DELIVERY_BREAKER_AFTER", "0")
        .with("FLAGPOST_DELIVERY_BREAKER_PROBE", "1h");
    receiver.answer_others(Answer::status(503));
    let daemon = Daemon::start(&installation).await;
    toggle(&client).await;
    until(LONG, "a breaker is open", async || statuses(&installation, "endpoint-breaker", "warn").await)
        .await;
    let told = report(&installation, 0).await;
    let found = checks(&told, "endpoint-breaker")[0];
    let key = found["message"].as_str().unwrap().split(' ').next().unwrap();
    assert_warns(
        &told,
        "endpoint-breaker",
        "HTTP 503",
        &format!("then flagpost test {key}; flagpost resume {key}"),
    );
    assert!(checks(&told, "endpoints-held").is_empty());
    receiver.answer_others(Answer::status(200));
    installation.run(&["test", key]).await.success();
    for held in checks(&told, "endpoint-breaker") {
        let key = held["message"].as_str().unwrap().split(' ').next().unwrap();
        installation.run(&["resume", key]).await.success();
    }
    until(LONG, "nothing is held", async || statuses(&installation, "endpoints-held", "ok").await).await;
    daemon.terminate().await.success();
}

#[tokio::test]
async fn endpoints_that_are_refused_unverified_or_about_to_expire_are_told() {
    let s = Scene::new(cluster_options()).await;
    let issuer = Issuer::new("ours");
    let pem = issuer.issue(&["localhost"], expiring_in(3));
    let soon = Raw::start_at("127.0.0.1:0".parse().unwrap(), Some(server(&pem, None)), |_| async {}).await;
    let file = s.installation.folder().join("flagpost.toml");
    let configure = |verify: &str| {
        let url = format!("https://localhost:{}/hook", soon.addr.port());
        let text = format!("[[webhooks.endpoint]]\nname = \"mine\"\nurl = \"{url}\"\n{verify}");
        std::fs::write(&file, text).unwrap();
    };
    let ca = s.installation.folder().join("ca.pem");
    std::fs::write(&ca, issuer.pem()).unwrap();
    let check = async |installation: &Installation| {
        let output = installation.run(&["--config", file.to_str().unwrap(), "check", "--json"]).await;
        assert_eq!(output.code, 0, "{output:?}");
        output.json()
    };
    configure("verify = false\n");
    let installation = s.installation.with("FLAGPOST_NETWORK_ALLOW", "");
    let refused = check(&installation).await;
    assert_warns(
        &refused,
        "endpoint",
        "configured:mine",
        "correct it in the configuration, or allow its network: network.allow",
    );
    assert_warns(&refused, "endpoint", "environment:", "correct or disable it in Flagsmith");
    let installation = installation.with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8");
    let told = check(&installation).await;
    assert!(checks(&told, "endpoint").is_empty(), "{told:#}");
    assert_warns(&told, "endpoint-tls", "configured:mine", "network.ca_file and remove verify = false");
    configure("");
    let installation = installation.with("FLAGPOST_NETWORK_CA_FILE", ca.to_str().unwrap());
    let told = check(&installation).await;
    assert!(checks(&told, "endpoint-tls").is_empty(), "{told:#}");
    assert_warns(&told, "endpoint-certificate", "its certificate expires in 2 days", "renew its certificate");
}

#[tokio::test]
async fn an_outbox_that_a_subscription_passes_by_or_that_cannot_be_looked_at_is_told() {
    let (cluster, client, _receiver, mut installation) = site(Source::Outbox, cluster_options()).await;
    let printed = installation.run(&["setup", "--print", "--role", "lesser"]).await.success();
    psql(&cluster, &printed);
    installation.set("FLAGPOST_DATABASE_URL", &cluster.url("lesser", "flagsmith"));
    let sql = async |sql: &str| client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    sql("REVOKE EXECUTE ON FUNCTION pg_catalog.pg_control_system() FROM PUBLIC").await;
    let told = report(&installation, 3).await;
    assert_check(&told, "outbox", "fail", "permission denied for function pg_control_system");
    psql(&cluster, mend(&told, "outbox"));
    assert!(checks(&report(&installation, 0).await, "outbox").is_empty());

    cluster.create_database("upstream").await.unwrap();
    let upstream = cluster.connect("upstream").await.unwrap();
    upstream
        .batch_execute("CREATE TABLE features_feature (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE features_feature")
        .await
        .unwrap();
    // The slot is made by hand: a subscription that makes it waits for itself on the same server.
    upstream.batch_execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await.unwrap();
    sql(&format!(
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port={} user=postgres dbname=upstream' PUBLICATION p
         WITH (create_slot = false, slot_name = 's', copy_data = false, enabled = false)",
        cluster.port()
    ))
    .await;
    let told = report(&installation, 3).await;
    assert_check(&told, "outbox-subscription", "fail", "a subscription writes to features_feature");
    assert_check(&told, "outbox-subscription", "fail", "the server that Flagsmith itself writes to");
    sql("DROP SUBSCRIPTION s").await;
    assert!(checks(&report(&installation, 0).await, "outbox-subscription").is_empty());
}

#[tokio::test]
async fn a_ledger_that_this_database_does_not_go_on_from_is_told_and_made_anew() {
    let mut s = Scene::new(cluster_options()).await;
    let meta = |key: &str, value: &str| {
        let file = s.installation.state_dir().join("ledger.sqlite3");
        let ledger = rusqlite::Connection::open(file).unwrap();
        let changed = ledger.execute("UPDATE meta SET value = ?2 WHERE key = ?1", [key, value]).unwrap();
        assert_eq!(changed, 1, "{key}");
    };
    meta("checkpoint", "FFFF/0");
    let back = s.check(4).await;
    assert_check(
        &back,
        "ledger-position",
        "fail",
        "behind the ledger (FFFF/0): it was restored from an older state",
    );
    assert!(mend(&back, "ledger-position").starts_with("flagpost recover  -- "));
    s.installation.run(&["recover"]).await.success();

    meta("columns", "of another flagpost");
    assert_check(&s.check(4).await, "ledger", "fail", "run \"flagpost setup --resnapshot\"");
    s.installation.run(&["setup", "--resnapshot"]).await.success();

    toggle(&s.client).await;
    s.sql("SELECT pg_replication_slot_advance('flagpost', pg_current_wal_lsn())").await;
    let ahead = s.check(4).await;
    assert_check(&ahead, "ledger-position", "fail", "what lies between cannot be told any more");
    assert!(mend(&ahead, "ledger-position").starts_with("flagpost recover  -- "));
    s.installation.run(&["recover"]).await.success();
    assert_check(&s.check(0).await, "ledger-position", "ok", "");

    s.installation.set("FLAGPOST_SOURCE_SLOT", "another");
    let other = s.check(4).await;
    assert_check(&other, "ledger-identity", "fail", "slot \"flagpost\", this is cluster ");
    assert_check(&other, "ledger-identity", "fail", "correct database.url, source.slot or state.dir");
}
