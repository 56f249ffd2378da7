//! The recorded cases through a live daemon: a real Flagsmith's row changes in, what a real receiver got compared with what
//! Flagsmith sent, or with what SEMANTICS.md says is right where Flagsmith is wrong.
//!
//! Bodies are compared to the byte. A case that is dropped into `tests/golden/cases` is replayed by itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::time::Duration;

use flagpost::demo::cluster::Cluster;
use flagpost::demo::receiver::{Received, Receiver};
use serde_json::{Value as Json, json};
use tokio_postgres::Client;

use crate::support::flagsmith::{self, Schema};
use crate::support::golden;
use crate::support::oracle::{Effective, flag_events};
use crate::support::process::Daemon;
use crate::support::replay::{Pace, Replay, cases, timestamp};
use crate::support::{Source, on_both_sources};

/// Longer than the settle window (100 ms), so that what a case began is closed when its marker is committed.
const SETTLED: Duration = Duration::from_millis(160);
/// How long a webhook may take to come on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long we look whether more comes than should.
const SURPLUS: Duration = Duration::from_millis(40);
/// Audit rows that the test writes to know that the daemon has come to the end of a case.
const MARKER: &str = "end of case";

/// Bodies by endpoint.
type Bodies = BTreeMap<String, Vec<String>>;

on_both_sources!(
    current_is_byte_identical_to_flagsmith_where_flagsmith_is_right,
    classic_says_the_same_in_the_documented_bodies,
);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Current,
    Classic,
}

struct Run {
    format: Format,
    receiver: Receiver,
    client: Client,
    cluster: Cluster,
    schema: Schema,
    daemon: Option<Daemon>,
    /// Numbers by endpoint and flag.
    sequences: BTreeMap<String, Vec<u64>>,
    markers: u32,
}

impl Run {
    async fn new(source: Source, format: Format) -> Run {
        // The recorded times of commits can only be compared where the server keeps its own.
        let options = source.options().set("track_commit_timestamp", "on");
        let cluster = Cluster::start(options).await.unwrap();
        let schema = Schema::read(&golden().join("schema.json"));
        let receiver = Receiver::start(0).unwrap();
        let client = flagsmith::database(&cluster, &schema, receiver.addr()).await;
        let name = if format == Format::Current { "current" } else { "classic" };
        let installation = source
            .installation(&cluster.url("postgres", "flagsmith"))
            .with("FLAGPOST_WEBHOOKS_FORMAT", name)
            // A call that fails on a busy machine is made again before the next case.
            .with("FLAGPOST_DELIVERY_RETRY", "200ms")
            .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8");
        installation.run(&["setup"]).await.success();
        let daemon = Some(Daemon::start(&installation).await);
        // The state directory must outlive the daemon.
        std::mem::forget(installation);
        Run { format, receiver, client, cluster, schema, daemon, sequences: BTreeMap::new(), markers: 0 }
    }

    /// Replays all cases; a line a case, and the names of those that are wrong.
    async fn all(&mut self) -> (String, Vec<String>) {
        let mut table = format!("{:<44} {:>9} {:>8}  verdict\n", "case", "Flagsmith", "flagpost");
        let mut wrong = Vec::new();
        let replay_client = self.cluster.connect("flagsmith").await.unwrap();
        let schema = Schema::read(&golden().join("schema.json"));
        let mut replay = Replay::new(&schema, &replay_client, self.receiver.addr(), Pace::AS_RECORDED);
        for path in cases() {
            let case = replay.read(&path);
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let before = Effective::read(&self.client).await;
            replay.case(&case).await;
            let sent = self.sent_by_flagsmith(&case).await;
            let got = self.collect(&sent).await;
            let events = before.events(&Effective::read(&self.client).await);
            let verdict = match self.judge_authors(&case, &got).await {
                Ok(()) => self.judge(&got, &sent, &events).await,
                Err(text) => Err(text),
            };
            let (theirs, ours) =
                (case["flagsmith_sent"].as_array().unwrap().len(), got.values().map(Vec::len).sum::<usize>());
            let text = match verdict {
                Ok(text) => text,
                Err(text) => {
                    wrong.push(format!("{name}: {text}"));
                    format!("WRONG: {}", text.lines().next().unwrap_or_default())
                }
            };
            table.push_str(&format!("{name:<44} {theirs:>9} {ours:>8}  {text:.110}\n"));
        }
        (table, wrong)
    }

    /// What Flagsmith sent, its doubles once, in our format.
    async fn sent_by_flagsmith(&self, case: &Json) -> Bodies {
        let mut bodies = Bodies::new();
        let mut seen = BTreeSet::new();
        for sent in case["flagsmith_sent"].as_array().unwrap() {
            let (endpoint, body) = (sent["endpoint"].as_str().unwrap(), sent["body"].as_str().unwrap());
            let body = match self.format {
                Format::Current => Some(body.to_owned()),
                Format::Classic => self.as_classic(endpoint, body).await,
            };
            if let Some(body) = body
                && seen.insert((endpoint.to_owned(), body.clone()))
            {
                bodies.entry(endpoint.to_owned()).or_default().push(body);
            }
        }
        bodies.values_mut().for_each(|all| all.sort());
        bodies
    }

    /// The documented body of 2020 that says what this body of Flagsmith 2.265 says, but for the ids of states and overrides,
    /// which that one does not have; `None` where there is none.
    async fn as_classic(&self, endpoint: &str, body: &str) -> Option<String> {
        let body: Json = serde_json::from_str(body).unwrap();
        let data = &body["data"];
        let classic = match body["event_type"].as_str().unwrap() {
            "AUDIT_LOG_CREATED" => classic_audit(data),
            "FLAG_UPDATED" | "FLAG_DELETED" if !endpoint.starts_with("/org") => {
                let mut classic = json!({
                    "changed_by": self.full_name(data["changed_by"].as_str().unwrap()).await,
                    "new_state": classic_state(&data["new_state"]),
                    "timestamp": format!("{}Z", &data["timestamp"].as_str().unwrap()[..23]),
                });
                if !data["previous_state"].is_null() {
                    classic["previous_state"] = classic_state(&data["previous_state"]);
                }
                json!({ "data": classic, "event_type": body["event_type"] })
            }
            _ => return None,
        };
        Some(classic.to_string())
    }

    async fn full_name(&self, email: &str) -> String {
        let sql = "SELECT first_name || ' ' || last_name FROM users_ffadminuser WHERE email = $1";
        self.client.query_opt(sql, &[&email]).await.unwrap().map_or(email.to_owned(), |row| row.get(0))
    }

    /// The ids in classic bodies name a state of that feature, environment and identity. What was really deleted cannot be
    /// looked up any more.
    async fn check_ids(&self, body: &Json) {
        for state in [&body["data"]["new_state"], &body["data"]["previous_state"]] {
            if state.is_null() {
                continue;
            }
            let id = i32::try_from(state["id"].as_i64().unwrap()).unwrap();
            let sql =
                "SELECT jsonb_build_array(feature_id, environment_id, identity_id, feature_segment_id)::text
                       FROM features_featurestate WHERE id = $1";
            if let Some(row) = self.client.query_opt(sql, &[&id]).await.unwrap() {
                let row: Json = serde_json::from_str(row.get(0)).unwrap();
                let shown = json!([
                    state["feature"]["id"],
                    state["environment"],
                    state["identity"],
                    state["feature_segment"]
                ]);
                assert_eq!(shown, row, "{body}");
            }
        }
    }

    /// What the receiver got of a case: until as much has come as should, and a moment longer.
    async fn collect(&mut self, expected: &Bodies) -> Bodies {
        tokio::time::sleep(SETTLED).await;
        self.markers += 1;
        let marker = json!({
            "id": 1_000_000 + self.markers, "created_date": "2026-01-01T00:00:00Z", "log": MARKER, "project_id": 1,
            "is_system_event": false,
        });
        let sql = self.schema.insert("audit_auditlog", marker.as_object().unwrap());
        self.client.batch_execute(&sql).await.unwrap();
        let is_marker = |r: &Received| String::from_utf8_lossy(&r.body).contains(MARKER);
        let wanted: usize = expected.values().map(Vec::len).sum();
        // Two endpoints of the organisation are enabled, so each marker comes twice.
        let is_complete =
            |all: &[Received]| all.iter().filter(|r| is_marker(r)).count() >= 2 && all.len() >= wanted + 2;
        // When too little comes, the comparison tells what is missing.
        self.receiver.wait_for(is_complete, PATIENCE).await.ok();
        tokio::time::sleep(SURPLUS).await;
        let secrets = self.secrets().await;
        let mut got = Bodies::new();
        for received in self.receiver.all().into_iter().filter(|r| !is_marker(r)) {
            check_signature(&received, &secrets);
            self.check_sequence(&received);
            got.entry(received.path.clone()).or_default().push(String::from_utf8(received.body).unwrap());
        }
        self.receiver.clear();
        check_text(got.values().flatten());
        if self.format == Format::Classic {
            for body in got.values_mut().flatten() {
                let mut json: Json = serde_json::from_str(body).unwrap();
                self.check_ids(&json).await;
                for state in ["/data/new_state", "/data/previous_state"] {
                    if let Some(Json::Object(state)) = json.pointer_mut(state) {
                        state.remove("id");
                        state.remove("feature_segment");
                    }
                }
                *body = json.to_string();
            }
        }
        got.values_mut().for_each(|all| all.sort());
        got
    }

    /// Events of one flag are numbered without gaps, for whoever gets them all.
    fn check_sequence(&mut self, received: &Received) {
        let body: Json = serde_json::from_slice(&received.body).unwrap();
        let is_flag = body["event_type"].as_str().is_some_and(|kind| kind.starts_with("FLAG_"));
        if !is_flag || received.path == "/dev-plain" {
            return;
        }
        let data = &body["data"];
        let state = if data["new_state"].is_null() { &data["previous_state"] } else { &data["new_state"] };
        let environment = state["environment"].get("id").unwrap_or(&state["environment"]);
        let flag = format!("{} {}/{environment}", received.path, state["feature"]["id"]);
        let number: u64 = received.header("x-flagpost-sequence").unwrap().parse().unwrap();
        self.sequences.entry(flag).or_default().push(number);
    }

    /// The endpoints' secrets as they are now, by path.
    async fn secrets(&self) -> HashMap<String, String> {
        let sql = "SELECT url, coalesce(secret, '') FROM environments_webhook
                   UNION ALL SELECT url, coalesce(secret, '') FROM organisations_organisationwebhook";
        let rows = self.client.query(sql, &[]).await.unwrap();
        let path = |url: &str| url.splitn(4, '/').nth(3).map(|path| format!("/{path}")).unwrap();
        rows.iter().map(|row| (path(row.get(0)), row.get(1))).collect()
    }

    /// Equal to what Flagsmith sent, or right where Flagsmith is wrong: then every flag event must be one that the tables
    /// themselves call for, and all that is no flag event must still be equal.
    async fn judge(&self, got: &Bodies, sent: &Bodies, events: &[Json]) -> Result<String, String> {
        if got == sent {
            return self.judge_events(got, events).await.map(|()| "equal".to_owned());
        }
        let (others, theirs) = (without_flags(got), without_flags(sent));
        if others != theirs {
            return Err(difference(&others, &theirs));
        }
        self.judge_events(got, events).await?;
        Ok(format!("right where Flagsmith is wrong ({})", self.reason(got, sent)))
    }

    /// Who and when, of every flag event, is what a history row of the case says (of a deletion: a row of a deletion), or a
    /// publication; nobody and the commit only where the case has none of these.
    async fn judge_authors(&self, case: &Json, got: &Bodies) -> Result<(), String> {
        if self.format == Format::Classic {
            return Ok(());
        }
        let (mut edits, mut deletions) = (BTreeSet::new(), BTreeSet::new());
        let changes =
            case["transactions"].as_array().unwrap().iter().flat_map(|t| t["changes"].as_array().unwrap());
        for change in changes {
            let (table, new) = (change["table"].as_str().unwrap(), &change["new"]);
            if table == "feature_versioning_environmentfeatureversion" && !new["published_by_id"].is_null() {
                let mark = (self.email(&new["published_by_id"]).await, six(&new["published_at"]));
                edits.insert(mark.clone());
                deletions.insert(mark);
            }
            let is_history = ["features_historicalfeaturestate", "features_historicalfeaturestatevalue"]
                .contains(&table)
                || table == "multivariate_historicalmultivariatefeaturestatevalue";
            if is_history {
                let who = match (&new["history_user_id"], &new["master_api_key_id"]) {
                    (Json::Null, Json::String(key)) => self.key_name(key).await,
                    (user, _) => self.email(user).await,
                };
                // A variant that is removed is an edit of the flag.
                let is_deletion = new["history_type"] == "-" && table.starts_with("features_");
                let marks = if is_deletion { &mut deletions } else { &mut edits };
                marks.insert((who, six(&new["history_date"])));
            }
        }
        for body in got.values().flatten() {
            let body: Json = serde_json::from_str(body).unwrap();
            let marks = match body["event_type"].as_str() {
                Some("FLAG_UPDATED") => &edits,
                Some("FLAG_DELETED") => &deletions,
                _ => continue,
            };
            let text = |key: &str| body["data"][key].as_str().unwrap().to_owned();
            let is_nobody = text("changed_by").is_empty() && marks.is_empty();
            if !is_nobody && !marks.contains(&(text("changed_by"), text("timestamp"))) {
                return Err(format!("{} at {} is none of {marks:?}", text("changed_by"), text("timestamp")));
            }
        }
        Ok(())
    }

    async fn email(&self, user: &Json) -> String {
        let Some(id) = user.as_i64() else { return String::new() };
        let sql = "SELECT email FROM users_ffadminuser WHERE id = $1";
        let row = self.client.query_opt(sql, &[&i32::try_from(id).unwrap()]).await.unwrap();
        row.map_or(String::new(), |row| row.get(0))
    }

    async fn key_name(&self, key: &str) -> String {
        let sql = "SELECT name FROM api_keys_masterapikey WHERE id = $1";
        self.client.query_opt(sql, &[&key]).await.unwrap().map_or(String::new(), |row| row.get(0))
    }

    /// The flag events are those that the tables call for.
    async fn judge_events(&self, got: &Bodies, events: &[Json]) -> Result<(), String> {
        let ours = match self.format {
            Format::Current => flag_events(got.get("/org-plain").into_iter().flatten()),
            // Endpoints of an environment: those that have one tell of it.
            Format::Classic => return self.judge_classic(got, events).await,
        };
        if ours == events {
            return Ok(());
        }
        let text = |events: &[Json]| events.iter().map(|e| format!("\n    {e}")).collect::<String>();
        Err(format!(
            "flag events are not those that the tables call for\n  got{}\n  expected{}",
            text(&ours),
            text(events)
        ))
    }

    async fn judge_classic(&self, got: &Bodies, events: &[Json]) -> Result<(), String> {
        for path in ["/dev-signed", "/prod-signed", "/wf-signed"] {
            let environment = match path {
                "/dev-signed" => 1,
                "/prod-signed" => 2,
                _ => 5,
            };
            let of_environment = |event: &Json| {
                [&event[1], &event[2]].iter().any(|state| state["environment"]["id"] == environment)
            };
            let mut expected: Vec<Json> = events.iter().filter(|e| of_environment(e)).map(reduced).collect();
            expected.sort_by_key(Json::to_string);
            let bodies = got.get(path).into_iter().flatten();
            let mut ours: Vec<Json> = flag_events(bodies).iter().map(reduced).collect();
            ours.sort_by_key(Json::to_string);
            if ours != expected {
                return Err(format!("{path}: {ours:?} instead of {expected:?}"));
            }
        }
        Ok(())
    }

    /// The row of SEMANTICS.md §6 that explains why Flagsmith sent something else.
    fn reason(&self, got: &Bodies, sent: &Bodies) -> &'static str {
        let flags = |bodies: &Bodies| -> Vec<Json> {
            let all = bodies.values().flatten().map(|body| serde_json::from_str::<Json>(body).unwrap());
            all.filter(|body| body["event_type"].as_str().is_some_and(|kind| kind.starts_with("FLAG_")))
                .collect()
        };
        let (ours, theirs) = (flags(got), flags(sent));
        let without = |key: &str, all: &[Json]| -> BTreeSet<String> {
            let strip = |body: &Json| {
                let mut body = body.clone();
                body["data"].as_object_mut().unwrap().remove(key);
                body.to_string()
            };
            all.iter().map(strip).collect()
        };
        let is_deletion = |body: &Json| body["event_type"] == "FLAG_DELETED";
        if !theirs.is_empty() && without("previous_state", &ours) == without("previous_state", &theirs) {
            "previous_state is an older one"
        } else if theirs.iter().any(is_deletion) {
            "deletion told with user and time of the last edit"
        } else if ours.iter().any(is_deletion) {
            "override removed: sends nothing"
        } else if ours.iter().all(|body| body["data"]["changed_by"] == "" && without_others(sent)) {
            "changed by SQL: sends nothing"
        } else if theirs.is_empty() {
            "priority or variants: audit log only"
        } else {
            "feature created in a versioned environment: sends nothing there"
        }
    }
}

/// A recorded time as bodies of `current` have it.
fn six(value: &Json) -> String {
    timestamp(value).strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

fn without_others(bodies: &Bodies) -> bool {
    bodies.values().all(Vec::is_empty)
}

/// What both formats show of an event.
fn reduced(event: &Json) -> Json {
    let state = |state: &Json| match state {
        Json::Null => Json::Null,
        state => {
            json!([state["enabled"], state["feature_state_value"], state["feature"]["id"], state["identity"]])
        }
    };
    json!([event[0], state(&event[1]), state(&event[2])])
}

/// The bodies that are no flag events.
fn without_flags(bodies: &Bodies) -> Bodies {
    let is_flag = |body: &String| {
        let body: Json = serde_json::from_str(body).unwrap();
        body["event_type"].as_str().is_some_and(|kind| kind.starts_with("FLAG_"))
    };
    let others = bodies
        .iter()
        .map(|(path, all)| (path.clone(), all.iter().filter(|b| !is_flag(b)).cloned().collect()));
    others.filter(|(_, all): &(String, Vec<String>)| !all.is_empty()).collect()
}

fn classic_audit(data: &Json) -> Json {
    let pick = |from: &Json, keys: &[&str]| {
        let part = |from: &Json| keys.iter().map(|key| ((*key).to_owned(), from[*key].clone())).collect();
        from.as_object().map_or(Json::Null, |_| Json::Object(part(from)))
    };
    let mut audit = pick(data, &["created_date", "log", "related_object_id", "related_object_type"]);
    audit["author"] = pick(&data["author"], &["id", "email", "first_name", "last_name"]);
    audit["environment"] = pick(&data["environment"], &["id", "name"]);
    audit["project"] = pick(&data["project"], &["id", "name", "organisation"]);
    audit
}

fn classic_state(state: &Json) -> Json {
    let mut classic = state.clone();
    if let Some(fields) = classic.as_object_mut() {
        fields["environment"] = state["environment"]["id"].clone();
        fields["feature"]["project"] = state["feature"]["project"]["id"].clone();
        fields.remove("multivariate_feature_state_values");
        fields.remove("feature_segment");
    }
    classic
}

/// Each body is what Python's `json.dumps(…, sort_keys=True)` writes, asked of Python itself.
fn check_text<'a>(bodies: impl Iterator<Item = &'a String>) {
    let bodies: Vec<&str> = bodies.map(String::as_str).collect();
    let script =
        "import json,sys\nfor line in sys.stdin: print(json.dumps(json.loads(line), sort_keys=True))";
    let mut child = std::process::Command::new("python3")
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let input: String = bodies.iter().map(|body| format!("{body}\n")).collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let written = String::from_utf8(output.stdout).unwrap();
    assert_eq!(written.lines().collect::<Vec<_>>(), bodies);
}

/// Every endpoint that has a secret gets a signature that fits it, and no other gets one.
fn check_signature(received: &Received, secrets: &HashMap<String, String>) {
    let secret = &secrets[&received.path];
    let expected = flagpost::delivery::flagsmith_signature(secret, &received.body);
    assert_eq!(received.header("x-flagsmith-signature"), expected.as_deref(), "{}", received.path);
    assert_eq!(received.header("content-type"), Some("application/json"));
}

/// The first place where two sets of bodies part, short enough to read.
fn difference(got: &Bodies, expected: &Bodies) -> String {
    let none = Vec::new();
    for path in got.keys().chain(expected.keys()).collect::<BTreeSet<_>>() {
        let (got, expected) = (got.get(path).unwrap_or(&none), expected.get(path).unwrap_or(&none));
        if got.len() != expected.len() {
            return format!("{path}: {} bodies instead of {}\n{got:#?}", got.len(), expected.len());
        }
        for (got, expected) in got.iter().zip(expected) {
            if let Some(at) = got.bytes().zip(expected.bytes()).position(|(a, b)| a != b) {
                let cut = |text: &str| text.chars().skip(at.saturating_sub(60)).take(160).collect::<String>();
                return format!(
                    "{path} differs\n    got      …{}\n    expected …{}",
                    cut(got),
                    cut(expected)
                );
            }
        }
    }
    "no difference".into()
}

async fn replay_all(source: Source, format: Format) {
    let mut run = Run::new(source, format).await;
    let (table, wrong) = run.all().await;
    // Past the test runner's capture: the table is what a reader of a passing run wants to see.
    let title = format!("recorded cases through the daemon, source {source:?}, format {format:?}");
    std::io::stderr().write_all(format!("\n{title}\n{table}").as_bytes()).unwrap();
    if let Some(daemon) = run.daemon.take() {
        let output = daemon.terminate().await;
        let failed: Vec<&str> =
            output.stderr.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
        assert!(wrong.is_empty() && output.code == 0, "{}\n{failed:#?}", wrong.join("\n\n"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    for (flag, mut numbers) in run.sequences {
        numbers.sort_unstable();
        let first = numbers[0];
        let expected: Vec<u64> = (first..).take(numbers.len()).collect();
        assert_eq!(numbers, expected, "{flag}");
    }
}

async fn current_is_byte_identical_to_flagsmith_where_flagsmith_is_right(source: Source) {
    replay_all(source, Format::Current).await;
}

async fn classic_says_the_same_in_the_documented_bodies(source: Source) {
    replay_all(source, Format::Classic).await;
}
