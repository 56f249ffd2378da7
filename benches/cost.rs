//! `make bench`, second part: what capturing costs Flagsmith itself. PostgreSQL's own `pgbench` writes as Flagsmith writes, to a
//! server that syncs every commit; measured is how long Flagsmith waits, with nothing installed, with a replication slot that is
//! read, and with the outbox's triggers.
//!
//! These machines are noisy, so the three take turns in short rounds, and what counts is the ratio to the round's own plain
//! write: the tables have the median over the rounds of each figure and of each ratio. Each of the three has a server of its
//! own, since a slot's reader decodes what is written to any database of its server, and since servers with triggers have no
//! `wal_level = logical`.
//!
//! Words as arguments pick scripts: `cargo bench --bench cost -- update click`; `rounds=N` and `seconds=N` change the pace.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "the tests' support is shared, and a bench needs only a part of it"
)]

#[path = "../tests/it/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use flagpost::change::Lsn;
use flagpost::demo::cluster::{Cluster, Options, find_bindir};
use flagpost::source::{
    Catalog, Channels, ConnInfo, Delivery, Feed, Follow, Item, Names, Origin, Outbox, QUEUE, Reading,
    claim_outbox, outbox_view, system_id,
};
use support::flagsmith::{self, Schema};
use support::golden;
use support::process::Installation;
use tokio::sync::{mpsc, watch};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// One autocommit statement: a flag is switched. Django writes all columns.
const UPDATE: &str = "\\set id random(1001, 2000)
\\set enabled random(0, 1)
UPDATE features_featurestate SET enabled = (:enabled = 1), environment_id = 1, feature_id = :id, identity_id = NULL, feature_segment_id = NULL, created_at = '2026-11-24T02:35:23.988495+00:00'::timestamptz, live_from = '2026-11-24T02:35:23.987160+00:00'::timestamptz, updated_at = now(), version = 1, change_request_id = NULL, uuid = '37e03cf5-933e-4b36-90c2-21575de5400b'::uuid, deleted_at = NULL, environment_feature_version_id = NULL, mv_hashing_salt = NULL WHERE id = :id;
";

/// What one click makes of state and value: the transactions of `tests/golden/cases/014-value-and-enabled-changed.json`.
const CLICK: &str = "\\set id random(1001, 2000)
\\set environment random(1, 100)
UPDATE features_featurestatevalue SET string_value = md5(:id::text) WHERE id = :id;
INSERT INTO features_historicalfeaturestatevalue (id, type, string_value, history_id, history_date, history_type, feature_state_id, history_user_id)
    VALUES (:id, 'unicode', md5(:id::text), nextval('ids'), now(), '~', :id, 1);
BEGIN;
UPDATE features_featurestate SET enabled = NOT enabled, updated_at = now() WHERE id = :id;
INSERT INTO features_historicalfeaturestate (id, enabled, history_id, history_date, history_type, environment_id, feature_id, history_user_id, created_at, live_from, updated_at, version)
    VALUES (:id, true, nextval('ids'), now(), '~', 1, :id, 1, now(), now(), now(), 1);
COMMIT;
BEGIN;
INSERT INTO audit_auditlog (id, created_date, log, author_id, environment_id, related_object_id, related_object_type, project_id, is_system_event, history_record_class_path, history_record_id)
    VALUES (nextval('ids'), now(), 'Remote config value updated for feature: banner_text', 1, :environment, :id, 'FEATURE_STATE', 1, false, 'features.models.HistoricalFeatureStateValue', 1);
UPDATE environments_environment SET updated_at = now() WHERE id = :environment;
COMMIT;
BEGIN;
INSERT INTO audit_auditlog (id, created_date, log, author_id, environment_id, related_object_id, related_object_type, project_id, is_system_event, history_record_class_path, history_record_id)
    VALUES (nextval('ids'), now(), 'Flag state updated for feature: banner_text', 1, :environment, :id, 'FEATURE_STATE', 1, false, 'features.models.HistoricalFeatureState', 1);
UPDATE environments_environment SET updated_at = now() WHERE id = :environment;
COMMIT;
";

/// A thousand flags, a hundred environments, ids for what is inserted, and the indexes that Django makes for foreign keys (the
/// recorded schema has none).
const ROWS: &str = "
    INSERT INTO features_featurestate (id, enabled, environment_id, feature_id, created_at, live_from, updated_at, version, uuid)
        SELECT n, false, 1, n, now(), now(), now(), 1, gen_random_uuid() FROM generate_series(1001, 2000) n;
    INSERT INTO features_featurestatevalue (id, type, string_value, feature_state_id, uuid)
        SELECT n, 'unicode', md5(n::text), n, gen_random_uuid() FROM generate_series(1001, 2000) n;
    INSERT INTO environments_environment (id, name, created_date, api_key, project_id, webhooks_enabled, allow_client_traits,
            updated_at, use_mv_v2_evaluation, hide_sensitive_data, use_v2_feature_versioning,
            use_identity_overrides_in_local_eval, is_creating, uuid)
        SELECT n, 'environment ' || n, now(), md5(n::text), 1, false, true, now(), true, false, false, true, false, gen_random_uuid()
        FROM generate_series(1, 100) n;
    CREATE SEQUENCE ids;
    DO $$ DECLARE c record; BEGIN
        FOR c IN SELECT attrelid::regclass AS relation, attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
                 WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 AND attname LIKE '%\\_id'
                       AND attname NOT IN ('history_id', 'related_object_id', 'history_record_id') LOOP
            EXECUTE format('CREATE INDEX ON %s (%I)', c.relation, c.attname);
        END LOOP; END $$;";

/// Between two confirmations.
const CONFIRM_EVERY: Duration = Duration::from_millis(500);

/// What is installed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Nothing,
    Decoding,
    Triggers,
}

impl Variant {
    const ALL: [Variant; 3] = [Variant::Nothing, Variant::Decoding, Variant::Triggers];

    fn name(self) -> &'static str {
        match self {
            Variant::Nothing => "nothing installed",
            Variant::Decoding => "logical decoding",
            Variant::Triggers => "triggers",
        }
    }
}

/// A server with what is installed on it, and what reads it.
struct Scene {
    cluster: Cluster,
    client: Client,
    stop: CancellationToken,
}

impl Scene {
    async fn new(variant: Variant) -> Scene {
        let wal_level = if variant == Variant::Decoding { "logical" } else { "replica" };
        // As in production: the scratch cluster's own default is not to sync.
        let options = Options::default()
            .set("fsync", "on")
            .set("synchronous_commit", "on")
            .set("wal_level", wal_level)
            .set("shared_buffers", "128MB");
        let cluster = Cluster::start(options).await.unwrap();
        let schema = Schema::read(&golden().join("schema.json"));
        let client = flagsmith::database(&cluster, &schema, "127.0.0.1:1".parse().unwrap()).await;
        client.batch_execute(ROWS).await.unwrap();
        client.batch_execute("VACUUM ANALYZE").await.unwrap();
        let scene = Scene { cluster, client, stop: CancellationToken::new() };
        match variant {
            Variant::Nothing => {}
            Variant::Decoding => scene.decode().await,
            Variant::Triggers => scene.trigger().await,
        }
        scene
    }

    /// Publication and slot, and a task that reads and confirms.
    async fn decode(&self) {
        let url = self.cluster.url("postgres", "flagsmith");
        Installation::new(&url).run(&["setup", "--no-mirror"]).await.success();
        let info = ConnInfo::parse(&url, None).unwrap();
        let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'flagpost'";
        let from = self.client.query_one(sql, &[]).await.unwrap().get::<_, &str>(0).parse().unwrap();
        let names =
            Names { slot: "flagpost".into(), publication: "flagpost".into(), schema: "public".into() };
        let catalog = Catalog::read(&self.client, &info, "public").await.unwrap();
        let system_id = system_id(&self.client, &info).await.unwrap();
        self.read(Origin::Replication(Follow::new(info, names, catalog, system_id, from)), from).await;
    }

    /// The outbox, and a task that reads it and takes away what it has read.
    async fn trigger(&self) {
        let info = ConnInfo::parse(&self.cluster.url("postgres", "flagsmith"), None).unwrap();
        let catalog = Catalog::read(&self.client, &info, "public").await.unwrap();
        self.client.batch_execute(&Outbox::default().install_step(&catalog).sql).await.unwrap();
        let ledger = claim_outbox(&self.client, &info).await.unwrap();
        let system_id = system_id(&self.client, &info).await.unwrap();
        let view = outbox_view(&info).await.unwrap();
        let (place, poll) = (view.cursor.unwrap().parse().unwrap(), Duration::from_secs(1));
        let reading = Reading { info, system_id, ledger, from: view.position, place, poll, until: None };
        self.read(Origin::Outbox(reading), view.position).await;
    }

    async fn read(&self, origin: Origin, from: Lsn) {
        let (out, mut items) = mpsc::channel(QUEUE);
        let (durable, receiver) = watch::channel(from);
        let channels = Channels::new(out, receiver);
        let stop = self.stop.clone();
        let feed = Feed::open(origin, channels).await.unwrap();
        tokio::spawn(async move { feed.follow(&stop).await.map(drop).unwrap() });
        tokio::spawn(async move {
            // Confirmed as often as the daemon does while its coverage watch looks.
            let mut confirmed_at = Instant::now();
            let mut all = Vec::new();
            while items.recv_many(&mut all, QUEUE).await > 0 {
                let position = |delivery: &Delivery| match &delivery.item {
                    Item::Transaction(transaction, _) => transaction.end_lsn,
                    Item::Alive { position, .. } => *position,
                };
                if confirmed_at.elapsed() >= CONFIRM_EVERY {
                    durable.send_replace(all.iter().map(position).max().unwrap());
                    confirmed_at = Instant::now();
                }
                all.clear();
            }
        });
    }

    /// Runs a script for so long; what each of its runs took, in milliseconds, sorted.
    async fn pgbench(&self, script: &str, clients: usize, time: Duration) -> Vec<f64> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("script"), script).unwrap();
        let port = self.cluster.port().to_string();
        let arguments = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-n", "-f", "script", "--log"];
        let mut command = Command::new(find_bindir().unwrap().join("pgbench"));
        command.args(arguments).args(["-c", &clients.to_string(), "-j", &clients.min(2).to_string()]);
        command.args(["-T", &time.as_secs().to_string(), "flagsmith"]).current_dir(folder.path());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
        logged(folder.path())
    }

    /// The rows are all captured: none was left out for a failure.
    async fn assert_whole(&self) {
        let sql = "SELECT coalesce(pg_sequence_last_value(to_regclass('flagpost.failures')), 0)";
        let failures: i64 = self.client.query_one(sql, &[]).await.unwrap().get(0);
        assert_eq!(failures, 0, "statements were not captured");
    }
}

/// The times in pgbench's log files (`pgbench_log.PID[.THREAD]`): the third word of each line, in microseconds.
fn logged(folder: &Path) -> Vec<f64> {
    let mut times = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("pgbench_log.") {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            let time = |line: &str| line.split(' ').nth(2).unwrap().parse::<f64>().unwrap() / 1000.0;
            times.extend(text.lines().map(time));
        }
    }
    assert!(!times.is_empty(), "pgbench logged nothing");
    sorted(times)
}

fn percentile(sorted: &[f64], per_cent: usize) -> f64 {
    sorted[(sorted.len() - 1) * per_cent / 100]
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    percentile(&sorted(values.collect()), 50)
}

/// p50 and p99 of each variant in one round.
type Round = [[f64; 2]; 3];

async fn rounds(scenes: &[Scene], script: &str, clients: usize, count: usize, time: Duration) -> Vec<Round> {
    for scene in scenes {
        scene.pgbench(script, clients, Duration::from_secs(1)).await;
    }
    let mut rounds = Vec::new();
    for number in 0..count {
        let mut round = Round::default();
        // There and back, so that none is always the first.
        let turns: [usize; 3] = if number % 2 == 0 { [0, 1, 2] } else { [2, 1, 0] };
        for turn in turns {
            let times = scenes[turn].pgbench(script, clients, time).await;
            round[turn] = [percentile(&times, 50), percentile(&times, 99)];
        }
        rounds.push(round);
    }
    rounds
}

fn table(what: &str, clients: usize, rounds: &[Round]) {
    println!("{what}, {clients} at once:");
    for (index, variant) in Variant::ALL.into_iter().enumerate() {
        let of = |part: usize| median(rounds.iter().map(|round| round[index][part]));
        let ratio = |part: usize| median(rounds.iter().map(|round| round[index][part] / round[0][part]));
        println!(
            "    {:<18} p50 {:7.3} ms   p99 {:7.2} ms   ratio to none: p50 {:.2}   p99 {:.2}",
            variant.name(),
            of(0),
            of(1),
            ratio(0),
            ratio(1)
        );
    }
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let number = |key: &str, default: usize| {
        let given = wanted.iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
        given.map_or(default, |n| n.parse().unwrap())
    };
    let (count, seconds) = (number("rounds", 7), number("seconds", 3));
    let wants = |part: &str| wanted.iter().all(|w| w.contains('=')) || wanted.iter().any(|w| w == part);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut scenes = Vec::new();
        for variant in Variant::ALL {
            scenes.push(Scene::new(variant).await);
        }
        for (name, what, script) in [
            ("update", "a flag is switched, one UPDATE", UPDATE),
            ("click", "a click: seven statements, five commits", CLICK),
        ] {
            for clients in [1, 8].into_iter().filter(|_| wants(name)) {
                let time = Duration::from_secs(seconds as u64);
                table(what, clients, &rounds(&scenes, script, clients, count, time).await);
            }
        }
        for scene in &scenes {
            scene.assert_whole().await;
            scene.stop.cancel();
        }
    });
}
