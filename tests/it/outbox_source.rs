//! Both sources give the same transactions: what the triggers wrote and what the stream brought, on one server.

use std::collections::BTreeSet;

use flagpost::change::{Field, Op, Row, Transaction};
use flagpost::schema::Table;
use flagpost::source::{Catalog, Outbox, Record, transactions};
use tokio_postgres::Client;

use crate::replication::Setting;
use crate::support::flagsmith::Schema;
use crate::support::replay::{Pace, Replay, cases};
use crate::support::{cluster_options, golden};

async fn setting() -> Setting {
    let setting = Setting::new(cluster_options(), 2_000).await;
    let catalog = Catalog::read(&setting.client, &setting.info, "public").await.unwrap();
    setting.sql(&Outbox::default().install_step(&catalog).sql).await;
    setting
}

async fn horizon(client: &Client) -> u64 {
    let sql = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text";
    client.query_one(sql, &[]).await.unwrap().get::<_, &str>(0).parse().unwrap()
}

/// What can be read of the outbox now.
async fn read(client: &Client) -> Vec<Transaction> {
    let horizon = horizon(client).await;
    let rows = client.query(Record::QUERY, &[&horizon.to_string()]).await.unwrap();
    let records: Vec<Record> = rows.iter().map(|row| Record::from_row(row).unwrap()).collect();
    let all = transactions(&records, horizon).unwrap();
    all.into_iter().filter(|transaction| !transaction.changes.is_empty()).collect()
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
    let mut s = setting().await;
    let _running = s.follow().await;
    let schema = Schema::read(&golden().join("schema.json"));
    let writer = s.cluster.connect("flagsmith").await.unwrap();
    let receiver = "127.0.0.1:1".parse().unwrap();
    let mut replay = Replay::new(&schema, &writer, receiver, Pace::AT_ONCE);
    let mut seen = BTreeSet::new();
    for path in cases() {
        let case = replay.read(&path);
        replay.case(&case).await;
        let outbox = read(&s.client).await;
        for transaction in &outbox {
            assert_same(&s.next().await, transaction);
            seen.extend(transaction.changes.iter().map(|change| change.table));
        }
        s.sql("DELETE FROM flagpost.outbox").await;
    }
    assert!(seen.len() > 12, "only {seen:?} were changed");
    assert_eq!(read(&s.client).await, []);
    // Nothing that only the stream had: the next that it brings is the last that was made.
    s.sql("TRUNCATE features_feature CASCADE").await;
    assert_same(&s.next().await, &read(&s.client).await[0]);
    s.stop.cancel();
}

#[tokio::test]
async fn every_column_of_every_table_has_the_same_text_whatever_the_session_is_set_to() {
    let mut s = setting().await;
    let _running = s.follow().await;
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
    s.sql("SET TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'SQL, DMY'; SET extra_float_digits = -3; SET IntervalStyle = iso_8601")
        .await;
    let mut compared = 0;
    for table in Table::ALL {
        let name = table.name();
        let columns = s
            .client
            .query(
                "SELECT attname::text, atttypid::regtype::text, format_type(atttypid, atttypmod) FROM pg_attribute
                 WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped",
                &[&name],
            )
            .await
            .unwrap();
        // Of everything a value of each kind, and NULL.
        s.sql(&format!("TRUNCATE {name} CASCADE")).await;
        s.next().await;
        s.sql("DELETE FROM flagpost.outbox").await;
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
        s.sql(&sql).await;
        let outbox = read(&s.client).await;
        assert_eq!(outbox.len(), 4, "{name}");
        for transaction in &outbox {
            assert_eq!(transaction.changes.len(), 2, "{name}");
            assert_same(&s.next().await, transaction);
            compared += 1;
        }
    }
    assert_eq!(compared, Table::ALL.len() * 4);
    s.stop.cancel();
}

#[tokio::test]
async fn a_transaction_that_commits_late_is_neither_skipped_nor_out_of_order() {
    let s = setting().await;
    s.sql(
        "INSERT INTO features_featurestate (id, enabled, environment_id, feature_id, created_at, updated_at, version, uuid)
         SELECT n, false, 1, n, now(), now(), 1, gen_random_uuid() FROM generate_series(1, 3) n; DELETE FROM flagpost.outbox",
    )
    .await;
    let late = s.cluster.connect("flagsmith").await.unwrap();
    late.batch_execute("BEGIN").await.unwrap();
    late.batch_execute("UPDATE features_featurestate SET enabled = true WHERE id = 1").await.unwrap();
    s.sql("UPDATE features_featurestate SET enabled = true WHERE id = 2").await;
    s.sql("UPDATE features_featurestate SET enabled = true WHERE id = 3").await;
    assert_eq!(read(&s.client).await, [], "the oldest is still open");
    // It changes what another has changed since it began.
    late.batch_execute("UPDATE features_featurestate SET enabled = false WHERE id = 3").await.unwrap();
    late.batch_execute("COMMIT").await.unwrap();
    let all = read(&s.client).await;
    assert_eq!(all.iter().map(|t| t.changes.len()).collect::<Vec<_>>(), [1, 1, 2]);
    assert!(all[2].xid < all[0].xid && all[0].commit_time < all[2].commit_time);
}
