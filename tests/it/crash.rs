//! A daemon that is killed at any moment loses nothing: the real binary, SIGKILL in a loop, while a writer commits; then the
//! receiver is audited against what was committed.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use flagpost::demo::cluster::{Cluster, Options};
use flagpost::demo::receiver::{Received, Receiver};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use crate::cli::site;
use crate::support::process::{Daemon, Installation};
use crate::support::{Source, on_both_sources};

const PATIENCE: Duration = Duration::from_secs(60);
const KILLS: usize = 8;

on_both_sources!(
    killed_in_a_loop_it_sends_every_commit_once_known_by_its_id_in_order,
    killed_in_the_middle_of_settling_it_still_tells_an_unbroken_story_that_ends_right,
);

/// One committed change: which value a state got, by which transaction.
pub(crate) struct Commit {
    state: i32,
    value: String,
    xid: u64,
}

pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) client: Client,
    receiver: Receiver,
    pub(crate) installation: Installation,
    states: Vec<i32>,
}

impl Scene {
    async fn new(source: Source, settle: &str) -> Scene {
        Scene::on(source, source.options(), settle).await
    }

    /// On a server of this kind.
    pub(crate) async fn on(source: Source, options: Options, settle: &str) -> Scene {
        let (cluster, client, receiver, installation) = site(source, options).await;
        // Five flags in one environment: they differ in nothing but their ids.
        client
            .batch_execute(
                "INSERT INTO features_feature SELECT (jsonb_populate_record(f, jsonb_build_object(
                     'id', 100 + n, 'name', 'flag_' || n, 'uuid', gen_random_uuid()))).*
                 FROM features_feature f, generate_series(1, 5) n WHERE f.id = (SELECT min(id) FROM features_feature);
                 INSERT INTO features_featurestate SELECT (jsonb_populate_record(s, jsonb_build_object(
                     'id', 100 + n, 'feature_id', 100 + n, 'uuid', gen_random_uuid()))).*
                 FROM features_featurestate s, generate_series(1, 5) n WHERE s.id = 1;
                 INSERT INTO features_featurestatevalue SELECT (jsonb_populate_record(v, jsonb_build_object(
                     'id', 100 + n, 'feature_state_id', 100 + n, 'type', 'unicode', 'string_value', 'first',
                     'uuid', gen_random_uuid()))).*
                 FROM features_featurestatevalue v, generate_series(1, 5) n WHERE v.id = 1;",
            )
            .await
            .unwrap();
        let installation = installation.with("FLAGPOST_SOURCE_SETTLE", settle);
        installation.run(&["setup"]).await.success();
        Scene { cluster, client, receiver, installation, states: (101..=105).collect() }
    }

    /// Commits changes one after the other until told to stop.
    pub(crate) fn write(
        &self,
        pause: Duration,
    ) -> (tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<Vec<Commit>>) {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let url = self.cluster.url("postgres", "flagsmith");
        let states = self.states.clone();
        let task = tokio::spawn(async move {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            let mut commits = Vec::new();
            while stopped.try_recv().is_err() {
                let (state, value) =
                    (states[commits.len() % states.len()], format!("value {}", commits.len()));
                let sql = "WITH changed AS (UPDATE features_featurestatevalue SET string_value = $1
                               WHERE feature_state_id = $2 RETURNING 1)
                           SELECT pg_current_xact_id()::text FROM changed";
                let row = client.query_one(sql, &[&value, &state]).await.unwrap();
                commits.push(Commit { state, value, xid: row.get::<_, &str>(0).parse().unwrap() });
                tokio::time::sleep(pause).await;
            }
            commits
        });
        (stop, task)
    }

    /// Kills the daemon again and again while the writer writes; returns what was committed.
    async fn kill_in_a_loop(&self, pause: Duration) -> Vec<Commit> {
        let (stop, writer) = self.write(pause);
        for n in 0..KILLS {
            let daemon = Daemon::start(&self.installation).await;
            // Each time at another moment, from right after the start on.
            tokio::time::sleep(Duration::from_millis(37 * n as u64 * n as u64 % 400)).await;
            daemon.kill();
        }
        stop.send(()).unwrap();
        writer.await.unwrap()
    }

    /// Each commit was told to each endpoint once (known by its id), in order, with what the one before had left.
    pub(crate) async fn assert_told(&self, commits: &[Commit]) {
        let is_complete =
            |all: &[Received]| PATHS.iter().all(|path| events(all, path).len() >= commits.len());
        let received = self.receiver.wait_for(is_complete, PATIENCE).await.unwrap_or_else(|all| all);
        let system_id = self.system_id().await;
        for path in PATHS {
            let events = events(&received, path);
            let mut by_state: BTreeMap<i32, Vec<&Event>> = BTreeMap::new();
            events.iter().for_each(|event| by_state.entry(event.state).or_default().push(event));
            for state in &self.states {
                let committed: Vec<&Commit> = commits.iter().filter(|c| c.state == *state).collect();
                let told = by_state.remove(state).unwrap_or_default();
                let ids: Vec<&str> = told.iter().map(|event| event.id.as_str()).collect();
                let expected: Vec<String> =
                    committed.iter().map(|c| event_id(&system_id, *state, c.xid)).collect();
                assert_eq!(ids, expected, "{path}: ids of state {state}, in order");
                let mut known = "first";
                for (event, commit) in told.iter().zip(&committed) {
                    assert_eq!(event.previous["feature_state_value"], known);
                    assert_eq!(event.new["feature_state_value"], commit.value.as_str());
                    known = &commit.value;
                }
            }
            assert!(by_state.is_empty());
        }
    }

    async fn system_id(&self) -> String {
        let sql = "SELECT system_identifier::text FROM pg_control_system()";
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }
}

/// The id that DESIGN.md gives an event: computed here from the definition, not by the code under test.
fn event_id(system_id: &str, state: i32, xid: u64) -> String {
    let hash = Sha256::digest(format!("{system_id}\nFLAG_UPDATED\n{state}\n{xid}"));
    let hex: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

struct Event {
    id: String,
    state: i32,
    new: Json,
    previous: Json,
}

/// The events that an endpoint got, repeats once, in the order of their first arrival. A repeat must be the same to the byte.
fn events(received: &[Received], path: &str) -> Vec<Event> {
    let mut bodies: HashMap<String, Vec<u8>> = HashMap::new();
    let mut events = Vec::new();
    for received in received.iter().filter(|r| r.path == path) {
        let id = received.header("x-flagpost-event-id").unwrap().to_owned();
        if let Some(body) = bodies.get(&id) {
            assert_eq!(*body, received.body, "a repeat differs");
            continue;
        }
        bodies.insert(id.clone(), received.body.clone());
        let body: Json = serde_json::from_slice(&received.body).unwrap();
        let (new, previous) = (body["data"]["new_state"].clone(), body["data"]["previous_state"].clone());
        events.push(Event { id, state: i32::try_from(new["id"].as_i64().unwrap()).unwrap(), new, previous });
    }
    events
}

const PATHS: [&str; 2] = ["/dev-signed", "/dev-plain"];

async fn killed_in_a_loop_it_sends_every_commit_once_known_by_its_id_in_order(source: Source) {
    let scene = Scene::new(source, "0").await;
    let commits = scene.kill_in_a_loop(Duration::from_millis(3)).await;
    let daemon = Daemon::start(&scene.installation).await;
    scene.assert_told(&commits).await;
    assert!(commits.len() > 100, "only {} commits", commits.len());
    daemon.terminate().await.success();
}

async fn killed_in_the_middle_of_settling_it_still_tells_an_unbroken_story_that_ends_right(source: Source) {
    let scene = Scene::new(source, "100ms").await;
    // Commits of one flag are about 60 ms apart: windows are open whenever the daemon dies.
    let commits = scene.kill_in_a_loop(Duration::from_millis(12)).await;
    let daemon = Daemon::start(&scene.installation).await;
    let last = |state: i32| commits.iter().rfind(|c| c.state == state).unwrap().value.clone();
    let is_complete = |all: &[Received]| {
        PATHS.iter().all(|path| {
            let events = events(all, path);
            scene.states.iter().all(|state| {
                events
                    .iter()
                    .any(|e| e.state == *state && e.new["feature_state_value"] == last(*state).as_str())
            })
        })
    };
    let received = scene.receiver.wait_for(is_complete, PATIENCE).await.expect("the last values arrive");
    for path in PATHS {
        let mut known: HashMap<i32, Json> =
            scene.states.iter().map(|state| (*state, "first".into())).collect();
        for event in events(&received, path) {
            assert_eq!(event.previous["feature_state_value"], known[&event.state], "{path}");
            known.insert(event.state, event.new["feature_state_value"].clone());
        }
        for state in &scene.states {
            assert_eq!(known[state], last(*state).as_str());
        }
    }
    daemon.terminate().await.success();
}
