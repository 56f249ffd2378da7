//! Both sources give the same transactions: what the triggers wrote and what the stream brought, on one server.

use std::collections::BTreeSet;
use std::time::Duration;

use flagpost::change::{Field, Lsn, Op, Row, RowChange, Transaction};
use flagpost::schema::{Table, audit_log};
use flagpost::source::{
    Catalog, Channels, Delivery, Feed, Item, Origin, Outbox, Reading, claim_outbox, outbox_view, system_id,
};
use tokio::sync::{mpsc, watch};

use crate::cli::count;
use crate::replication::Setting;
use crate::support::flagsmith::Schema;
use crate::support::replay::{Pace, Replay, cases};
use crate::support::{cluster_options, golden};

const PATIENCE: Duration = Duration::from_secs(20);

/// A database that is read both ways.
struct Both {
    stream: Setting,
    items: mpsc::Receiver<Delivery>,
    durable: watch::Sender<Lsn>,
}

impl Both {
    async fn new() -> Both {
        let stream = Setting::new(cluster_options(), 2_000).await;
        let catalog = Catalog::read(&stream.client, &stream.info, "public").await.unwrap();
        stream.sql(&Outbox::default().install_step(&catalog).sql).await;
        let ledger = claim_outbox(&stream.client, &stream.info).await.unwrap();
        let view = outbox_view(&stream.info).await.unwrap();
        let (out, items) = mpsc::channel(2_000);
        let (durable, durable_receiver) = watch::channel(view.position);
        let reading = Reading {
            info: stream.info.clone(),
            system_id: system_id(&stream.client, &stream.info).await.unwrap(),
            ledger,
            from: view.position,
            place: view.cursor.unwrap().parse().unwrap(),
            poll: Duration::from_secs(1),
            until: None,
        };
        let channels = Channels::new(out, durable_receiver);
        let stop = stream.stop.clone();
        let feed = Feed::open(Origin::Outbox(reading), channels).await.unwrap();
        tokio::spawn(async move { feed.follow(&stop).await.unwrap() });
        Both { stream, items, durable }
    }

    /// The next transaction of the outbox. It is durable then.
    async fn next(&mut self) -> Transaction {
        loop {
            let delivery = tokio::time::timeout(PATIENCE, self.items.recv()).await.unwrap().unwrap();
            if let Item::Transaction(transaction, _) = delivery.item {
                self.durable.send_replace(transaction.end_lsn);
                return transaction;
            }
        }
    }

    /// The transactions that both bring, until the one that makes this mark.
    async fn compare(&mut self, mark: &str) -> BTreeSet<Table> {
        self.stream
            .sql(&format!(
                "INSERT INTO audit_auditlog (id, created_date, log, is_system_event)
                 SELECT coalesce(max(id), 0) + 1000000, now(), '{mark}', false FROM audit_auditlog"
            ))
            .await;
        let mut seen = BTreeSet::new();
        loop {
            let (a, b) = (self.stream.next().await, self.next().await);
            assert_same(&a, &b);
            seen.extend(b.changes.iter().map(|change| change.table));
            if b.changes.iter().any(|change| is_mark(change, mark)) {
                return seen;
            }
        }
    }
}

fn is_mark(change: &RowChange, mark: &str) -> bool {
    matches!(&change.op, Op::Insert { new } if change.table == Table::AuditLog && new.text(audit_log::LOG) == Some(mark))
}

fn assert_row(stream: &Row, outbox: &Row, what: &str) {
    assert_eq!(stream.len(), outbox.len(), "{what}");
    for (index, (a, b)) in stream.fields().zip(outbox.fields()).enumerate() {
        assert!(a == Field::Unchanged || a == b, "{what}, column {index}: {a:?} and {b:?}");
    }
}

#[track_caller]
fn assert_same(stream: &Transaction, outbox: &Transaction) {
    assert_eq!((stream.xid, stream.changes.len()), (outbox.xid, outbox.changes.len()));
    assert_eq!(stream.commit_time, outbox.commit_time);
    for (a, b) in stream.changes.iter().zip(&outbox.changes) {
        let what = format!("{} in {}", a.table.name(), stream.xid);
        assert_eq!(a.table, b.table, "{what}");
        match (&a.op, &b.op) {
            (Op::Insert { new: a }, Op::Insert { new: b }) => assert_row(a, b, &what),
            (Op::Update { old_key: a_key, new: a }, Op::Update { old_key: b_key, new: b }) => {
                assert_eq!(a_key, b_key, "{what}");
                assert_row(a, b, &what);
            }
            (a, b) => assert_eq!(a, b, "{what}"),
        }
    }
}

#[tokio::test]
async fn all_golden_cases_give_the_same_transactions_in_both_sources() {
    let mut both = Both::new().await;
    let _running = both.stream.follow().await;
    let schema = Schema::read(&golden().join("schema.json"));
    let writer = both.stream.cluster.connect("flagsmith").await.unwrap();
    let mut replay = Replay::new(&schema, &writer, "127.0.0.1:1".parse().unwrap(), Pace::AT_ONCE);
    let mut seen = BTreeSet::new();
    for path in cases() {
        let case = replay.read(&path);
        replay.case(&case).await;
        seen.extend(both.compare(path.to_str().unwrap()).await);
    }
    assert!(seen.len() > 12, "only {seen:?} were changed");
    both.stream.sql("TRUNCATE features_feature CASCADE").await;
    assert_same(&both.stream.next().await, &both.next().await);
    // What is durable is taken away.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while count(&both.stream.client, "flagpost.outbox").await > 0 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    both.stream.stop.cancel();
}

#[tokio::test]
async fn every_column_of_every_table_has_the_same_text_whatever_the_session_is_set_to() {
    let mut both = Both::new().await;
    let _running = both.stream.follow().await;
    let values = |type_: &str| -> &[&str] {
        match type_ {
            "integer" | "bigint" => &["-7", "2147483647", "0"],
            "boolean" => &["true", "false", "true"],
            "double precision" => &["33.333333333333336", "1e15", "0.00001"],
            "timestamp with time zone" => {
                &["'2026-03-07 14:59:07.040100+01'", "'infinity'", "'0044-03-15 12:00:00+00 BC'"]
            }
            "uuid" => &["'0A0B0C0D-0000-4000-8000-000000000007'"; 3],
            "json" | "jsonb" => &["'{}'"; 3],
            "character varying" | "text" => &["E'ü \"\\\\\\t\\n 🎉'", "''", "'null'"],
            other => panic!("a column of type {other}"),
        }
    };
    both.stream.sql("SET TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'SQL, DMY'; SET extra_float_digits = -3; SET IntervalStyle = iso_8601")
        .await;
    let mut compared = 0;
    for table in Table::ALL {
        let name = table.name();
        let columns = both
            .stream
            .client
            .query(
                "SELECT attname::text, atttypid::regtype::text, format_type(atttypid, atttypmod) FROM pg_attribute
                 WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped",
                &[&name],
            )
            .await
            .unwrap();
        // Of everything a value of each kind, and NULL.
        both.stream.sql(&format!("TRUNCATE {name} CASCADE")).await;
        assert_same(&both.stream.next().await, &both.next().await);
        let mut sql = String::from("SET session_replication_role = replica;");
        for column in &columns {
            let column: &str = column.get(0);
            if column != table.columns()[0].name {
                sql.push_str(&format!("ALTER TABLE {name} ALTER \"{column}\" DROP NOT NULL;"));
            }
        }
        for round in 0..4 {
            let list = columns.iter().map(|row| {
                let (column, type_): (&str, &str) = (row.get(0), row.get(1));
                let value = match round {
                    3 if column == table.columns()[0].name => {
                        if type_ == "uuid" {
                            "'00000000-0000-4000-8000-000000000008'"
                        } else {
                            "'8'"
                        }
                    }
                    3 => "NULL",
                    round => values(type_)[round],
                };
                format!("CAST({value} AS {})", row.get::<_, &str>(2))
            });
            let list: Vec<String> = list.collect();
            let names: Vec<String> = columns.iter().map(|c| format!("\"{}\"", c.get::<_, &str>(0))).collect();
            // One row at a time, since a uuid is the same in all of them.
            sql.push_str(&format!(
                "BEGIN; INSERT INTO {name} ({}) VALUES ({}); DELETE FROM {name}; COMMIT;",
                names.join(", "),
                list.join(", ")
            ));
        }
        both.stream.sql(&sql).await;
        for _ in 0..4 {
            let transaction = both.next().await;
            assert_eq!(transaction.changes.len(), 2, "{name}");
            assert_same(&both.stream.next().await, &transaction);
            compared += 1;
        }
    }
    assert_eq!(compared, Table::ALL.len() * 4);
    both.stream.stop.cancel();
}

#[tokio::test]
async fn whatever_kind_of_statement_changes_rows_both_sources_have_them() {
    let mut both = Both::new().await;
    let _running = both.stream.follow().await;
    let version: i32 = both
        .stream
        .client
        .query_one("SELECT current_setting('server_version_num')::int", &[])
        .await
        .unwrap()
        .get(0);
    let mut statements = vec![
        "INSERT INTO features_featurestatevalue (id, type, string_value, feature_state_id, uuid)
         SELECT n, 'unicode', 'first', n, gen_random_uuid() FROM generate_series(1, 3) n",
        // Django's bulk_create with update_conflicts.
        "INSERT INTO features_featurestatevalue (id, type, string_value, feature_state_id, uuid)
         VALUES (1, 'unicode', 'again', 1, gen_random_uuid())
         ON CONFLICT (id) DO UPDATE SET string_value = excluded.string_value",
        // Rows of two tables, by one statement, without a change of the third.
        "WITH changed AS (UPDATE features_featurestatevalue SET integer_value = 7 WHERE id = 2 RETURNING id)
         INSERT INTO audit_auditlog (id, created_date, log, is_system_event) SELECT 77, now(), id::text, false FROM changed",
        "UPDATE features_featurestatevalue v SET string_value = o.string_value FROM features_featurestatevalue o
         WHERE v.id = 3 AND o.id = 1",
        "DELETE FROM features_featurestatevalue USING generate_series(2, 3) n WHERE id = n",
        "DO $$ BEGIN
             FOR n IN 1..3 LOOP
                 BEGIN
                     UPDATE features_featurestatevalue SET integer_value = n;
                     IF n = 2 THEN RAISE EXCEPTION 'this one is taken back'; END IF;
                 EXCEPTION WHEN raise_exception THEN NULL;
                 END;
             END LOOP;
         END $$",
    ];
    if version >= 150_000 {
        statements.push(
            "MERGE INTO features_featurestatevalue v USING (SELECT 1 AS id) n ON v.id = n.id
             WHEN MATCHED THEN UPDATE SET string_value = 'merged'",
        );
    }
    for statement in statements {
        both.stream.sql(statement).await;
        let (a, b) = (both.stream.next().await, both.next().await);
        assert!(!b.changes.is_empty(), "{statement}");
        assert_same(&a, &b);
    }
    // COPY is one statement of many rows.
    let lines = "1\tunicode\tcopied\t11\t0a0b0c0d-0000-4000-8000-000000000011\n2\tunicode\t\\N\t12\t0a0b0c0d-0000-4000-8000-000000000012\n";
    both.stream.sql("TRUNCATE features_featurestatevalue").await;
    assert_same(&both.stream.next().await, &both.next().await);
    let copy = "COPY features_featurestatevalue (id, type, string_value, feature_state_id, uuid) FROM STDIN";
    let sink = both.stream.client.copy_in(copy).await.unwrap();
    futures_util::pin_mut!(sink);
    futures_util::SinkExt::send(&mut sink, bytes::Bytes::from_static(lines.as_bytes())).await.unwrap();
    sink.finish().await.unwrap();
    let (a, b) = (both.stream.next().await, both.next().await);
    assert_eq!(b.changes.len(), 2);
    assert_same(&a, &b);
    both.stream.stop.cancel();
}
