//! Whatever is wrong is told in one line that names the mend, with the exit code of the contract, soon, and without a
//! secret.

use std::time::{Duration, Instant};

use flagpost::demo::cluster::{Auth, Cluster, Options};

use crate::cli::flagsmith;
use crate::support::cluster_options;
use crate::support::process::{Daemon, Installation, Output};

/// Nobody waits longer than this to be told what is wrong.
const SOON: Duration = Duration::from_secs(9);
const PASSWORD: &str = "sekrit-p@ss";

/// An installation that logs nothing below an error, so that standard error holds the one line only.
fn quiet(url: &str) -> Installation {
    Installation::new(url).with("FLAGPOST_LOG_LEVEL", "error")
}

#[track_caller]
fn assert_refused(output: &Output, code: i32, part: &str) {
    assert_eq!(output.code, code, "{output:?}");
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    assert!(output.stderr.starts_with("flagpost: ") && output.stderr.contains(part), "{part:?}: {output:?}");
    assert!(!format!("{output:?}").contains("sekrit"), "{output:?}");
}

/// `run` ends so, soon.
async fn refused(installation: &Installation, code: i32, part: &str) {
    let began = Instant::now();
    let output = installation.run(&["run"]).await;
    assert_refused(&output, code, part);
    assert!(began.elapsed() < SOON, "{:?}: {output:?}", began.elapsed());
}

#[tokio::test]
async fn a_wrong_password_an_unknown_database_and_a_role_that_may_not_replicate_are_told() {
    let auth = Auth::Scram { password: PASSWORD.into() };
    let cluster = Cluster::start(Options { auth, ..cluster_options() }).await.unwrap();
    let client = flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let url = cluster.url("postgres", "flagsmith");
    quiet(&url).run(&["setup", "--no-mirror"]).await.success();
    client
        .batch_execute(&format!(
            "CREATE ROLE weak LOGIN SUPERUSER PASSWORD '{PASSWORD}'; ALTER ROLE weak NOSUPERUSER"
        ))
        .await
        .unwrap();

    let wrong = quiet(&cluster.url_with_password("postgres", "sekrit-guess", "flagsmith"));
    refused(&wrong, 3, "database.password_file").await;
    let check = wrong.run(&["check"]).await;
    assert!(check.code == 3 && check.stdout.contains("correct the password"), "{check:?}");
    assert!(!format!("{check:?}").contains("sekrit"), "{check:?}");
    for command in ["setup", "uninstall"] {
        assert_refused(&wrong.run(&[command]).await, 3, "correct the password");
    }
    let none = format!("postgresql://postgres@127.0.0.1:{}/flagsmith", cluster.port());
    refused(&quiet(&none), 3, "wants a password").await;
    let unknown = quiet(&cluster.url("postgres", "nowhere"));
    refused(&unknown, 3, "correct the database's name").await;
    let weak = quiet(&cluster.url_with_password("weak", PASSWORD, "flagsmith"));
    refused(&weak, 3, "ALTER ROLE \"weak\" REPLICATION").await;

    // The password can come from a file, and one that cannot be read is the configuration's fault.
    let file = weak.folder().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let from_file = quiet(&none).with("FLAGPOST_DATABASE_PASSWORD_FILE", file.to_str().unwrap());
    from_file.run(&["status"]).await.success();
    refused(&quiet(&none).with("FLAGPOST_DATABASE_PASSWORD_FILE", "/nowhere"), 2, "/nowhere").await;
}

#[tokio::test]
async fn a_server_that_does_not_log_enough_is_told_with_the_setting() {
    let cluster = Cluster::start(cluster_options().set("wal_level", "replica")).await.unwrap();
    let _client = flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let installation = quiet(&cluster.url("postgres", "flagsmith"));
    let setup = installation.run(&["setup"]).await;
    assert_refused(&setup, 3, "ALTER SYSTEM SET wal_level = logical");
    // It is told before anything is made.
    refused(&installation, 3, "ALTER SYSTEM SET wal_level = logical").await;
    let check = installation.run(&["check"]).await;
    assert!(check.code == 3 && check.stdout.contains("ALTER SYSTEM SET wal_level = logical;"), "{check:?}");
}

#[tokio::test]
async fn what_the_database_lacks_is_named() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let client = flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let installation = quiet(&cluster.url("postgres", "flagsmith"));
    refused(&installation, 3, "publication \"flagpost\" does not exist: run \"flagpost setup\"").await;
    client.batch_execute("CREATE PUBLICATION flagpost FOR TABLE features_featurestate").await.unwrap();
    refused(&installation, 3, "does not publish ").await;
    client.batch_execute("ALTER TABLE features_feature RENAME COLUMN name TO nom").await.unwrap();
    refused(&installation, 3, "lacks features_feature.name").await;
    client.batch_execute("ALTER TABLE features_feature RENAME TO features").await.unwrap();
    refused(&installation, 3, "lacks features_feature: ").await;
    let check = installation.run(&["check"]).await;
    assert!(check.code == 3 && check.stdout.contains("lacks features_feature: "), "{check:?}");
    let elsewhere = quiet(&cluster.url("postgres", "postgres"));
    refused(&elsewhere, 3, "there is no Flagsmith in it").await;
    for command in ["setup", "check", "status"] {
        let output = elsewhere.run(&[command]).await;
        assert!(output.code == if command == "status" { 0 } else { 3 }, "{command}: {output:?}");
    }
}

#[tokio::test]
async fn a_slot_that_another_reads_and_one_that_is_gone_are_told() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let client = flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let url = cluster.url("postgres", "flagsmith");
    let first = quiet(&url);
    first.run(&["setup"]).await.success();
    let daemon = Daemon::start(&first).await;
    refused(&quiet(&url), 3, "give this flagpost a slot of its own (source.slot)").await;
    // On the same state directory the lock is met first.
    refused(&first, 4, "another flagpost works with state.dir").await;
    daemon.kill();

    // A daemon that runs tells it in the same way, once it is connected again and finds its slot gone.
    let daemon = Daemon::start(&first).await;
    let dropped = async {
        // The daemon connects again at once: the slot is free for a moment only.
        let steal =
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL";
        while client.batch_execute("SELECT pg_drop_replication_slot('flagpost')").await.is_err() {
            client.batch_execute(steal).await.unwrap();
        }
    };
    tokio::time::timeout(SOON, dropped).await.unwrap();
    let output = daemon.ended(SOON).await;
    assert_refused(&output, 4, "replication slot \"flagpost\" is gone");
    refused(&first, 4, "run \"flagpost recover\", which sends receivers what was missed").await;
    assert_refused(&first.run(&["setup"]).await, 4, "flagpost setup --resnapshot");
    first.run(&["setup", "--resnapshot"]).await.success();

    // Somebody else read from the slot: what it skipped is lost.
    client.batch_execute("UPDATE features_feature SET description = 'x'").await.unwrap();
    client
        .batch_execute("SELECT pg_replication_slot_advance('flagpost', pg_current_wal_lsn())")
        .await
        .unwrap();
    refused(&first, 4, "was moved on to").await;
    let check = first.run(&["check"]).await;
    assert!(check.code == 4 && check.stdout.contains("was moved on to"), "{check:?}");
}

#[tokio::test]
async fn a_ledger_that_does_not_belong_here_is_told() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let _client = flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let url = cluster.url("postgres", "flagsmith");
    let mut installation = quiet(&url);
    installation.run(&["setup"]).await.success();
    installation.set("FLAGPOST_SOURCE_SLOT", "other");
    refused(&installation, 4, "the ledger in ").await;

    let other = Cluster::start(cluster_options()).await.unwrap();
    let _other_client = flagsmith(&other, "127.0.0.1:1".parse().unwrap()).await;
    installation.set("FLAGPOST_SOURCE_SLOT", "flagpost");
    installation.set("FLAGPOST_DATABASE_URL", &other.url("postgres", "flagsmith"));
    quiet(&other.url("postgres", "flagsmith")).run(&["setup", "--no-mirror"]).await.success();
    refused(&installation, 4, "belongs to cluster").await;
    let check = installation.run(&["check"]).await;
    assert!(check.code == 4 && check.stdout.contains("the ledger belongs to cluster"), "{check:?}");

    // A file that is no ledger, a ledger without its key, and no directory at all.
    let file = installation.state_dir().join("ledger.sqlite3");
    std::fs::remove_file(installation.state_dir().join("ledger.key")).unwrap();
    let keyless = installation.run(&["status"]).await;
    assert!(keyless.code == 1 && keyless.stdout.contains("put it back"), "{keyless:?}");
    std::fs::write(&file, "this is not a database, and it is long enough to be looked at\\n".repeat(100))
        .unwrap();
    refused(&installation, 4, "is no flagpost ledger").await;
    for command in ["check", "status"] {
        let output = installation.run(&[command]).await;
        assert!(output.code == 4 && output.stdout.contains("is no flagpost ledger"), "{command}: {output:?}");
    }
    std::fs::remove_dir_all(installation.state_dir()).unwrap();
    std::fs::write(installation.state_dir(), "a file").unwrap();
    refused(&installation, 1, "state.dir ").await;
    let check = installation.run(&["check"]).await;
    assert!(check.code == 1 && check.stdout.contains("cannot be written"), "{check:?}");
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_is_told_with_its_place() {
    // Nobody listens on the discard port.
    let installation = quiet("postgresql://app:sekrit@127.0.0.1:9/flagsmith?connect_timeout=2");
    for command in ["run", "setup", "uninstall"] {
        assert_refused(&installation.run(&[command]).await, 3, "127.0.0.1:9/flagsmith");
    }
    let check = installation.run(&["check", "--json"]).await;
    assert_eq!((check.code, check.json()["failed"].as_i64()), (3, Some(1)), "{check:?}");
    let status = installation.run(&["status"]).await;
    assert!(status.code == 3 && status.stdout.contains("none in"), "{status:?}");
    for output in [check, status] {
        assert!(!format!("{output:?}").contains("sekrit"), "{output:?}");
    }
}

#[tokio::test]
async fn a_configuration_that_is_wrong_is_told_with_its_line() {
    let url = "postgresql://app:sekrit@127.0.0.1:9/flagsmith";
    let installation = quiet(url);
    let file = installation.folder().join("flagpost.toml");
    for (text, part) in [
        ("[source\nslot = \"x\"\n", "line 1 is no valid TOML"),
        ("[source]\nslott = \"x\"\n", "slott"),
        ("[database]\npassword = \"sekrit\"\n", "password"),
        ("[network]\nallow = [\"everything\"]\n", "network.allow"),
    ] {
        std::fs::write(&file, text).unwrap();
        for command in ["run", "check", "status", "setup", "uninstall"] {
            let output = installation.run(&["--config", file.to_str().unwrap(), command]).await;
            assert_refused(&output, 2, part);
        }
    }
    assert_refused(&installation.run(&["--config", "/nowhere.toml", "run"]).await, 2, "/nowhere.toml");
    assert_refused(&quiet("nonsense sekrit").run(&["run"]).await, 2, "database.url");
    assert_refused(
        &quiet(url).with("FLAGPOST_LOG_LEVEL", "flagpost=loud").run(&["run"]).await,
        2,
        "log.level",
    );
    assert_eq!(installation.run(&["no-such-command"]).await.code, 2);
    assert_eq!(installation.run(&["uninstall", "--print", "--purge"]).await.code, 2);
}

#[tokio::test]
async fn a_root_certificate_that_cannot_be_used_is_the_configurations_fault() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let url = cluster.url("postgres", "postgres");
    refused(&quiet(&format!("{url}?sslmode=verify-full&sslrootcert=/nowhere.pem")), 2, "/nowhere.pem").await;
    refused(&quiet(&format!("{url}?sslmode=require")), 3, "TLS").await;
}

#[tokio::test]
async fn a_machine_without_issuers_of_certificates_is_told_what_to_install() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let _client = flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let installation = Installation::new(&cluster.url("postgres", "flagsmith"))
        .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8")
        .with("SSL_CERT_FILE", "/nonexistent")
        .with("SSL_CERT_DIR", "/nonexistent");
    installation.run(&["setup"]).await.success();
    let ended = installation.run(&["run"]).await;
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.stderr.contains("apt-get install ca-certificates"), "{}", ended.stderr);
    let report = installation.run(&["check"]).await;
    let line = report.stdout.lines().find(|line| line.contains("endpoint-certificate")).unwrap();
    assert!(report.code == 2 && line.starts_with("FAIL"), "{report:?}");
    assert!(report.stdout.contains("install the system's issuers (package ca-certificates)"));
}
