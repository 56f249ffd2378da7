//! The outbox as a source: whatever happens to connections, notifications, triggers and other readers, what is committed is
//! told once and in order, or the daemon stops and says what was missed.

use std::time::Duration;

use flagpost::demo::cluster::{Cluster, StopMode};
use flagpost::demo::receiver::{Received, Receiver};
use tokio_postgres::{Client, NoTls};

use crate::cli::{count, dump, site};
use crate::support::pooler::Pooler;
use crate::support::process::{Daemon, Installation};
use crate::support::{Source, on_both_sources};

const PATIENCE: Duration = Duration::from_secs(30);

on_both_sources!(
    a_transaction_that_commits_late_is_told_when_it_commits_and_nobody_waits_for_it,
    a_transaction_of_many_rows_comes_whole_and_once,
    connections_and_the_server_may_go_at_any_time,
    an_idle_daemon_writes_nothing_to_the_server_and_the_next_change_comes,
    a_server_that_answers_nothing_is_left_and_what_it_had_comes_later,
);

struct Scene {
    cluster: Cluster,
    client: Client,
    receiver: Receiver,
    installation: Installation,
}

impl Scene {
    /// Three flags with states and values 1001 to 1003, every commit is an event.
    async fn new(source: Source) -> Scene {
        let (cluster, client, receiver, installation) = site(source, source.options()).await;
        let installation = installation.with("FLAGPOST_SOURCE_SETTLE", "0");
        let scene = Scene { cluster, client, receiver, installation };
        scene.flags(3).await;
        scene.installation.run(&["setup"]).await.success();
        scene
    }

    async fn flags(&self, count: u32) {
        self.sql(&format!(
            "INSERT INTO features_feature SELECT (jsonb_populate_record(f, jsonb_build_object(
                 'id', 1000 + n, 'name', 'flag_' || n, 'uuid', gen_random_uuid()))).*
             FROM features_feature f, generate_series(1, {count}) n WHERE f.id = (SELECT min(id) FROM features_feature);
             INSERT INTO features_featurestate SELECT (jsonb_populate_record(s, jsonb_build_object(
                 'id', 1000 + n, 'feature_id', 1000 + n, 'uuid', gen_random_uuid()))).*
             FROM features_featurestate s, generate_series(1, {count}) n WHERE s.id = 1;
             INSERT INTO features_featurestatevalue SELECT (jsonb_populate_record(v, jsonb_build_object(
                 'id', 1000 + n, 'feature_state_id', 1000 + n, 'type', 'unicode', 'string_value', 'first',
                 'uuid', gen_random_uuid()))).*
             FROM features_featurestatevalue v, generate_series(1, {count}) n WHERE v.id = 1"
        ))
        .await;
    }

    async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// A connection of its own.
    async fn connect(&self) -> Client {
        let (client, connection) =
            tokio_postgres::connect(&self.cluster.url("postgres", "flagsmith"), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    async fn set(&self, flag: u32, value: &str) {
        self.sql(&set(flag, value)).await;
    }

    /// Waits until so much has been told.
    async fn wait_told(&self, number: usize) -> Vec<String> {
        let all = self.receiver.wait_for(|all| told(all).len() >= number, PATIENCE).await;
        all.map_or_else(|all| panic!("only {:?}", told(&all)), |all| told(&all))
    }
}

fn set(flag: u32, value: &str) -> String {
    format!(
        "UPDATE features_featurestatevalue SET string_value = '{value}' WHERE feature_state_id = {}",
        1000 + flag
    )
}

/// What one endpoint has been told, in order, as `flag: previous → new`; repeats once.
fn told(all: &[Received]) -> Vec<String> {
    let mut ids = std::collections::HashSet::new();
    all.iter()
        .filter(|r| {
            r.path == "/dev-signed" && ids.insert(r.header("x-flagpost-event-id").unwrap().to_owned())
        })
        .map(|r| {
            let body: serde_json::Value = serde_json::from_slice(&r.body).unwrap();
            let (new, previous) = (&body["data"]["new_state"], &body["data"]["previous_state"]);
            format!(
                "{}: {} → {}",
                new["id"].as_i64().unwrap() - 1000,
                previous["feature_state_value"].as_str().unwrap_or("none"),
                new["feature_state_value"].as_str().unwrap_or("none")
            )
        })
        .collect()
}

async fn a_transaction_that_commits_late_is_told_when_it_commits_and_nobody_waits_for_it(source: Source) {
    let s = Scene::new(source).await;
    let daemon = Daemon::start(&s.installation).await;
    let late = s.connect().await;
    late.batch_execute("BEGIN").await.unwrap();
    late.batch_execute(&set(1, "late")).await.unwrap();
    // Begun between the two that will change flag 3, and open to the end: whoever read only what is below the oldest open
    // transaction would tell the later of them before the earlier, or neither.
    let open = s.connect().await;
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    s.set(2, "a").await;
    s.set(3, "b").await;
    // Flags go out in parallel: only those of one flag have an order.
    let mut first = s.wait_told(2).await;
    first.sort();
    assert_eq!(first, ["2: first → a", "3: first → b"], "the oldest is still open");
    // It changes what others have changed since it began, and ends last.
    late.batch_execute(&set(3, "late too")).await.unwrap();
    late.batch_execute("COMMIT").await.unwrap();
    let mut last = s.wait_told(4).await.split_off(2);
    last.sort();
    assert_eq!(last, ["1: first → late", "3: b → late too"]);
    open.batch_execute("COMMIT").await.unwrap();
    daemon.terminate().await.success();
}

async fn a_transaction_of_many_rows_comes_whole_and_once(source: Source) {
    const FLAGS: u32 = 300;
    let s = Scene::new(source).await;
    for table in ["features_featurestatevalue", "features_featurestate", "features_feature"] {
        s.sql(&format!("DELETE FROM {table} WHERE id > 1000")).await;
    }
    s.flags(FLAGS).await;
    s.installation.run(&["setup", "--resnapshot"]).await.success();
    // 15 000 rows each, once while nobody reads, once while it is read.
    let many = |value: &str| {
        format!(
            "DO $$ BEGIN FOR n IN 1..49 LOOP
                 UPDATE features_featurestatevalue SET string_value = 'pass ' || n WHERE id > 1000;
             END LOOP; UPDATE features_featurestatevalue SET string_value = '{value}' WHERE id > 1000; END $$"
        )
    };
    s.sql(&many("one")).await;
    let daemon = Daemon::start(&s.installation).await;
    s.sql(&many("two")).await;
    let all = s.wait_told(600).await;
    assert_eq!(all.len(), 600);
    for flag in [1, 77, FLAGS] {
        let of_flag: Vec<&String> = all.iter().filter(|t| t.starts_with(&format!("{flag}: "))).collect();
        assert_eq!(of_flag, [&format!("{flag}: first → one"), &format!("{flag}: one → two")]);
    }
    daemon.terminate().await.success();
}

async fn connections_and_the_server_may_go_at_any_time(source: Source) {
    let mut s = Scene::new(source).await;
    let daemon = Daemon::start(&s.installation).await;
    for n in 1..=12 {
        s.set(1 + n % 3, &format!("value {n}")).await;
        if n % 4 == 2 {
            s.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')").await;
        }
    }
    assert_eq!(s.wait_told(12).await.len(), 12);
    s.cluster.stop(StopMode::Immediate).await.unwrap();
    s.cluster.restart().await.unwrap();
    s.client = s.connect().await;
    s.set(1, "after the crash").await;
    let all = s.receiver.wait_for(|all| told(all).len() >= 13, PATIENCE).await;
    let all = all.map_or_else(|all| panic!("only {:?}: {}", told(&all), daemon.stderr()), |all| told(&all));
    assert_eq!(all[12], "1: value 12 → after the crash");
    daemon.terminate().await.success();
}

async fn a_server_that_answers_nothing_is_left_and_what_it_had_comes_later(source: Source) {
    let s = Scene::new(source).await;
    let daemon = Daemon::start(&s.installation).await;
    s.set(1, "a").await;
    s.wait_told(1).await;
    // Its processes for us stop; its host goes on acknowledging what we send.
    let sql = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')
               AND application_name LIKE 'flagpost%'";
    let pids: Vec<i32> = s.client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert!(!pids.is_empty());
    let signal = |signal| {
        for pid in &pids {
            rustix::process::kill_process(rustix::process::Pid::from_raw(*pid).unwrap(), signal).unwrap();
        }
    };
    signal(rustix::process::Signal::STOP);
    s.set(1, "b").await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    while !daemon.stderr().contains("the source is down") {
        assert!(tokio::time::Instant::now() < deadline, "it waits for ever: {}", daemon.stderr());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A slot is not free before its reader has ended.
    signal(rustix::process::Signal::CONT);
    assert_eq!(s.wait_told(2).await[1], "1: a → b");
    daemon.terminate().await.success();
}

async fn an_idle_daemon_writes_nothing_to_the_server_and_the_next_change_comes(source: Source) {
    let s = Scene::new(source).await;
    let daemon = Daemon::start(&s.installation).await;
    s.set(1, "a").await;
    s.wait_told(1).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Others write, nothing of it is ours; the daemon itself gives no transaction a number.
    s.sql("CREATE TABLE task_processor_task (id int); INSERT INTO task_processor_task SELECT generate_series(1, 1000)").await;
    let xid = |client: Client| async move {
        client
            .query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text", &[])
            .await
            .unwrap()
            .get::<_, String>(0)
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = xid(s.connect().await).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(xid(s.connect().await).await, before, "an idle daemon writes to the server");
    s.set(1, "b").await;
    assert_eq!(s.wait_told(2).await[1], "1: a → b");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn what_is_durable_is_taken_away_also_when_nobody_notifies_or_a_pooler_stands_between() {
    let mut s = Scene::new(Source::Outbox).await;
    // Whoever holds this lock notifies: nobody does.
    let holder = s.connect().await;
    holder.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(7380380986249278324)").await.unwrap();
    let daemon = Daemon::start(&s.installation).await;
    // Past the look at the start.
    tokio::time::sleep(Duration::from_millis(300)).await;
    s.set(1, "a").await;
    assert_eq!(s.wait_told(1).await, ["1: first → a"]);
    holder.batch_execute("COMMIT").await.unwrap();
    let empty = async |s: &Scene| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while count(&s.client, "flagpost.outbox").await > 0 {
            assert!(tokio::time::Instant::now() < deadline, "it is not taken away");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    empty(&s).await;
    daemon.terminate().await.success();
    let pooler = Pooler::start(&s.cluster, "transaction").await;
    s.installation.set("FLAGPOST_DATABASE_URL", &pooler.url("flagsmith"));
    // Begins anew through it, too: snapshot, claim, everything.
    s.installation.run(&["setup", "--resnapshot"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    for n in 0..20 {
        s.set(1 + n % 3, &format!("p{n}")).await;
    }
    assert_eq!(s.wait_told(21).await.len(), 21);
    empty(&s).await;
    let output = daemon.terminate().await;
    assert!(!output.stderr.contains("WARN"), "{output:?}");
    output.success();
    let setting = "SELECT count(*) FROM (SELECT 1 FROM pg_settings WHERE name = 'synchronous_commit' AND setting = 'off') q";
    let (through, connection) = tokio_postgres::connect(&pooler.url("flagsmith"), NoTls).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(
        through.query_one(setting, &[]).await.unwrap().get::<_, i64>(0),
        0,
        "a setting of ours stays in the pool"
    );
}

/// After a crash the server gives transaction ids again that left nothing on its disk. Whoever had seen the first owner of one
/// end must not take the second for read.
#[tokio::test]
async fn transaction_ids_that_come_again_after_a_crash_are_read() {
    let mut s = Scene::new(Source::Outbox).await;
    let mut daemon = Some(Daemon::start(&s.installation).await);
    let mut again = 0;
    for n in 0..6 {
        s.set(1, &format!("before {n}")).await;
        s.wait_told(2 * n + 1).await;
        // Rolled back: seen by the daemon's snapshots, and not waited for by anybody.
        let mut last = 0;
        for _ in 0..20 {
            s.sql("BEGIN").await;
            let row = s.client.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap();
            last = row.get::<_, &str>(0).parse::<u64>().unwrap();
            s.sql("ROLLBACK").await;
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
        // Once it lives through the crash, once it does not.
        let living = daemon.take().filter(|_| n % 2 == 0);
        s.cluster.stop(StopMode::Immediate).await.unwrap();
        s.cluster.restart().await.unwrap();
        s.client = s.connect().await;
        let sql = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text";
        let next: String = s.client.query_one(sql, &[]).await.unwrap().get(0);
        again += u32::from(next.parse::<u64>().unwrap() <= last);
        s.set(1, &format!("after {n}")).await;
        daemon = match living {
            Some(daemon) => Some(daemon),
            None => Some(Daemon::start(&s.installation).await),
        };
        let all = s.wait_told(2 * n + 2).await;
        assert_eq!(all[2 * n + 1], format!("1: before {n} → after {n}"));
    }
    assert!(again > 0, "no transaction id came again");
    daemon.unwrap().terminate().await.success();
}

#[tokio::test]
async fn what_the_triggers_could_not_capture_stops_it_and_a_new_snapshot_goes_on() {
    let s = Scene::new(Source::Outbox).await;
    let daemon = Daemon::start(&s.installation).await;
    s.set(1, "a").await;
    s.wait_told(1).await;
    s.sql("REVOKE INSERT ON flagpost.outbox FROM flagpost_owner").await;
    s.set(1, "missed").await;
    s.sql("GRANT INSERT ON flagpost.outbox TO flagpost_owner").await;
    let output = daemon.ended(PATIENCE).await;
    assert_eq!(output.code, 4, "{output:?}");
    assert!(
        output.stderr.contains("could not capture 1 statement") && output.stderr.contains("--resnapshot"),
        "{output:?}"
    );
    let again = Daemon::try_start(&s.installation).await.err().unwrap();
    assert_eq!(again.code, 4, "{again:?}");
    // An open transaction may have been the one: its change is neither missed nor told twice.
    let open = s.connect().await;
    s.sql("REVOKE INSERT ON flagpost.outbox FROM flagpost_owner").await;
    open.batch_execute("BEGIN").await.unwrap();
    open.batch_execute(&set(2, "open")).await.unwrap();
    s.sql("GRANT INSERT ON flagpost.outbox TO flagpost_owner").await;
    let (setup, ()) = tokio::join!(s.installation.run(&["setup", "--resnapshot"]), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        open.batch_execute("COMMIT").await.unwrap();
    });
    setup.success();
    let daemon = Daemon::start(&s.installation).await;
    s.set(1, "b").await;
    s.set(2, "c").await;
    let mut told = s.wait_told(3).await.split_off(1);
    told.sort();
    assert_eq!(told, ["1: missed → b", "2: open → c"]);
    daemon.terminate().await.success();
}

#[tokio::test]
async fn a_trigger_that_goes_stops_it() {
    for damage in [
        "DROP TRIGGER flagpost_update ON features_featurestatevalue",
        "ALTER TABLE features_featurestatevalue DISABLE TRIGGER flagpost_update",
        // Off and on again between two looks: they are not ALWAYS enabled any more.
        "BEGIN; ALTER TABLE features_featurestatevalue DISABLE TRIGGER ALL;
         UPDATE features_featurestatevalue SET string_value = 'unseen' WHERE feature_state_id = 1001;
         ALTER TABLE features_featurestatevalue ENABLE TRIGGER ALL; COMMIT",
        "DROP SCHEMA flagpost CASCADE",
    ] {
        let s = Scene::new(Source::Outbox).await;
        let daemon = Daemon::start(&s.installation).await;
        s.sql(damage).await;
        s.set(1, "missed").await;
        let output = daemon.ended(PATIENCE).await;
        assert_eq!(output.code, 4, "{damage}: {output:?}");
        assert!(output.stderr.contains("setup"), "{damage}: {output:?}");
        if !damage.starts_with("DROP SCHEMA") {
            let status = s.installation.run(&["status"]).await;
            assert!(status.stdout.contains("CHANGES MISSED  the outbox has lost flagpost_"), "{status:?}");
        }
        let setup = s.installation.run(&["setup"]).await;
        assert_eq!(setup.code, 4, "{damage}: {setup:?}");
        // Nor does a start go on.
        let again = Daemon::try_start(&s.installation).await.err().unwrap();
        assert!(again.code == 4 && again.stderr.contains("--resnapshot"), "{damage}: {again:?}");
        s.installation.run(&["setup", "--resnapshot"]).await.success();
        let daemon = Daemon::start(&s.installation).await;
        s.receiver.clear();
        s.set(1, "b").await;
        assert_eq!(s.wait_told(1).await, ["1: missed → b"]);
        daemon.terminate().await.success();
    }
}

#[tokio::test]
async fn it_belongs_to_one_ledger() {
    let s = Scene::new(Source::Outbox).await;
    let daemon = Daemon::start(&s.installation).await;
    s.set(1, "a").await;
    s.wait_told(1).await;
    let other = Source::Outbox.installation(&s.cluster.url("postgres", "flagsmith"));
    for refused in [other.run(&["setup"]).await, Daemon::try_start(&other).await.err().unwrap()] {
        assert!(refused.code == 4 && refused.stderr.contains("--resnapshot"), "{refused:?}");
    }
    // Taken over in so many words, it stops the one before.
    other.run(&["setup", "--resnapshot"]).await.success();
    let output = daemon.ended(PATIENCE).await;
    assert!(output.code == 4 && output.stderr.contains("belongs to another ledger"), "{output:?}");
    let daemon = Daemon::start(&other).await;
    daemon.terminate().await.success();
}

#[tokio::test]
async fn a_ledger_of_yesterday_does_not_go_on_as_if_nothing_were_missing() {
    let s = Scene::new(Source::Outbox).await;
    let copy = s.installation.folder().join("copy");
    let status =
        std::process::Command::new("cp").arg("-r").arg(s.installation.state_dir()).arg(&copy).status();
    assert!(status.unwrap().success());
    let daemon = Daemon::start(&s.installation).await;
    s.set(1, "a").await;
    s.wait_told(1).await;
    daemon.terminate().await.success();
    let old = Source::Outbox
        .installation(&s.cluster.url("postgres", "flagsmith"))
        .with("FLAGPOST_STATE_DIR", copy.to_str().unwrap());
    let output = Daemon::try_start(&old).await.err().unwrap();
    assert!(output.code == 4 && output.stderr.contains("further than this ledger"), "{output:?}");
}

#[tokio::test]
async fn the_printed_sql_is_enough_for_a_role_of_its_own_and_nothing_stays_of_it() {
    let mut s = Scene::new(Source::Outbox).await;
    let again = s.installation.run(&["setup"]).await.success();
    assert!(again.contains("as it must be"), "{again}");
    s.installation.run(&["uninstall", "--purge"]).await.success();
    let before = dump(&s.cluster);
    let roles = count(&s.client, "pg_roles").await;
    let sql =
        s.installation.run(&["setup", "--mode", "outbox", "--print", "--role", "reader"]).await.success();
    s.sql(&sql).await;
    s.installation.set("FLAGPOST_DATABASE_URL", &s.cluster.url("reader", "flagsmith"));
    // It may begin anew, for that changes nothing that belongs to others.
    let said = s.installation.run(&["setup", "--resnapshot"]).await.success();
    assert!(said.contains("as it must be"), "{said}");
    let daemon = Daemon::start(&s.installation).await;
    s.set(1, "a").await;
    s.wait_told(1).await;
    daemon.terminate().await.success();
    let refused = s.installation.run(&["uninstall"]).await;
    assert!(refused.code == 3 && refused.stderr.contains("uninstall --print"), "{refused:?}");
    s.installation.set("FLAGPOST_DATABASE_URL", &s.cluster.url("postgres", "flagsmith"));
    let daemon = Daemon::start(&s.installation).await;
    let refused = s.installation.run(&["uninstall"]).await;
    assert!(refused.code == 3 && refused.stderr.contains("stop it first"), "{refused:?}");
    daemon.terminate().await.success();
    let sql = s.installation.run(&["uninstall", "--print"]).await.success();
    s.sql(&sql).await;
    s.sql("DROP OWNED BY reader; DROP ROLE reader").await;
    assert_eq!((dump(&s.cluster), count(&s.client, "pg_roles").await), (before, roles));
    let said = s.installation.run(&["uninstall"]).await.success();
    assert!(said.contains("there is no outbox"), "{said}");
}
