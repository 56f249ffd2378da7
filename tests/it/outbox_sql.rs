//! The SQL of the outbox on a real server, written to by a role that may do what Flagsmith's may and no more.

use std::collections::BTreeSet;
use std::time::Duration;

use flagpost::demo::cluster::{Cluster, Options};
use flagpost::schema::Table;
use flagpost::source::{Catalog, ConnInfo, Outbox};
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::cli::{count, dump};
use crate::support::flagsmith::{self, Schema};
use crate::support::{cluster_options, golden};

/// A Flagsmith database whose tables belong to the role `flagsmith`.
struct Setting {
    admin: Client,
    /// Logged in as `flagsmith`.
    app: Client,
    catalog: Catalog,
    outbox: Outbox,
    cluster: Cluster,
}

impl Setting {
    async fn new(options: Options) -> Setting {
        let cluster = Cluster::start(options).await.unwrap();
        let schema = Schema::read(&golden().join("schema.json"));
        let admin = flagsmith::database(&cluster, &schema, "127.0.0.1:1".parse().unwrap()).await;
        admin.batch_execute(flagsmith::TAGS).await.unwrap();
        admin
            .batch_execute(
                "CREATE ROLE flagsmith LOGIN; GRANT CREATE ON SCHEMA public TO flagsmith;
                 DO $$ DECLARE t regclass; BEGIN
                     FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' LOOP
                         EXECUTE format('ALTER TABLE %s OWNER TO flagsmith', t);
                     END LOOP; END $$;
                 -- The test writes rows that refer to nothing.
                 ALTER TABLE tags_tag DROP CONSTRAINT tags_tag_project_id_fkey;
                 ALTER TABLE features_feature_tags DROP CONSTRAINT features_feature_tags_tag_id_fkey;
                 ALTER TABLE features_feature_tags DROP CONSTRAINT features_feature_tags_feature_id_fkey;",
            )
            .await
            .unwrap();
        let url = cluster.url("postgres", "flagsmith");
        let info = ConnInfo::parse(&url, None).unwrap();
        let catalog = Catalog::read(&admin, &info, "public").await.unwrap();
        let app = connect(&cluster, "flagsmith").await.0;
        Setting { admin, app, catalog, outbox: Outbox::default(), cluster }
    }

    async fn installed() -> Setting {
        let setting = Setting::new(cluster_options()).await;
        setting.install().await;
        setting
    }

    async fn install(&self) {
        self.admin.batch_execute(&self.outbox.install_step(&self.catalog).sql).await.unwrap();
    }

    async fn uninstall(&self) {
        self.admin.batch_execute(&self.outbox.uninstall_step(&self.catalog).sql).await.unwrap();
    }

    /// As Flagsmith.
    async fn sql(&self, sql: &str) {
        self.app.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    async fn admin(&self, sql: &str) {
        self.admin.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// What is in the outbox, taken out of it: operation, table, old row, new row.
    async fn take(&self) -> Vec<(String, String, Json, Json)> {
        let rows = self
            .admin
            .query(
                "WITH gone AS (DELETE FROM flagpost.outbox RETURNING *)
                 SELECT op::text, coalesce(table_name, ''), coalesce(old_row::text, 'null'), coalesce(new_row::text, 'null')
                 FROM gone ORDER BY seq",
                &[],
            )
            .await
            .unwrap();
        let json = |text: &str| serde_json::from_str(text).unwrap();
        rows.iter().map(|r| (r.get(0), r.get(1), json(r.get(2)), json(r.get(3)))).collect()
    }

    /// The operations in the outbox, taken out of it, as one word.
    async fn take_ops(&self) -> String {
        self.take().await.iter().map(|row| row.0.as_str()).collect()
    }

    async fn failures(&self) -> i64 {
        self.number("SELECT coalesce(pg_sequence_last_value('flagpost.failures'), 0)").await
    }

    async fn number(&self, sql: &str) -> i64 {
        self.admin.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// What the check finds wrong, as "finding subject detail".
    async fn findings(&self) -> Vec<String> {
        let rows = self.admin.query(&self.outbox.check_query(&self.catalog), &[]).await.unwrap();
        let text = |r: &tokio_postgres::Row, i| r.get::<_, String>(i);
        rows.iter().map(|r| format!("{} {} {}", text(r, 0), text(r, 1), text(r, 2))).collect()
    }

    /// Every column of a table with a value of its type.
    async fn values(&self, table: Table) -> Vec<(String, String)> {
        let rows = self
            .admin
            .query(
                "SELECT quote_ident(attname), atttypid::regtype::text, format_type(atttypid, atttypmod) FROM pg_attribute
                 WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
                &[&table.name()],
            )
            .await
            .unwrap();
        let value = |type_: &str| match type_ {
            "integer" | "bigint" => "7",
            "boolean" => "true",
            "double precision" => "33.3",
            "timestamp with time zone" => "'2026-03-07 14:59:07.04+01'",
            "uuid" => "'0a0b0c0d-0000-4000-8000-000000000007'",
            "json" | "jsonb" => "'{}'",
            // The cast cuts it to the column's length.
            "character varying" | "text" => "E'ü \"quoted\"\\n\\\\ €'",
            other => panic!("{} has a column of type {other}", table.name()),
        };
        let cast = |r: &tokio_postgres::Row| format!("CAST({} AS {})", value(r.get(1)), r.get::<_, &str>(2));
        rows.iter().map(|r| (r.get(0), cast(r))).collect()
    }

    /// The kept columns of the only row of a table, asked for by name.
    async fn kept(&self, table: Table) -> Json {
        let columns = self.catalog.columns(table).join("\", \"");
        let sql = format!("SELECT to_jsonb(q)::text FROM (SELECT \"{columns}\" FROM {}) q", table.name());
        let row = self.admin.query_one(&sql, &[]).await.unwrap();
        let mut row: Json = serde_json::from_str(row.get(0)).unwrap();
        for index in table.digested() {
            let name = table.columns()[*index].name;
            let digest: String = self
                .admin
                .query_one(
                    "SELECT left(encode(sha256($1::text::bytea), 'hex'), 32)",
                    &[&row[name].as_str().unwrap().replace('\\', "\\\\")],
                )
                .await
                .unwrap()
                .get(0);
            row[name] = digest.into();
        }
        row
    }
}

/// A connection and the notifications that come over it.
async fn connect(cluster: &Cluster, user: &str) -> (Client, mpsc::Receiver<String>) {
    let (client, mut connection) =
        tokio_postgres::connect(&cluster.url(user, "flagsmith"), NoTls).await.unwrap();
    let (out, notes) = mpsc::channel(1_000);
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(note) = message {
                out.try_send(format!("{}:{}", note.channel(), note.payload())).unwrap();
            }
        }
    });
    (client, notes)
}

const TOGGLE: &str = "UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1;";
const FLAG: &str = "INSERT INTO features_featurestate (id, enabled, environment_id, feature_id, created_at, updated_at, version, uuid)
    VALUES (1, false, 1, 1, now(), now(), 1, gen_random_uuid());";

#[tokio::test]
async fn every_operation_on_every_table_leaves_its_rows_with_the_kept_columns_and_no_others() {
    let s = Setting::installed().await;
    assert_eq!(s.catalog.tables.len(), Table::ALL.len());
    // A session looks at the size once a second: what a statement leaves must be the same whether it looks or not.
    const LOOKS: &str = "SET flagpost.looked = '';";
    for (table, first) in s.catalog.tables.keys().flat_map(|table| [(*table, LOOKS), (*table, "")]) {
        let name = table.name();
        s.sql(&format!("TRUNCATE {name} CASCADE")).await;
        s.take().await;
        let values = s.values(table).await;
        let (columns, literals): (Vec<&str>, Vec<&str>) =
            values.iter().map(|(column, value)| (column.as_str(), value.as_str())).unzip();
        let all = columns.join(", ");
        s.sql(&format!("{first} INSERT INTO {name} ({all}) VALUES ({})", literals.join(", "))).await;
        let row = s.kept(table).await;
        s.sql(&format!("{first} UPDATE {name} SET ({all}) = ROW ({all})")).await;
        s.sql(&format!("{first} DELETE FROM {name}; {first} TRUNCATE {name} CASCADE")).await;
        s.sql(&format!("DELETE FROM {name}; UPDATE {name} SET ({all}) = ROW ({all})")).await;
        let is_here = |row: &(String, String, Json, Json)| row.1 == name;
        let key = table.columns()[0].name;
        let found: Vec<_> = s.take().await.into_iter().filter(is_here).collect();
        let expected = [
            ("I", json!(null), row.clone()),
            ("U", json!(null), row.clone()),
            ("D", json!({ key: row[key] }), json!(null)),
            ("T", json!(null), json!(null)),
        ]
        .map(|(op, old, new)| (op.to_owned(), name.to_owned(), old, new));
        assert_eq!(found, expected, "{first} {name}");
    }
    assert_eq!((s.failures().await, s.findings().await), (0, vec![]));
}

#[tokio::test]
async fn tables_that_are_not_read_and_columns_that_are_not_named_stay_out() {
    let s = Setting::installed().await;
    s.admin("UPDATE users_ffadminuser SET password = 'hash-of-a-password', email = 'new@example.com'").await;
    s.admin("CREATE TABLE task_processor_task (id int); INSERT INTO task_processor_task VALUES (1)").await;
    let rows = s.take().await;
    assert!(!rows.is_empty() && rows.iter().all(|row| row.1 == "users_ffadminuser"), "{rows:?}");
    for (_, _, old, new) in &rows {
        let names: BTreeSet<&str> = new.as_object().unwrap().keys().map(String::as_str).collect();
        let kept: BTreeSet<&str> = Table::User.columns().iter().map(|column| column.name).collect();
        assert!(names.is_subset(&kept), "{names:?}");
        assert!(!format!("{old}{new}").contains("hash-of"));
    }
}

#[tokio::test]
async fn long_values_are_whole_and_a_key_that_changes_is_kept_as_it_was() {
    let s = Setting::installed().await;
    s.sql(FLAG).await;
    s.sql(
        "INSERT INTO features_featurestatevalue (id, type, string_value, feature_state_id, uuid)
         SELECT 1, 'unicode', string_agg(md5(n::text), ''), 1, gen_random_uuid() FROM generate_series(1, 320) n",
    )
    .await;
    s.take().await;
    s.sql("UPDATE features_featurestatevalue SET integer_value = 5").await;
    let rows = s.take().await;
    assert_eq!(rows[0].3["string_value"].as_str().unwrap().len(), 10_240);
    assert_eq!(rows[0].2, Json::Null, "the key is the same");

    // One row alone; and of a table whose key has another name.
    s.sql("UPDATE features_featurestatevalue SET id = 2").await;
    let version = "INSERT INTO feature_versioning_environmentfeatureversion
            (uuid, created_at, updated_at, environment_id, feature_id) VALUES ('00000000-0000-0000-0000-000000000001', now(), now(), 1, 1)";
    s.sql(version).await;
    s.sql("UPDATE feature_versioning_environmentfeatureversion SET uuid = '00000000-0000-0000-0000-000000000002'")
        .await;
    s.sql("UPDATE feature_versioning_environmentfeatureversion SET deleted_at = now()").await;
    let rows = s.take().await;
    let old: Vec<&Json> = rows.iter().map(|row| &row.2).collect();
    let uuid = json!({"uuid": "00000000-0000-0000-0000-000000000001"});
    assert_eq!(old, [&json!({"id": 1}), &Json::Null, &uuid, &Json::Null]);

    s.sql(
        "INSERT INTO features_featurestate SELECT (jsonb_populate_record(s, jsonb_build_object('id', n))).*
           FROM features_featurestate s, generate_series(2, 5000) n",
    )
    .await;
    s.take().await;
    s.sql("UPDATE features_featurestate SET id = id + 10000").await;
    let rows = s.take().await;
    assert_eq!(rows.len(), 5000);
    let ids: Vec<i64> = rows.iter().map(|row| row.2["id"].as_i64().unwrap()).collect();
    let stored: Vec<i32> = s
        .admin
        .query("SELECT id - 10000 FROM features_featurestate ORDER BY ctid", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(
        ids,
        stored.into_iter().map(i64::from).collect::<Vec<_>>(),
        "in the order in which they were changed"
    );
    assert!(rows.iter().all(|row| row.3["id"].as_i64().unwrap() == row.2["id"].as_i64().unwrap() + 10_000));
}

#[tokio::test]
async fn migrations_in_mid_life_fail_no_statement_and_rows_have_what_there_is() {
    let s = Setting::installed().await;
    s.sql(FLAG).await;
    s.take().await;
    // In one transaction rows and columns are changed, as Django does.
    s.sql(&format!(
        "BEGIN; {TOGGLE}
         ALTER TABLE features_featurestate ADD COLUMN novelty int DEFAULT 1; {TOGGLE}
         ALTER TABLE features_featurestate DROP COLUMN deleted_at CASCADE; {TOGGLE}
         ALTER TABLE features_featurestate RENAME COLUMN version TO edition; {TOGGLE}
         ALTER TABLE features_featurestate ALTER COLUMN edition TYPE bigint; {TOGGLE} COMMIT;"
    ))
    .await;
    let rows = s.take().await;
    assert_eq!(rows.iter().map(|row| row.0.as_str()).collect::<String>(), "UUUUU");
    assert!(rows[0].3.get("deleted_at").is_some() && rows[4].3.get("deleted_at").is_none());
    assert!(rows[2].3.get("version").is_some() && rows[3].3.get("version").is_none());
    assert!(rows.iter().all(|row| row.3.get("novelty").is_none() && row.3.get("edition").is_none()));
    // A session that has been at it before; then a column that the triggers have been waiting for.
    s.sql(&format!("ALTER TABLE features_featurestate ADD COLUMN deleted_at timestamptz; {TOGGLE}")).await;
    assert!(s.take().await[0].3.get("deleted_at").is_some());
    s.sql(&format!(
        "ALTER TABLE features_featurestate RENAME TO renamed; {}",
        TOGGLE.replace("features_featurestate", "renamed")
    ))
    .await;
    assert_eq!(s.take().await[0].1, "renamed");
    assert_eq!(
        s.findings().await.iter().filter(|f| f.starts_with("missing features_featurestate ")).count(),
        4
    );
    assert_eq!(s.failures().await, 0);
    s.uninstall().await;
    assert_eq!(count(&s.admin, "pg_trigger WHERE tgname LIKE 'flagpost%'").await, 0);
}

#[tokio::test]
async fn whatever_goes_wrong_in_a_trigger_flagsmiths_statement_succeeds_and_it_is_counted() {
    let s = Setting::installed().await;
    s.sql(FLAG).await;
    s.take().await;
    let before = s.number("SELECT count(*) FROM features_featurestate WHERE enabled").await;
    assert_eq!(before, 0);
    s.admin("REVOKE INSERT ON flagpost.outbox FROM flagpost_owner").await;
    s.sql(TOGGLE).await;
    s.sql(&format!("BEGIN; {TOGGLE} {TOGGLE} COMMIT")).await;
    assert_eq!((s.failures().await, count(&s.admin, "flagpost.failure").await), (3, 3));
    s.admin("GRANT INSERT ON flagpost.outbox TO flagpost_owner").await;
    // Rolled back: the sequence counts, the table does not.
    s.admin("ALTER TABLE flagpost.outbox ADD CONSTRAINT never CHECK (false) NOT VALID").await;
    s.sql(&format!("BEGIN; {TOGGLE} ROLLBACK")).await;
    assert_eq!((s.failures().await, count(&s.admin, "flagpost.failure").await), (4, 3));
    s.admin("ALTER TABLE flagpost.outbox DROP CONSTRAINT never").await;
    // Somebody holds a lock on it: one second.
    s.admin("BEGIN; LOCK flagpost.outbox").await;
    let started = std::time::Instant::now();
    s.sql(TOGGLE).await;
    assert!(started.elapsed() < Duration::from_secs(10));
    s.admin("COMMIT").await;
    assert_eq!(s.failures().await, 5);
    // At the commit.
    s.sql(&format!("BEGIN; {TOGGLE}")).await;
    s.sql(TOGGLE).await;
    s.admin("REVOKE INSERT ON flagpost.outbox FROM flagpost_owner").await;
    s.sql("COMMIT").await;
    s.admin("GRANT INSERT ON flagpost.outbox TO flagpost_owner").await;
    assert_eq!((s.take_ops().await.as_str(), s.failures().await), ("UU", 5), "no change is lost");
    // Without the tables the sequence still counts; without the sequence Flagsmith still works.
    s.admin("DROP TABLE flagpost.outbox, flagpost.failure").await;
    s.sql(TOGGLE).await;
    assert_eq!(s.failures().await, 6);
    s.admin("DROP SEQUENCE flagpost.failures").await;
    s.sql(TOGGLE).await;
    assert!(s.cluster.log_tail().contains("nor could that be noted"), "{}", s.cluster.log_tail());
    assert!(s.findings().await.contains(&"missing flagpost.outbox commits".to_owned()));
    // What was toggled is toggled: 1 + 2 + 1 + 2 + 2 times.
    assert_eq!(s.number("SELECT count(*) FROM features_featurestate WHERE enabled").await, 0);
    s.install().await;
    s.sql(TOGGLE).await;
    assert_eq!((s.take_ops().await.as_str(), s.findings().await), ("U", vec![]));
}

#[tokio::test]
async fn beyond_its_cap_nothing_is_written_and_every_statement_is_counted() {
    let mut s = Setting::new(cluster_options()).await;
    s.outbox.cap = 1 << 20;
    s.install().await;
    s.sql(FLAG).await;
    s.sql(
        "INSERT INTO features_featurestatevalue (id, type, feature_state_id, uuid)
         SELECT n, 'unicode', n, gen_random_uuid() FROM generate_series(1, 500) n",
    )
    .await;
    // 4 kB a row that do not compress.
    s.sql(
        "UPDATE features_featurestatevalue SET string_value =
               (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 128 + id % 2))",
    )
    .await;
    // A connection that has not looked at the size yet.
    let (late, _) = connect(&s.cluster, "flagsmith").await;
    let rows = count(&s.admin, "flagpost.outbox").await;
    for _ in 0..2 {
        late.batch_execute(TOGGLE).await.unwrap();
    }
    assert_eq!((count(&s.admin, "flagpost.outbox").await, s.failures().await), (rows, 2));
    let message: String =
        s.admin.query_one("SELECT message FROM flagpost.failure LIMIT 1", &[]).await.unwrap().get(0);
    assert!(message.contains("has reached its cap of 1048576 bytes"), "{message}");
    assert!(s.cluster.log_tail().contains("has reached its cap"));
    let findings = s.findings().await;
    assert!(
        findings.iter().any(|f| f.starts_with("nearly full"))
            && findings.contains(&"failures flagpost.failures 2".into())
    );
    s.admin("TRUNCATE flagpost.outbox").await;
    late.batch_execute(TOGGLE).await.unwrap();
    assert_eq!(s.take_ops().await, "U");
}

#[tokio::test]
async fn one_notification_a_transaction_and_a_time_at_its_commit() {
    let s = Setting::installed().await;
    s.sql(FLAG).await;
    let (listener, mut notes) = connect(&s.cluster, "postgres").await;
    listener.batch_execute("LISTEN flagpost").await.unwrap();
    s.sql(TOGGLE).await;
    s.sql("BEGIN").await;
    s.sql(TOGGLE).await;
    s.sql("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED").await;
    s.sql("SAVEPOINT a").await;
    s.sql(TOGGLE).await;
    s.sql("RELEASE a").await;
    s.sql(TOGGLE).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    s.sql("COMMIT").await;
    s.sql(&format!("BEGIN; {TOGGLE} ROLLBACK; UPDATE features_featurestate SET enabled = true WHERE false"))
        .await;
    // Another is just notifying: this one need not.
    s.admin("BEGIN; SELECT pg_advisory_xact_lock(7380380986249278324)").await;
    s.sql(TOGGLE).await;
    s.sql("BEGIN").await;
    s.sql(TOGGLE).await;
    s.sql("COMMIT").await;
    s.admin("COMMIT").await;
    // A mark behind them: notifications come in commit order.
    s.admin("NOTIFY flagpost, 'end'").await;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|note: &String| !note.ends_with("end")) {
        seen.push(tokio::time::timeout(Duration::from_secs(20), notes.recv()).await.unwrap().unwrap());
    }
    assert_eq!(seen, ["flagpost:", "flagpost:", "flagpost:end"]);
    // The last time of each transaction is its commit's, within what a busy machine takes.
    let rows = s
        .admin
        .query(
            "SELECT extract(epoch FROM pg_xact_commit_timestamp(xid::xid) - max(at))::float8, string_agg(op::text, '' ORDER BY seq)
             FROM flagpost.outbox GROUP BY xid ORDER BY max(seq)",
            &[],
        )
        .await
        .unwrap();
    let ops: Vec<&str> = rows.iter().map(|row| row.get(1)).collect();
    assert_eq!(ops, ["I", "U", "UCUUC", "U", "UC"]);
    assert_eq!(s.failures().await, 0);
    for row in &rows {
        let late: f64 = row.get(0);
        assert!((-0.001..0.03).contains(&late), "{late} s after the last time");
    }
}

#[tokio::test]
async fn what_is_rolled_back_leaves_nothing() {
    let s = Setting::installed().await;
    s.sql(FLAG).await;
    s.take().await;
    s.sql(&format!("BEGIN; {TOGGLE} ROLLBACK")).await;
    s.sql("BEGIN").await;
    s.sql("SAVEPOINT a").await;
    s.sql(TOGGLE).await;
    s.sql("ROLLBACK TO a").await;
    s.sql(&format!("SAVEPOINT b; {TOGGLE} RELEASE b")).await;
    s.sql(&format!("SAVEPOINT c; {TOGGLE} ROLLBACK TO c")).await;
    s.sql("COMMIT").await;
    assert_eq!(s.take_ops().await, "UC", "the commit is noted though the first row's savepoint is gone");
    s.sql(&format!("BEGIN; SAVEPOINT a; {TOGGLE} ROLLBACK TO a; COMMIT")).await;
    assert!(s.app.batch_execute(&format!("BEGIN; {TOGGLE} SELECT 1 / 0")).await.is_err());
    s.sql("ROLLBACK").await;
    assert_eq!((s.take_ops().await.as_str(), s.failures().await), ("", 0));
}

#[tokio::test]
async fn a_replica_session_is_captured_and_nobody_else_can_write_or_read_it() {
    let s = Setting::installed().await;
    s.sql(FLAG).await;
    s.take().await;
    s.admin(&format!("SET session_replication_role = replica; {TOGGLE} RESET session_replication_role"))
        .await;
    assert_eq!(s.take_ops().await, "U");
    for denied in [
        "SELECT * FROM flagpost.outbox",
        "INSERT INTO flagpost.outbox (op) VALUES ('T')",
        "SELECT flagpost.digested('{}', '')",
        "CREATE TEMP TABLE mine (id int); CREATE TRIGGER t AFTER TRUNCATE ON mine EXECUTE FUNCTION flagpost.capture()",
    ] {
        let error = s.app.batch_execute(denied).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{denied}");
    }
    let row = s
        .admin
        .query_one("SELECT rolcanlogin OR rolsuper FROM pg_roles WHERE rolname = 'flagpost_owner'", &[])
        .await
        .unwrap();
    assert!(!row.get::<_, bool>(0));
    let pinned = "pg_proc p WHERE pronamespace = 'flagpost'::regnamespace AND pg_get_userbyid(proowner) = 'flagpost_owner'
         AND 'search_path=pg_catalog, pg_temp' = ANY (proconfig)";
    assert_eq!(count(&s.admin, pinned).await, 3);
    // What a daemon's role needs.
    s.admin("CREATE ROLE reader LOGIN").await;
    s.admin(&s.outbox.grant_step("reader").sql).await;
    let (reader, _) = connect(&s.cluster, "reader").await;
    s.sql(TOGGLE).await;
    let taken = reader.execute("DELETE FROM flagpost.outbox WHERE seq > 0", &[]).await.unwrap();
    assert_eq!(taken, 1);
    reader.batch_execute("TABLE flagpost.failure; SELECT last_value FROM flagpost.failures").await.unwrap();
}

#[tokio::test]
async fn installed_twice_it_is_the_same_and_uninstalled_it_is_gone() {
    let s = Setting::new(cluster_options()).await;
    let roles = "pg_roles";
    let (before, roles_before) = (dump(&s.cluster), count(&s.admin, roles).await);
    let findings = s.findings().await;
    assert_eq!(findings.len(), s.catalog.tables.len() * 4 + 1, "{findings:?}");
    s.install().await;
    let installed = dump(&s.cluster);
    assert_ne!(installed, before);
    s.sql(FLAG).await;
    s.install().await;
    assert_eq!(dump(&s.cluster), installed);
    assert_eq!((s.take_ops().await.as_str(), s.findings().await), ("I", vec![]), "what was captured stays");
    s.admin("ALTER TABLE features_feature DISABLE TRIGGER flagpost_update").await;
    assert_eq!(s.findings().await, ["not always enabled features_feature flagpost_update"]);
    s.install().await;
    assert_eq!(s.findings().await, Vec::<String>::new());
    s.uninstall().await;
    assert_eq!((dump(&s.cluster), count(&s.admin, roles).await), (before, roles_before));
    s.uninstall().await;
    s.sql(TOGGLE).await;
}

#[tokio::test]
async fn the_owner_of_the_tables_installs_and_uninstalls_it_without_a_superuser() {
    let s = Setting::new(cluster_options()).await;
    let before = dump(&s.cluster);
    s.admin("ALTER ROLE flagsmith CREATEROLE; GRANT CREATE ON DATABASE flagsmith TO flagsmith").await;
    s.sql(&s.outbox.install_step(&s.catalog).sql).await;
    s.sql(&s.outbox.install_step(&s.catalog).sql).await;
    s.sql(FLAG).await;
    assert_eq!((s.take_ops().await.as_str(), s.findings().await), ("I", vec![]));
    s.sql(&s.outbox.uninstall_step(&s.catalog).sql).await;
    s.admin("REVOKE CREATE ON DATABASE flagsmith FROM flagsmith").await;
    assert_eq!(dump(&s.cluster), before);
    assert_eq!(count(&s.admin, "pg_roles WHERE rolname = 'flagpost_owner'").await, 0);
}
