//! What a running Flagsmith did, replayed on a real database.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use flagpost::demo::cluster::Cluster;
use jiff::SignedDuration;
use serde_json::{Map, Value as Json};
use tokio_postgres::Client;

use crate::support::flagsmith::{self, Schema};
use crate::support::replay::{self, Pace, Replay, timestamp};
use crate::support::{cluster_options, golden};

const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

/// The rows that a table must have, by the text of their key.
#[derive(Default)]
struct Rows(BTreeMap<String, Map<String, Json>>);

/// What the recorded changes come to.
struct Expected<'a> {
    schema: &'a Schema,
    tables: BTreeMap<String, Rows>,
}

impl Expected<'_> {
    fn key(&self, table: &str, row: &Map<String, Json>) -> String {
        self.schema.primary_key(table).iter().map(|c| row[*c].to_string()).collect::<Vec<_>>().join(" ")
    }

    fn insert(&mut self, table: &str, row: &Map<String, Json>) {
        let key = self.key(table, row);
        let rows = self.tables.entry(table.to_owned()).or_default();
        assert!(rows.0.insert(key.clone(), row.clone()).is_none(), "{table} has a row {key} already");
    }

    fn change(&mut self, change: &Json) {
        let table = change["table"].as_str().unwrap();
        if change["op"] == "insert" {
            return self.insert(table, change["new"].as_object().unwrap());
        }
        let key = self.key(table, change["key"].as_object().unwrap());
        let mut row = self.tables.get_mut(table).and_then(|rows| rows.0.remove(&key)).unwrap();
        if change["op"] == "update" {
            row.extend(change["new"].as_object().unwrap().clone());
            self.insert(table, &row);
        }
    }

    /// Compares with the database; `live_from` is not compared, since the replay moves it.
    async fn assert_in(&self, client: &Client) -> usize {
        let mut compared = 0;
        for table in self.schema.tables() {
            let sql = format!("SELECT to_jsonb(t)::text FROM {table} t");
            let mut actual = BTreeMap::new();
            for row in client.query(&sql, &[]).await.unwrap() {
                let row: Json = serde_json::from_str(row.get(0)).unwrap();
                let row = row.as_object().unwrap().clone();
                actual.insert(self.key(table, &row), row);
            }
            let none = Rows::default();
            let expected = &self.tables.get(table).unwrap_or(&none).0;
            assert!(expected.keys().eq(actual.keys()), "the keys of {table} differ");
            for (key, row) in expected {
                for (column, value) in row.iter().filter(|(column, _)| *column != "live_from") {
                    let value = self.schema.value(table, column, value);
                    let got = &actual[key][column];
                    let type_ = self.schema.column_type(table, column).unwrap();
                    assert!(equal(type_, &value, got), "{table} {key} {column}: {got} instead of {value}");
                    compared += 1;
                }
            }
        }
        compared
    }
}

fn equal(type_: &str, expected: &Json, got: &Json) -> bool {
    match (expected, got) {
        (Json::String(_), Json::String(_)) if type_.starts_with("timestamp") => {
            timestamp(expected) == timestamp(got)
        }
        (Json::Number(a), Json::Number(b)) => a.as_f64() == b.as_f64(),
        _ => expected == got,
    }
}

#[tokio::test]
async fn after_the_replay_of_all_cases_the_database_has_the_recorded_rows() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let schema = Schema::read(&golden().join("schema.json"));
    let client = flagsmith::database(&cluster, &schema, NOWHERE).await;
    let mut expected = Expected { schema: &schema, tables: BTreeMap::new() };
    let base = flagsmith::read(&golden().join("base.json"), NOWHERE);
    for (table, rows) in base.as_object().unwrap() {
        rows.as_array().unwrap().iter().for_each(|row| expected.insert(table, row.as_object().unwrap()));
    }
    let mut replay = Replay::new(&schema, &client, NOWHERE, Pace::AT_ONCE);
    let started = std::time::Instant::now();
    let cases = replay::cases();
    assert_eq!(cases.len(), 91);
    for path in cases {
        let case = replay.read(&path);
        let transactions = case["transactions"].as_array().unwrap();
        transactions.iter().flat_map(|t| t["changes"].as_array().unwrap()).for_each(|c| expected.change(c));
        let commits = replay.case(&case).await;
        assert_eq!(commits.len(), transactions.len());
        assert!(commits.is_sorted_by_key(|c| c.at), "{}: {commits:?}", path.display());
    }
    eprintln!("replayed after {:?}", started.elapsed());
    let compared = expected.assert_in(&client).await;
    assert!(compared > 5000, "only {compared} values compared");
    eprintln!("{compared} values compared");
    // `Expected` reads JSON columns as the loader does, so this is asked of the database alone.
    let json = "SELECT bool_and(jsonb_typeof(rules_data) = 'array') FROM segments_historicalsegment";
    assert!(client.query_one(json, &[]).await.unwrap().get::<_, bool>(0));
    let url = "SELECT count(*) FROM environments_webhook WHERE url LIKE 'http://127.0.0.1:9/%'";
    assert!(client.query_one(url, &[]).await.unwrap().get::<_, i64>(0) > 0, "the receiver is replaced");
}

#[tokio::test]
async fn a_replay_keeps_the_gaps_between_commits() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let schema = Schema::read(&golden().join("schema.json"));
    let client = flagsmith::database(&cluster, &schema, NOWHERE).await;
    let mut replay = Replay::new(&schema, &client, NOWHERE, Pace::AS_RECORDED);
    let mut errors = Vec::new();
    for path in replay::cases().iter().take(9) {
        let case = replay.read(path);
        let recorded: Vec<_> =
            case["transactions"].as_array().unwrap().iter().map(|t| timestamp(&t["commit_time"])).collect();
        let commits = replay.case(&case).await;
        for (commits, recorded) in commits.windows(2).zip(recorded.windows(2)) {
            let gap = commits[1].at.duration_since(commits[0].at);
            let asked = recorded[1].duration_since(recorded[0]);
            let asked = asked.min(Pace::AS_RECORDED.max_gap.try_into().unwrap());
            errors.push((gap - asked).abs());
        }
    }
    // One of them may be late on a busy machine; most are not.
    errors.sort();
    assert!(errors[errors.len() / 2] < SignedDuration::from_millis(20), "{errors:?}");
    eprintln!("gaps wrong by {:?} at most, {:?} as a rule", errors.last(), errors[errors.len() / 2]);
}

#[tokio::test]
async fn a_scheduled_change_lies_as_far_ahead_as_it_did_and_later_commits_come_after_it() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let schema = Schema::read(&golden().join("schema.json"));
    let client = flagsmith::database(&cluster, &schema, NOWHERE).await;
    for (max_ahead, expected) in [(SignedDuration::from_hours(1), 5_896_746), (CLOSER, 1_000_000)] {
        let tables: Vec<&str> = schema.tables().collect();
        client.batch_execute(&format!("TRUNCATE {}", tables.join(", "))).await.unwrap();
        schema.load(&client, &golden().join("base.json"), NOWHERE).await;
        let mut replay = Replay::new(&schema, &client, NOWHERE, Pace { max_gap: Duration::ZERO, max_ahead });
        let cases = replay::cases();
        for path in &cases[..77] {
            let case = replay.read(path);
            replay.case(&case).await;
        }
        let case = replay.read(&cases[77]);
        assert_eq!(case["case"], "078-v2-version-scheduled");
        let commits = replay.case(&case).await;
        let live_from = live_from(&client, "ab271599-2a6e-4832-b67a-1a27ad7702d7").await;
        let ahead = live_from - commits[1].at.as_microsecond();
        assert!((ahead - expected).abs() < 500_000, "{ahead} µs ahead");
        if max_ahead == CLOSER {
            let case = replay.read(&cases[78]);
            let commits = replay.case(&case).await;
            assert!(commits[0].at.as_microsecond() > live_from);
        }
    }
}

const CLOSER: SignedDuration = SignedDuration::from_secs(1);

async fn live_from(client: &Client, version: &str) -> i64 {
    let sql = "SELECT (extract(epoch FROM live_from) * 1000000)::bigint
        FROM feature_versioning_environmentfeatureversion WHERE uuid::text = $1";
    client.query_one(sql, &[&version]).await.unwrap().get(0)
}

#[tokio::test]
async fn the_tables_of_2020_can_be_made() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    cluster.create_database("flagsmith").await.unwrap();
    let client = cluster.connect("flagsmith").await.unwrap();
    let schema = Schema::read(&golden().join("schema-2020.json"));
    schema.create(&client).await;
    for table in schema.tables() {
        let sql = format!("SELECT * FROM {table}");
        assert!(client.query(&sql, &[]).await.unwrap().is_empty());
    }
}
