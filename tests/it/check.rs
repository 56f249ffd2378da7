//! `check` beyond what each command's own tests ask of it: each of these checks can fail, and its mend mends it; `--quick` keeps no
//! daemon from starting that only has to wait; `--fix` does what is safe and nothing else.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flagpost::demo::cluster::{Cluster, Options};
use flagpost::demo::receiver::Receiver;
use serde_json::Value as Json;
use tokio_postgres::Client;

use crate::cli::{assert_check, checks, flagsmith, program, site};
use crate::support::process::{Daemon, Installation, Output};
use crate::support::raw::{Issuer, Raw, server};
use crate::support::{Source, cluster_options, has_column_lists};

pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) client: Client,
    pub(crate) installation: Installation,
    pub(crate) receiver: Receiver,
}

impl Scene {
    /// A Flagsmith, and an installation that reads it as a role that may no more than it must, set up.
    pub(crate) async fn new(options: Options) -> Scene {
        let (cluster, client, receiver, mut installation) = site(Source::Replication, options).await;
        let sql = installation.run(&["setup", "--print", "--role", "lesser"]).await.success();
        program(&cluster, "psql", &["-v", "ON_ERROR_STOP=1"], &sql);
        installation.set("FLAGPOST_DATABASE_URL", &cluster.url("lesser", "flagsmith"));
        installation.run(&["setup", "--resnapshot"]).await.success();
        Scene { cluster, client, installation, receiver }
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    pub(crate) async fn check(&self, code: i32) -> Json {
        report(&self.installation, code).await
    }

    /// The only check with this code warns, or fails with an exit code, and the SQL of its mend makes it well.
    pub(crate) async fn mends(&self, exit_code: i32, code: &str, part: &str) {
        let report = self.check(exit_code).await;
        assert_check(&report, code, if exit_code == 0 { "warn" } else { "fail" }, part);
        let mend = checks(&report, code)[0]["mend"].as_str().unwrap();
        program(&self.cluster, "psql", &["-v", "ON_ERROR_STOP=1"], mend);
        let after = self.check(0).await;
        assert!(checks(&after, code).iter().all(|check| check["status"] == "ok"), "{code}: {after:#}");
    }
}

pub(crate) async fn report(installation: &Installation, code: i32) -> Json {
    let output = installation.run(&["check", "--json"]).await;
    assert_eq!(output.code, code, "{output:?}");
    output.json()
}

async fn quick(installation: &Installation, code: i32) -> Output {
    let output = installation.run(&["check", "--quick"]).await;
    assert_eq!(output.code, code, "{output:?}");
    output
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn every_code_is_in_the_documentation_with_its_group_and_no_other() {
    // It needs no configuration.
    let nothing = Installation::new("no url");
    let listed = nothing.run(&["check", "--list", "--json"]).await;
    assert_eq!(listed.code, 0, "{listed:?}");
    let listed: Vec<(String, String)> = listed
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["group"].as_str().unwrap().to_owned(), one["code"].as_str().unwrap().to_owned()))
        .collect();
    assert!(listed.len() > 80, "{}", listed.len());
    let text = nothing.run(&["check", "--list"]).await.success();
    assert_eq!(text.lines().count(), listed.len());

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/checks.md");
    let mut documented = Vec::new();
    let mut group = String::new();
    let text = std::fs::read_to_string(path).unwrap();
    for line in text.split_once("\n## The checks\n").unwrap().1.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            group = title.to_owned();
        }
        let Some(row) = line.strip_prefix("| `") else { continue };
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 4, "code, what it looks at, when it warns or fails, the mend: {line}");
        documented.push((group.clone(), row.split('`').next().unwrap().to_owned()));
    }
    assert_eq!(documented, listed);
}

#[tokio::test]
async fn quick_keeps_no_daemon_from_starting_that_only_has_to_wait() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let url = cluster.url("postgres", "flagsmith");
    let mut installation = Installation::new(&url);
    // Nothing is published: `run` would refuse.
    let refused = quick(&installation, 3).await;
    assert!(refused.stdout.contains("FAIL  schema        publication"), "{refused:?}");
    installation.run(&["setup", "--no-mirror"]).await.success();
    // `run` fills the mirror.
    let told = quick(&installation, 0).await.stdout;
    assert!(
        told.contains("warn  ledger        ledger") && told.contains("nothing stands in the way"),
        "{told}"
    );
    assert!(!told.contains("\nok") && !told.starts_with("ok") && !told.contains("endpoint"), "{told}");
    installation.run(&["setup", "--resnapshot"]).await.success();
    assert_eq!(quick(&installation, 0).await.stdout, "nothing stands in the way\n");

    // Nobody there; somebody there who says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent =
        format!("postgresql://u@{}/x?connect_timeout=60&sslmode=disable", silent.local_addr().unwrap());
    for (url, part) in
        [(silent.as_str(), "within 5 s"), ("postgresql://u@127.0.0.1:1/x", "cannot be reached")]
    {
        installation.set("FLAGPOST_DATABASE_URL", url);
        let told = quick(&installation, 0).await.stdout;
        assert!(told.contains("connect") && told.contains(part), "{told}");
    }
    assert_eq!(installation.run(&["check", "--json"]).await.code, 3, "without --quick it is a failure");

    // Another database: no waiting mends that.
    cluster.create_database("other").await.unwrap();
    installation.set("FLAGPOST_DATABASE_URL", &cluster.url("postgres", "other"));
    quick(&installation, 4).await;
    installation.set("FLAGPOST_DATABASE_URL", &url);
    installation.set("FLAGPOST_SOURCE_SLOT", "another");
    let told = quick(&installation, 4).await.stdout;
    assert!(told.contains("FAIL"), "{told}");
}

#[tokio::test]
async fn a_ledger_of_an_older_flagpost_keeps_no_daemon_from_starting() {
    let s = Scene::new(cluster_options()).await;
    let ledger = rusqlite::Connection::open(s.installation.state_dir().join("ledger.sqlite3")).unwrap();
    ledger.pragma_update(None, "user_version", 1).unwrap();
    drop(ledger);
    let told = quick(&s.installation, 0).await.stdout;
    assert!(told.contains("an older flagpost wrote the ledger"), "{told}");
}

#[tokio::test]
async fn fix_does_what_is_safe_says_so_and_then_there_is_nothing_to_do() {
    let mut s = Scene::new(cluster_options()).await;
    s.installation.set("FLAGPOST_DATABASE_URL", &s.cluster.url("postgres", "flagsmith"));
    let has_lists = has_column_lists(&s.client).await;
    if has_lists {
        s.sql("ALTER PUBLICATION flagpost DROP TABLE users_ffadminuser; ALTER PUBLICATION flagpost ADD TABLE users_ffadminuser")
            .await;
    }
    let (state, ledger) = (s.installation.state_dir(), s.installation.state_dir().join("ledger.sqlite3"));
    set_mode(&state, 0o755);
    set_mode(&ledger, 0o644);
    let before = s.check(0).await;
    for code in ["state-dir-mode", "ledger-modes"] {
        assert_check(&before, code, "warn", "chmod");
        assert_eq!(checks(&before, code)[0]["fixable"], true);
    }
    if has_lists {
        assert_check(&before, "publication", "warn", "ALTER PUBLICATION");
        assert_check(&before, "password-hashes", "warn", "users_ffadminuser.password");
    }
    assert_eq!((mode(&state), mode(&ledger)), (0o755, 0o644), "a check changes nothing");
    let text = s.installation.run(&["check"]).await.success();
    assert!(text.contains("-- or: flagpost check --fix"), "{text}");

    let fixed = s.installation.run(&["check", "--fix", "--json"]).await.json();
    assert_eq!((mode(&state), mode(&ledger)), (0o700, 0o600));
    let did = fixed["fixed"].as_array().unwrap();
    assert_eq!(did.len(), 2 + usize::from(has_lists), "{fixed:#}");
    assert!(did.iter().all(|one| one.as_str().unwrap().starts_with("fixed ")), "{did:?}");
    for code in ["state-dir-mode", "ledger-modes", "publication", "password-hashes"] {
        assert_check(&fixed, code, "ok", "");
    }
    let again = s.installation.run(&["check", "--fix", "--json"]).await.json();
    assert_eq!(again["fixed"], Json::Array(Vec::new()));
}

#[tokio::test]
async fn what_server_and_role_have_against_us_is_told_and_the_mend_mends() {
    let s = Scene::new(cluster_options().set("max_slot_wal_keep_size", "2GB")).await;
    let well = s.check(0).await;
    for code in [
        "server-connections",
        "server-encoding",
        "session-timeouts",
        "sender-timeout",
        "database-tls",
        "row-security",
        "role-excess",
        "role-expiry",
        "role-connections",
        "password-hashes",
        "slot-limit",
        "slot-reserve",
        "slot-catalog",
        "other-slots",
        "old-transactions",
        "prepared-transactions",
        "publication-rows",
        "clock-skew",
        "flagsmith-version",
        "config-file",
        "config-variables",
        "ledger-owner",
        "ledger-size",
        "dead-letters",
    ] {
        assert_check(&well, code, "ok", "");
    }
    // Scratch clusters do not outlive their machine.
    assert_check(&well, "server-durability", "warn", "ALTER SYSTEM SET fsync = on");

    s.sql(
        "ALTER ROLE lesser SET statement_timeout = '5s'; ALTER ROLE lesser SET idle_session_timeout = '1min'",
    )
    .await;
    s.mends(0, "session-timeouts", "idle_session_timeout is 60000 ms").await;
    for value in ["0", "2s"] {
        s.sql(&format!("ALTER ROLE lesser SET wal_sender_timeout = '{value}'")).await;
        s.mends(0, "sender-timeout", "wal_sender_timeout is ").await;
    }
    s.sql("ALTER TABLE features_feature ENABLE ROW LEVEL SECURITY").await;
    s.mends(3, "row-security", "hides rows of features_feature").await;
    s.sql(&format!("ALTER ROLE lesser VALID UNTIL '{}'", tomorrow(&s.client).await)).await;
    s.mends(0, "role-expiry", "expires in ").await;
    s.sql("ALTER ROLE lesser CONNECTION LIMIT 4").await;
    s.mends(0, "role-connections", "may have 4 connections").await;
    s.sql("GRANT SELECT (password) ON users_ffadminuser TO lesser").await;
    let told = s.check(0).await;
    assert!(checks(&told, "password-hashes").iter().any(|check| check["status"] == "warn"), "{told:#}");
    s.sql("REVOKE SELECT (password) ON users_ffadminuser FROM lesser").await;
    s.sql("GRANT UPDATE ON features_feature TO lesser").await;
    assert_check(&s.check(0).await, "role-excess", "warn", "flagpost setup --print --role flagpost");

    s.sql("SELECT pg_create_logical_replication_slot('forgotten', 'pgoutput')").await;
    s.mends(0, "other-slots", "nobody reads slot \"forgotten\"").await;
    if has_column_lists(&s.client).await {
        s.sql(
            "ALTER PUBLICATION flagpost DROP TABLE organisations_organisation;
             ALTER PUBLICATION flagpost ADD TABLE organisations_organisation (id, name, webhook_notification_email, deleted_at)
             WHERE (id > 1)",
        )
        .await;
        s.mends(3, "publication-rows", "leaves out rows of organisations_organisation").await;
    }
    s.sql("ALTER SYSTEM SET max_slot_wal_keep_size = -1").await;
    s.sql("SELECT pg_reload_conf()").await;
    s.mends(0, "slot-limit", "fills the server's disk").await;
}

async fn tomorrow(client: &Client) -> String {
    client.query_one("SELECT (now() + interval '30 hours')::text", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_superuser_is_more_than_the_daemon_needs_and_strict_lets_warnings_count() {
    let (_cluster, _client, _receiver, installation) = site(Source::Outbox, Source::Outbox.options()).await;
    installation.run(&["setup"]).await.success();
    assert_check(&report(&installation, 0).await, "role-excess", "warn", "is a superuser");
    assert_eq!(installation.run(&["check", "--strict", "--json"]).await.code, 1);
}

#[tokio::test]
async fn what_flagsmiths_own_tables_tell_of_it_is_told() {
    let s = Scene::new(cluster_options()).await;
    assert!(checks(&s.check(0).await, "flagsmith-sends").is_empty(), "there is nothing to look into");
    s.sql(
        "CREATE TABLE django_migrations (id serial PRIMARY KEY, app text, name text, applied timestamptz DEFAULT now());
         INSERT INTO django_migrations (app, name) VALUES ('environments', '0001_initial'),
             ('environments', '0039_use_no_ssrf_url_field'), ('somebody', '9999_else');
         CREATE TABLE task_processor_task (id serial PRIMARY KEY, created_at timestamptz, task_identifier text, serialized_args text);
         INSERT INTO task_processor_task (created_at, task_identifier) VALUES
             (now(), 'tasks.call_environment_webhooks'),
             (now() - interval '3 days', 'tasks.call_webhook_with_failure_mail_after_retries');",
    )
    .await;
    // Neither may be read yet.
    assert_check(&s.check(0).await, "flagsmith-version", "ok", "GRANT SELECT (app, name)");
    s.sql("GRANT SELECT (app, name) ON django_migrations TO lesser; GRANT SELECT (id, created_at, task_identifier) ON task_processor_task TO lesser")
        .await;
    let well = s.check(0).await;
    assert_check(&well, "flagsmith-version", "ok", "has no migrations that flagpost does not know");
    // What decides about calls is queued with DISABLE_WEBHOOKS too.
    assert_check(&well, "flagsmith-sends", "ok", "");

    s.sql(
        "INSERT INTO django_migrations (app, name) VALUES ('environments', '0412_something_new');
         INSERT INTO task_processor_task (created_at, task_identifier) VALUES
             (now() - interval '3 minutes', 'webhooks.call_webhook_with_failure_mail_after_retries')",
    )
    .await;
    let told = s.check(0).await;
    assert_check(&told, "flagsmith-version", "warn", "environments.0412_something_new");
    assert_check(&told, "flagsmith-sends", "warn", "SENDS ITS OWN WEBHOOKS: 1 call");
    assert_check(&told, "flagsmith-sends", "warn", "DISABLE_WEBHOOKS=true");
}

#[tokio::test]
async fn files_for_everybody_misspelt_variables_and_open_doors_are_told() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let installation = Installation::new(&cluster.url("postgres", "flagsmith"))
        .with("FLAGPOST_OPS_LISTEN", &taken.local_addr().unwrap().to_string())
        .with("FLAGPOST_SOURCE_SLOTT", "x");
    let (file, secret) = (installation.folder().join("flagpost.toml"), installation.folder().join("secret"));
    std::fs::write(&secret, "sekrit").unwrap();
    std::fs::write(
        &file,
        format!(
            "[[webhooks.endpoint]]\nname = \"x\"\nurl = \"http://u:sekrit@127.0.0.1:1/\"\nsecret_file = \"{}\"\n",
            secret.display()
        ),
    )
    .unwrap();
    let check = async |installation: &Installation| {
        installation.run(&["--config", file.to_str().unwrap(), "check", "--json"]).await.json()
    };
    for (path, open) in [(&file, 0o644), (&secret, 0o604)] {
        set_mode(path, open);
    }
    let told = check(&installation).await;
    assert_check(&told, "config-file", "warn", "webhooks.endpoint.0.url");
    assert_check(&told, "config-secrets", "warn", "webhooks.endpoint.0.secret_file");
    assert_check(&told, "config-variables", "warn", "FLAGPOST_SOURCE_SLOTT");
    assert_check(&told, "ops-listen", "warn", "cannot be listened at");
    assert!(!told.to_string().contains("sekrit"));
    for path in [&file, &secret] {
        set_mode(path, 0o640);
    }
    let installation = installation.with("FLAGPOST_OPS_LISTEN", "0.0.0.0:0");
    let told = check(&installation).await;
    assert_check(&told, "config-file", "ok", "");
    assert_check(&told, "config-secrets", "ok", "");
    assert_check(&told, "ops-listen", "warn", "from other machines");
}

#[tokio::test]
async fn endpoints_are_told_by_what_keeps_receivers_from_trusting_or_getting_them() {
    let s = Scene::new(cluster_options()).await;
    let issuer = Issuer::new("ours");
    let tls = async |change: fn(&mut rcgen::CertificateParams)| {
        let pem = issuer.issue(&["localhost"], change);
        Raw::start_at("127.0.0.1:0".parse::<SocketAddr>().unwrap(), Some(server(&pem, None)), |_| async {})
            .await
    };
    let good = tls(|_| {}).await;
    let expired = tls(|params| params.not_after = rcgen::date_time_ymd(2021, 5, 5)).await;
    let at = |raw: &Raw| format!("https://localhost:{}/hook", raw.addr.port());
    s.sql(&format!(
        "UPDATE environments_webhook SET enabled = false; UPDATE organisations_organisationwebhook SET enabled = false;
         INSERT INTO environments_webhook SELECT (jsonb_populate_record(w, v)).* FROM environments_webhook w, (VALUES
             (jsonb_build_object('id', 901, 'enabled', true, 'secret', 's', 'url', '{good}')),
             (jsonb_build_object('id', 902, 'enabled', true, 'secret', 's', 'url', '{good}')),
             (jsonb_build_object('id', 903, 'enabled', true, 'secret', '', 'url', '{expired}')),
             (jsonb_build_object('id', 904, 'enabled', true, 'secret', 's', 'url', 'http://127.0.0.1:1/'))) x (v)
         WHERE w.id = 2",
        good = at(&good),
        expired = at(&expired)
    ))
    .await;
    let told = s.check(0).await;
    assert_check(&told, "endpoint-twice", "warn", "environment:901, environment:902");
    assert_check(&told, "endpoint-unsigned", "warn", "environment:903");
    assert_check(&told, "endpoint-reach", "warn", "environment:904");
    let of = |told: &Json, part: &str| {
        let all = checks(told, "endpoint-certificate");
        let found = all.iter().find(|check| check["message"].as_str().unwrap().contains(part));
        found.map(|check| check["status"].as_str().unwrap().to_owned())
    };
    assert_eq!(of(&told, "environment:901").as_deref(), Some("warn"), "nobody knows the issuer: {told:#}");
    assert_eq!(of(&told, "environment:903").as_deref(), Some("warn"), "{told:#}");
    assert_eq!(good.written(), 0, "a check sends no request");

    let ca = s.installation.folder().join("ca.pem");
    std::fs::write(&ca, issuer.pem()).unwrap();
    let file = s.installation.folder().join("flagpost.toml");
    std::fs::write(&file, format!("[[webhooks.endpoint]]\nname = \"mine\"\nurl = \"{}\"\n", at(&expired)))
        .unwrap();
    s.sql("DELETE FROM environments_webhook WHERE id = 903").await;
    let Scene { installation, .. } = s;
    let installation = installation.with("FLAGPOST_NETWORK_CA_FILE", ca.to_str().unwrap());
    let output = installation.run(&["--config", file.to_str().unwrap(), "check", "--json"]).await;
    assert_eq!(output.code, 1, "an endpoint of ours: {output:?}");
    let told = output.json();
    assert_eq!(of(&told, "1 certificates are trusted").as_deref(), Some("ok"), "{told:#}");
    assert_eq!(of(&told, "configured:mine").as_deref(), Some("fail"), "{told:#}");
}

/// A folder with programs of these names that print this, for `PATH`.
pub(crate) fn programs(folder: &Path, said: &[(&str, &str)]) -> String {
    for (name, text) in said {
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\ncat <<'EOF'\n{text}\nEOF\n")).unwrap();
        set_mode(&path, 0o755);
    }
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap())
}

#[tokio::test]
async fn the_unit_and_the_clock_are_told_as_systemd_tells_them() {
    let s = Scene::new(cluster_options()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = programs(
        folder.path(),
        &[
            (
                "systemctl",
                "LoadState=loaded\nUnitFileState=disabled\nActiveState=failed\nResult=exit-code\nNRestarts=0\nWatchdogUSec=0\n\
                 LoadCredential=database-password:/nowhere/password",
            ),
            ("timedatectl", "no"),
        ],
    );
    let installation = s.installation.with("PATH", &path);
    let told = report(&installation, 0).await;
    assert_check(&told, "systemd", "ok", "");
    assert_check(&told, "unit", "ok", "");
    assert_check(&told, "unit-enabled", "warn", "systemctl enable flagpost.service");
    assert_check(&told, "unit-active", "warn", "journalctl -u flagpost.service");
    assert_check(&told, "unit-watchdog", "warn", "WatchdogSec");
    assert_check(&told, "unit-credential", "warn", "/nowhere/password");
    assert_check(&told, "clock-synchronised", "warn", "set-ntp");
}

#[tokio::test]
async fn a_bug_report_is_one_file_for_its_owner_and_is_made_without_a_database_too() {
    let s = Scene::new(cluster_options()).await;
    let installation = s.installation.with_ops();
    let daemon = Daemon::start(&installation).await;
    let out = installation.folder().join("report.tar");
    let arguments = ["bugreport", "--out", out.to_str().unwrap()];
    let said = installation.run(&arguments).await.success();
    assert!(said.starts_with(out.to_str().unwrap()), "{said}");
    assert_eq!(mode(&out), 0o600);
    let files = contents(&out);
    let names: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "check.json",
        "configuration.txt",
        "database.json",
        "ledger.json",
        "log.txt",
        "metrics.txt",
        "status.json",
        "version.txt",
    ];
    assert_eq!(names, expected.into());
    let text = |name: &str| files.iter().find(|(n, _)| n == name).unwrap().1.clone();
    let json =
        |name: &str| serde_json::from_str::<Json>(&text(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(text("version.txt").starts_with(&format!("flagpost {}", env!("CARGO_PKG_VERSION"))));
    assert!(text("configuration.txt").contains("environment database.url = postgresql://127.0.0.1:"));
    assert_check(&json("check.json"), "connect", "ok", "as lesser");
    assert_eq!(json("status.json")["source"], "replication");
    assert_eq!(json("database.json")["settings"]["wal_level"], "logical");
    assert_eq!(json("database.json")["slots"][0]["slot_name"], "flagpost");
    assert!(json("ledger.json")["statistics"]["rows.mirror.features_feature"].as_i64() > Some(0));
    assert!(text("metrics.txt").contains("flagpost_"), "{}", text("metrics.txt"));
    daemon.terminate().await.success();

    let again = installation.run(&arguments).await;
    assert!(again.code == 1 && again.stderr.contains("--out"), "what is there is not replaced: {again:?}");
    let installation = installation.with("FLAGPOST_DATABASE_URL", "postgresql://u@127.0.0.1:1/x");
    let out = installation.folder().join("without.tar");
    installation.run(&["bugreport", "--out", out.to_str().unwrap()]).await.success();
    let files = contents(&out);
    assert_eq!(files.len(), expected.len());
    assert!(files.iter().any(|(name, text)| name == "database.json" && text.contains("cannot be reached")));
}

/// The files of a bug report by their names.
pub(crate) fn contents(bundle: &PathBuf) -> Vec<(String, String)> {
    let mut archive = tar::Archive::new(std::fs::File::open(bundle).unwrap());
    let mut files = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
        files.push((name, text));
    }
    files
}
