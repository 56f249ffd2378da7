//! The source against a real server: what it hands on, what it confirms, how it gets in.

use std::time::Duration;

use flagpost::change::{Key, Lsn, Op, Transaction};
use flagpost::demo::cluster::{Auth, Cluster, Options, Tls};
use flagpost::error::{Kind, Result};
use flagpost::schema::{Table, feature_state, state_value};
use flagpost::source::{
    Catalog, Channels, ConnInfo, Delivery, Feed, Follow, Item, Names, Origin, Publication, Replication,
    adopt, connect, copy_tables, publication_steps,
};
use tokio::sync::{mpsc, watch};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::flagsmith::{self, Schema};
use crate::support::{cluster_options, golden, has_column_lists};

const PATIENCE: Duration = Duration::from_secs(20);

/// A Flagsmith database with publication and slot, and a stream that the test holds the ends of.
pub(crate) struct Setting {
    pub(crate) client: Client,
    pub(crate) info: ConnInfo,
    names: Names,
    pub(crate) catalog: Catalog,
    items: mpsc::Receiver<Delivery>,
    durable: watch::Sender<Lsn>,
    channels: Channels,
    pub(crate) stop: CancellationToken,
    from: Lsn,
    pub(crate) cluster: Cluster,
}

impl Setting {
    pub(crate) async fn new(options: Options, queue: usize) -> Setting {
        let cluster = Cluster::start(options).await.unwrap();
        let schema = Schema::read(&golden().join("schema.json"));
        let client = flagsmith::database(&cluster, &schema, "127.0.0.1:1".parse().unwrap()).await;
        client.batch_execute(flagsmith::TAGS).await.unwrap();
        let info = ConnInfo::parse(&cluster.url("postgres", "flagsmith"), None).unwrap();
        let names =
            Names { slot: "flagpost".into(), publication: "flagpost".into(), schema: "public".into() };
        let catalog = Catalog::read(&client, &info, "public").await.unwrap();
        for step in publication_steps(&catalog, &names, None) {
            client.batch_execute(&step.sql).await.unwrap();
        }
        let mut replication = Replication::connect(&info).await.unwrap();
        let from = replication.create_slot("flagpost", false).await.unwrap().position;
        let (out, items) = mpsc::channel(queue);
        let (durable, durable_receiver) = watch::channel(from);
        let channels = Channels::new(out, durable_receiver);
        Setting {
            client,
            info,
            names,
            catalog,
            items,
            durable,
            channels,
            stop: CancellationToken::new(),
            from,
            cluster,
        }
    }

    pub(crate) async fn follow(&self) -> tokio::task::JoinHandle<Result<Option<Feed>>> {
        self.follow_with(false).await
    }

    /// With heartbeats, or without.
    async fn follow_with(&self, messages: bool) -> tokio::task::JoinHandle<Result<Option<Feed>>> {
        let system_id = Replication::connect(&self.info).await.unwrap().server().system_id.clone();
        let (info, names, catalog) = (self.info.clone(), self.names.clone(), self.catalog.clone());
        let follow = Follow::new(info, names, catalog, system_id, self.from);
        let origin = Origin::Replication(Follow { messages, ..follow });
        let stop = self.stop.clone();
        let feed = Feed::open(origin, self.channels.clone()).await.unwrap();
        tokio::spawn(async move { feed.follow(&stop).await })
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// The next transaction that changed anything.
    pub(crate) async fn next(&mut self) -> Transaction {
        loop {
            let delivery = tokio::time::timeout(PATIENCE, self.items.recv()).await.unwrap().unwrap();
            if let Item::Transaction(transaction, _) = delivery.item
                && !transaction.changes.is_empty()
            {
                return transaction;
            }
        }
    }

    async fn slot(&self) -> (Lsn, Lsn) {
        let row = self
            .client
            .query_one("SELECT confirmed_flush_lsn::text, restart_lsn::text FROM pg_replication_slots", &[])
            .await
            .unwrap();
        (row.get::<_, &str>(0).parse().unwrap(), row.get::<_, &str>(1).parse().unwrap())
    }

    async fn reader_pid(&self) -> Option<i32> {
        let row = self.client.query_one("SELECT active_pid FROM pg_replication_slots", &[]).await.unwrap();
        row.get(0)
    }

    /// Makes a flag: feature, state and value 1.
    async fn make_flag(&self) {
        self.sql(
            "INSERT INTO features_featurestate (id, enabled, environment_id, feature_id, created_at, updated_at, version, uuid)
             VALUES (1, false, 1, 1, now(), now(), 1, gen_random_uuid());
             INSERT INTO features_featurestatevalue (id, type, string_value, feature_state_id, uuid)
             VALUES (1, 'unicode', 'short', 1, gen_random_uuid());",
        )
        .await;
    }
}

fn new_row(transaction: &Transaction, index: usize) -> &flagpost::change::Row {
    match &transaction.changes[index].op {
        Op::Insert { new } | Op::Update { new, .. } => new,
        other => panic!("{other:?} has no new row"),
    }
}

async fn wait_until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn transactions_come_whole_and_in_commit_order_with_their_64_bit_ids() {
    let mut s = Setting::new(cluster_options(), 64).await;
    let running = s.follow().await;
    s.make_flag().await;
    assert_eq!(s.next().await.changes.len(), 2);
    // The one that begins first commits last.
    let late = s.cluster.connect("flagsmith").await.unwrap();
    late.batch_execute("BEGIN; UPDATE features_featurestatevalue SET string_value = 'late'").await.unwrap();
    s.sql("UPDATE features_featurestate SET enabled = true").await;
    let row = late.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap();
    let late_xid: u64 = row.get::<_, &str>(0).parse().unwrap();
    late.batch_execute("COMMIT").await.unwrap();
    let (first, second) = (s.next().await, s.next().await);
    assert_eq!(first.changes[0].table, Table::FeatureState);
    assert!(new_row(&first, 0).flag(feature_state::ENABLED));
    assert_eq!(second.changes[0].table, Table::StateValue);
    assert_eq!(second.xid, late_xid);
    assert!(first.end_lsn < second.end_lsn && first.commit_time < second.commit_time);
    s.stop.cancel();
    running.await.unwrap().unwrap().unwrap().finish().await;
}

#[tokio::test]
async fn toast_truncate_changed_keys_and_new_columns_in_mid_stream() {
    let mut s = Setting::new(cluster_options(), 64).await;
    let _running = s.follow().await;
    s.make_flag().await;
    s.next().await;
    // 10 kB that do not compress are TOASTed; an update of another column leaves them out.
    s.sql(
        "UPDATE features_featurestatevalue SET string_value =
             (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 320) n)",
    )
    .await;
    assert_eq!(new_row(&s.next().await, 0).text(state_value::STRING_VALUE).unwrap().len(), 10_240);
    s.sql("UPDATE features_featurestatevalue SET integer_value = 5").await;
    let change = s.next().await;
    assert!(new_row(&change, 0).has_unchanged());
    assert_eq!(new_row(&change, 0).int(state_value::INTEGER_VALUE), Some(5));

    s.sql("UPDATE features_featurestate SET id = 7").await;
    let Op::Update { old_key, new } = &s.next().await.changes[0].op else { panic!() };
    assert_eq!((old_key, new.int(0)), (&Some(Key::Int(1)), Some(7)));

    s.sql("ALTER TABLE features_featurestate ADD COLUMN surprise int DEFAULT 3").await;
    s.sql("UPDATE features_featurestate SET enabled = true, surprise = 4").await;
    assert!(new_row(&s.next().await, 0).flag(feature_state::ENABLED));

    s.sql("DELETE FROM features_featurestatevalue").await;
    assert_eq!(s.next().await.changes[0].op, Op::Delete { key: Key::Int(1) });
    s.sql("TRUNCATE features_featurestate, features_featurestatevalue").await;
    let truncated = s.next().await;
    assert_eq!(truncated.changes.len(), 2);
    assert!(truncated.changes.iter().all(|c| c.op == Op::Truncate));
    s.stop.cancel();
}

#[tokio::test]
async fn a_column_that_vanishes_stops_the_stream_with_nothing_confirmed() {
    let mut s = Setting::new(cluster_options(), 64).await;
    s.make_flag().await;
    // A publication made by hand, without column lists: the column can go without the table leaving the publication.
    s.sql("ALTER PUBLICATION flagpost SET TABLE features_featurestate, features_featurestatevalue").await;
    let running = s.follow().await;
    s.next().await;
    s.sql("ALTER TABLE features_featurestate DROP COLUMN identity_id").await;
    s.sql("UPDATE features_featurestate SET enabled = true").await;
    let error = tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().err().unwrap();
    assert_eq!(error.kind(), Kind::DatabaseRefuses);
    assert!(error.to_string().contains("identity_id"), "{error}");
    assert_eq!(s.slot().await.0, s.from);
}

#[tokio::test]
async fn nothing_is_confirmed_before_the_ledger_has_it_and_all_of_it_after() {
    let mut s = Setting::new(cluster_options(), 64).await;
    let running = s.follow().await;
    s.make_flag().await;
    let mut last = s.next().await.end_lsn;
    for n in 0..20 {
        s.sql(&format!("UPDATE features_featurestatevalue SET integer_value = {n}")).await;
        let transaction = s.next().await;
        // A keepalive that is answered, and the regular update, must not run ahead either.
        s.channels.probe.notify_one();
        assert!(s.slot().await.0 <= last, "confirmed past what is durable");
        last = transaction.end_lsn;
        s.durable.send_replace(last);
        wait_until("the confirmation", async || s.slot().await.0 == last).await;
    }
    s.stop.cancel();
    running.await.unwrap().unwrap().unwrap().finish().await;
    assert_eq!(s.slot().await.0, last);
    let row = s.client.query_one("SELECT active FROM pg_replication_slots", &[]).await.unwrap();
    assert!(!row.get::<_, bool>(0), "the slot is free as soon as we have said good-bye");
}

#[tokio::test]
async fn a_full_queue_keeps_the_session_alive_and_goes_on_confirming() {
    let options = cluster_options().set("wal_sender_timeout", "1500ms");
    let mut s = Setting::new(options, 1).await;
    let _running = s.follow().await;
    s.make_flag().await;
    for n in 0..200 {
        s.sql(&format!("UPDATE features_featurestatevalue SET integer_value = {n}")).await;
    }
    let first = s.next().await;
    s.durable.send_replace(first.end_lsn);
    wait_until("the confirmation", async || s.slot().await.0 == first.end_lsn).await;
    let before = s.reader_pid().await;
    assert!(before.is_some());
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(s.reader_pid().await, before, "the server gave the session up");
    for n in 0..200 {
        let transaction = s.next().await;
        assert_eq!(new_row(&transaction, 0).int(state_value::INTEGER_VALUE), Some(n));
    }
    s.stop.cancel();
}

#[tokio::test]
async fn a_broken_session_is_opened_again_and_nothing_comes_twice_or_not_at_all() {
    let mut s = Setting::new(cluster_options(), 64).await;
    let _running = s.follow().await;
    s.make_flag().await;
    s.next().await;
    let mut seen = Vec::new();
    for n in 0..30 {
        s.sql(&format!("UPDATE features_featurestatevalue SET integer_value = {n}")).await;
        if n % 10 == 5 {
            s.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots").await;
        }
        if n % 3 == 0 {
            let transaction = s.next().await;
            seen.push(new_row(&transaction, 0).int(state_value::INTEGER_VALUE).unwrap());
            s.durable.send_replace(transaction.end_lsn);
        }
    }
    while seen.len() < 30 {
        seen.push(new_row(&s.next().await, 0).int(state_value::INTEGER_VALUE).unwrap());
    }
    assert_eq!(seen, (0..30).collect::<Vec<_>>());
    s.stop.cancel();
}

#[tokio::test]
async fn a_slot_that_was_dropped_moved_or_belongs_to_another_cluster_stops_us() {
    let s = Setting::new(cluster_options(), 64).await;
    let system_id = Replication::connect(&s.info).await.unwrap().server().system_id.clone();
    let open = |from, system_id: &str| {
        let (info, names, catalog) = (s.info.clone(), s.names.clone(), s.catalog.clone());
        let follow = Follow::new(info, names, catalog, system_id.to_owned(), from);
        Feed::open(Origin::Replication(follow), s.channels.clone())
    };
    let error = open(s.from, "1").await.err().unwrap();
    assert_eq!(error.kind(), Kind::LedgerMismatch, "{error}");
    let error = open(Lsn(u64::MAX), &system_id).await.err().unwrap();
    assert_eq!(error.kind(), Kind::SlotLost, "{error}");
    s.make_flag().await;
    s.sql("SELECT pg_replication_slot_advance('flagpost', pg_current_wal_lsn())").await;
    let error = open(s.from, &system_id).await.err().unwrap();
    assert_eq!(error.kind(), Kind::SlotLost, "{error}");
    s.sql("SELECT pg_drop_replication_slot('flagpost')").await;
    let error = open(s.from, &system_id).await.err().unwrap();
    assert_eq!(error.kind(), Kind::SlotLost, "{error}");
    s.sql("SELECT pg_create_logical_replication_slot('flagpost', 'test_decoding')").await;
    let error = open(s.from, &system_id).await.err().unwrap();
    assert_eq!(error.kind(), Kind::DatabaseRefuses, "{error}");
}

#[tokio::test]
async fn the_mirror_is_filled_from_the_slots_own_snapshot_in_the_streams_text_forms() {
    let s = Setting::new(cluster_options(), 64).await;
    s.make_flag().await;
    let mut replication = Replication::connect(&s.info).await.unwrap();
    let exported = replication.create_slot("second", true).await.unwrap();
    // What commits after the snapshot is not in it.
    s.sql("UPDATE features_featurestate SET enabled = true").await;
    let client = connect(&s.info).await.unwrap();
    adopt(&client, &s.info, &exported.snapshot).await.unwrap();
    let catalog = Catalog::read(&s.client, &s.info, "public").await.unwrap();
    let mut rows = Vec::new();
    let collect = async |table: Table, row: flagpost::change::Row| {
        rows.push((table, row));
        Ok(())
    };
    copy_tables(&client, &s.info, &catalog, collect, |_| ()).await.unwrap();
    let state = rows.iter().find(|(table, _)| *table == Table::FeatureState).unwrap();
    assert_eq!(state.1.text(feature_state::ENABLED), Some("f"));
    assert!(rows.iter().any(|(table, _)| *table == Table::User));
}

#[tokio::test]
async fn the_publication_names_tables_and_columns_and_no_password() {
    let s = Setting::new(cluster_options(), 64).await;
    let catalog = Catalog::read(&s.client, &s.info, "public").await.unwrap();
    let publication = Publication::read(&s.client, &s.info, &catalog, "flagpost").await.unwrap().unwrap();
    assert_eq!(publication.tables.len(), Table::ALL.len());
    assert!(!publication.tables[&Table::User].contains("password"));
    assert!(!publication.tables[&Table::ApiKey].contains("hashed_key"));
    assert!(publication_steps(&catalog, &s.names, Some(&publication)).is_empty());
    for spoil in [
        "ALTER PUBLICATION flagpost DROP TABLE audit_auditlog",
        "ALTER PUBLICATION flagpost SET TABLE users_ffadminuser",
        "ALTER PUBLICATION flagpost SET (publish = 'insert')",
        "DROP PUBLICATION flagpost; CREATE PUBLICATION flagpost FOR ALL TABLES",
    ] {
        s.sql(spoil).await;
        let spoilt = Publication::read(&s.client, &s.info, &catalog, "flagpost").await.unwrap().unwrap();
        let steps = publication_steps(&catalog, &s.names, Some(&spoilt));
        assert_eq!(steps.len(), 1, "{spoil}");
        s.sql(&steps[0].sql).await;
        let mended = Publication::read(&s.client, &s.info, &catalog, "flagpost").await.unwrap().unwrap();
        assert_eq!(mended, publication, "{spoil}");
    }
}

#[tokio::test]
async fn a_password_never_leaves_the_server_or_without_column_lists_is_thrown_away_on_arrival() {
    let mut s = Setting::new(cluster_options(), 64).await;
    // A second slot, to see what the server sends.
    s.sql("SELECT pg_create_logical_replication_slot('seen', 'pgoutput')").await;
    let _running = s.follow().await;
    s.sql("UPDATE users_ffadminuser SET password = 'hash-of-a-password', email = 'new@example.com'").await;
    let sent = "SELECT count(*) FILTER (WHERE position('new@example.com'::bytea IN data) > 0),
                       count(*) FILTER (WHERE position('hash-of-a-password'::bytea IN data) > 0)
                FROM pg_logical_slot_peek_binary_changes('seen', NULL, NULL, 'proto_version', '1', 'publication_names', 'flagpost')";
    let sent = s.client.query_one(sent, &[]).await.unwrap();
    let (emails, passwords): (i64, i64) = (sent.get(0), sent.get(1));
    assert!(emails > 0);
    assert_eq!(passwords, if has_column_lists(&s.client).await { 0 } else { emails });

    let change = s.next().await;
    assert_eq!(i64::try_from(change.changes.len()).unwrap(), emails);
    for index in 0..change.changes.len() {
        let row = new_row(&change, index);
        assert_eq!(row.len(), Table::User.columns().len());
        let texts: Vec<_> = (0..row.len()).filter_map(|column| row.text(column)).collect();
        assert!(texts.contains(&"new@example.com") && !texts.contains(&"hash-of-a-password"), "{texts:?}");
    }
    s.stop.cancel();
}

/// A certificate for `localhost`, signed by itself.
fn certificate() -> Tls {
    let folder = tempfile::tempdir().unwrap();
    let (key, certificate) = (folder.path().join("key"), folder.path().join("certificate"));
    let mut command = std::process::Command::new("openssl");
    command.args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split(' '));
    command.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]);
    command.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    assert!(command.output().unwrap().status.success());
    let read = |path| std::fs::read_to_string(path).unwrap();
    Tls { certificate: read(certificate), key: read(key) }
}

#[tokio::test]
async fn every_sslmode_gets_in_or_is_refused_as_it_must_over_both_kinds_of_connection() {
    let tls = certificate();
    let folder = tempfile::tempdir().unwrap();
    let (right, wrong) = (folder.path().join("right.pem"), folder.path().join("wrong.pem"));
    std::fs::write(&right, &tls.certificate).unwrap();
    std::fs::write(&wrong, certificate().certificate).unwrap();
    let auth = Auth::Scram { password: "p@ss/wörd".into() };
    let cluster = Cluster::start(Options { auth, tls: Some(tls), ..cluster_options() }).await.unwrap();
    let port = cluster.port();
    let (right, wrong) = (right.display(), wrong.display());
    for (host, parameters, encrypted) in [
        ("127.0.0.1", "sslmode=disable".to_owned(), Some(false)),
        ("127.0.0.1", "sslmode=prefer".to_owned(), Some(true)),
        ("127.0.0.1", "sslmode=require".to_owned(), Some(true)),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={right}"), Some(true)),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={right}"), None),
        ("localhost", format!("sslmode=verify-full&sslrootcert={right}"), Some(true)),
        ("localhost", format!("sslmode=verify-full&sslrootcert={wrong}"), None),
        ("localhost", format!("sslmode=require&sslrootcert={wrong}"), None),
        ("localhost", "sslmode=verify-full".to_owned(), None),
    ] {
        let url = format!("postgresql://postgres:p%40ss%2Fw%C3%B6rd@{host}:{port}/postgres?{parameters}");
        let info = ConnInfo::parse(&url, None).unwrap();
        let (sql, replication) = (connect(&info).await, Replication::connect(&info).await);
        match encrypted {
            Some(encrypted) => {
                let query =
                    "SELECT bool_and(ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                             WHERE application_name = 'flagpost'";
                let row = sql.unwrap().query_one(query, &[]).await.unwrap();
                assert_eq!((row.get::<_, bool>(0), row.get::<_, i64>(1)), (encrypted, 2), "{parameters}");
                assert!(replication.is_ok(), "{parameters}");
            }
            None => {
                for error in [sql.err().unwrap(), replication.err().unwrap()] {
                    assert!(error.to_string().contains("sslrootcert"), "{error}");
                    assert_eq!(error.kind().exit_code(), 3);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_server_without_tls_is_refused_when_tls_is_asked_for() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let url = cluster.url("postgres", "postgres");
    for (mode, is_in) in [("disable", true), ("prefer", true), ("require", false), ("verify-full", false)] {
        let info = ConnInfo::parse(&format!("{url}?sslmode={mode}"), None).unwrap();
        assert_eq!(Replication::connect(&info).await.is_ok(), is_in, "{mode}");
        assert_eq!(connect(&info).await.is_ok(), is_in, "{mode}");
    }
}

#[tokio::test]
async fn a_heartbeat_proves_silence_until_it_was_left_and_not_until_it_is_read() {
    let mut s = Setting::new(cluster_options(), 64).await;
    s.make_flag().await;
    // As a server that is behind would bring it, between two commits of one click: long after both.
    const LEFT_AT: i64 = 1_700_000_000_000_000;
    s.sql(&format!("SELECT pg_logical_emit_message(false, 'flagpost', '{LEFT_AT}')")).await;
    s.sql("SELECT pg_logical_emit_message(false, 'flagpost', 'none of ours')").await;
    let task = s.follow_with(true).await;
    loop {
        let delivery = tokio::time::timeout(PATIENCE, s.items.recv()).await.unwrap().unwrap();
        if matches!(delivery.item, Item::Alive { .. }) && delivery.server_time.0 == LEFT_AT {
            break;
        }
    }
    s.stop.cancel();
    task.await.unwrap().unwrap();
}
