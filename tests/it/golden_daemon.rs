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

use crate::support::cluster_options;
use crate::support::flagsmith::{self, Schema};
use crate::support::golden;
use crate::support::process::{Daemon, Installation};
use crate::support::replay::{Commit, Pace, Replay, cases};

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

/// Cases in which Flagsmith's `previous_state` is an older one: the value before the last but one, or a change made by SQL
/// that it never saw. All but `previous_state` must still be equal, and `previous_state` is what the receiver knows.
const PREVIOUS_STATE_WRONG: [u32; 4] = [22, 62, 66, 68];
/// Changed by SQL: Flagsmith sends nothing (SEMANTICS.md §6).
const BY_SQL: std::ops::RangeInclusive<u32> = 57..=59;

/// What this part of flagpost covers; the rest is part 2.
fn is_judged(number: u32) -> bool {
    matches!(number, 1..=31 | 33 | 34 | 36..=39 | 41 | 43 | 44 | 46 | 50..=68)
}

#[derive(Clone, Copy, PartialEq, Eq)]
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
    knowledge: Knowledge,
    markers: u32,
}

/// What a receiver knows of each flag: the last `new_state`.
#[derive(Default)]
struct Knowledge(HashMap<String, Json>);

impl Knowledge {
    fn flag(state: &Json) -> String {
        let environment = if state["environment"].is_object() {
            &state["environment"]["id"]
        } else {
            &state["environment"]
        };
        let target = if state["feature_segment"].is_object() {
            &state["feature_segment"]["segment"]["id"]
        } else {
            &state["feature_segment"]
        };
        format!("{}/{environment}/{}/{target}", state["feature"]["id"], state["identity"])
    }

    fn visible(state: &Json) -> Json {
        json!([
            state["enabled"],
            state["feature_state_value"],
            state["multivariate_feature_state_values"],
            state["feature_segment"]["priority"]
        ])
    }

    /// Checks that an event goes on from what the receiver knows, and takes it in.
    fn take(&mut self, body: &Json) -> Result<(), String> {
        let (new, previous) = (&body["data"]["new_state"], &body["data"]["previous_state"]);
        if let Some(known) = self.0.get(&Self::flag(previous)).filter(|_| !previous.is_null())
            && Self::visible(known) != Self::visible(previous)
        {
            return Err(format!("previous_state is not the state last sent: {body}"));
        }
        if new.is_null() {
            self.0.remove(&Self::flag(previous));
        } else {
            self.0.insert(Self::flag(new), new.clone());
        }
        Ok(())
    }
}

impl Run {
    async fn new(format: Format) -> Run {
        let cluster = Cluster::start(cluster_options()).await.unwrap();
        let schema = Schema::read(&golden().join("schema.json"));
        let receiver = Receiver::start(0).unwrap();
        let client = flagsmith::database(&cluster, &schema, receiver.addr()).await;
        let name = if format == Format::Current { "current" } else { "classic" };
        let installation = Installation::new(&cluster.url("postgres", "flagsmith"))
            .with("FLAGPOST_WEBHOOKS_FORMAT", name)
            .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8");
        installation.run(&["setup"]).await.success();
        let daemon = Some(Daemon::start(&installation).await);
        // The state directory must outlive the daemon.
        std::mem::forget(installation);
        Run { format, receiver, client, cluster, schema, daemon, knowledge: Knowledge::default(), markers: 0 }
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
            let number: u32 = name[..3].parse().unwrap();
            if !is_judged(number) && number > 68 {
                break;
            }
            let commits = replay.case(&case).await;
            let expected = self.expected(&case).await;
            let got = self.collect(&expected).await;
            let verdict = self.judge(number, &case, &got, &expected, &commits);
            let (sent, count) =
                (case["flagsmith_sent"].as_array().unwrap().len(), got.values().map(Vec::len).sum::<usize>());
            let (text, is_wrong) = match &verdict {
                Ok(text) => ((*text).to_owned(), false),
                Err(text) => (format!("WRONG: {text}"), is_judged(number)),
            };
            let line = text.lines().next().unwrap_or_default();
            table.push_str(&format!("{name:<44} {sent:>9} {count:>8}  {line:.110}\n"));
            if is_wrong {
                wrong.push(format!("{name}: {text}"));
            }
        }
        (table, wrong)
    }

    /// What Flagsmith sent, its doubles once, in our format.
    async fn expected(&self, case: &Json) -> Bodies {
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

    /// The documented body of 2020 that says what this body of Flagsmith 2.265 says; `None` where there is none.
    async fn as_classic(&self, endpoint: &str, body: &str) -> Option<String> {
        let body: Json = serde_json::from_str(body).unwrap();
        let data = &body["data"];
        let classic = match body["event_type"].as_str().unwrap() {
            "AUDIT_LOG_CREATED" => classic_audit(data),
            "FLAG_UPDATED" | "FLAG_DELETED" if !endpoint.starts_with("/org") => {
                let mut classic = json!({
                    "changed_by": self.full_name(data["changed_by"].as_str().unwrap()).await,
                    "new_state": self.classic_state(&data["new_state"]).await,
                    "timestamp": format!("{}Z", &data["timestamp"].as_str().unwrap()[..23]),
                });
                if !data["previous_state"].is_null() {
                    classic["previous_state"] = self.classic_state(&data["previous_state"]).await;
                }
                json!({ "data": classic, "event_type": body["event_type"] })
            }
            _ => return None,
        };
        Some(python(&classic))
    }

    async fn full_name(&self, email: &str) -> String {
        let sql = "SELECT first_name || ' ' || last_name FROM users_ffadminuser WHERE email = $1";
        self.client.query_opt(sql, &[&email]).await.unwrap().map_or(email.to_owned(), |row| row.get(0))
    }

    async fn classic_state(&self, state: &Json) -> Json {
        if state.is_null() {
            return Json::Null;
        }
        let id = |value: &Json| value.as_i64().map(|id| i32::try_from(id).unwrap());
        let sql = "SELECT s.id, s.feature_segment_id FROM features_featurestate s
                   LEFT JOIN features_featuresegment f ON f.id = s.feature_segment_id
                   WHERE s.feature_id = $1 AND s.environment_id = $2 AND s.identity_id IS NOT DISTINCT FROM $3
                     AND f.segment_id IS NOT DISTINCT FROM $4 AND s.deleted_at IS NULL";
        let (feature, environment) =
            (id(&state["feature"]["id"]).unwrap(), id(&state["environment"]["id"]).unwrap());
        let (identity, segment) = (id(&state["identity"]), id(&state["feature_segment"]["segment"]["id"]));
        let row = self.client.query_one(sql, &[&feature, &environment, &identity, &segment]).await.unwrap();
        let mut classic = state.clone();
        classic["environment"] = environment.into();
        classic["feature"]["project"] = state["feature"]["project"]["id"].clone();
        classic["id"] = row.get::<_, i32>(0).into();
        classic["feature_segment"] = row.get::<_, Option<i32>>(1).into();
        classic.as_object_mut().unwrap().remove("multivariate_feature_state_values");
        classic
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
            got.entry(received.path.clone()).or_default().push(String::from_utf8(received.body).unwrap());
        }
        self.receiver.clear();
        got
    }

    /// The endpoints' secrets as they are now, by path.
    async fn secrets(&self) -> HashMap<String, String> {
        let sql = "SELECT url, coalesce(secret, '') FROM environments_webhook
                   UNION ALL SELECT url, coalesce(secret, '') FROM organisations_organisationwebhook";
        let rows = self.client.query(sql, &[]).await.unwrap();
        let path = |url: &str| url.splitn(4, '/').nth(3).map(|path| format!("/{path}")).unwrap();
        rows.iter().map(|row| (path(row.get(0)), row.get(1))).collect()
    }

    fn judge(
        &mut self,
        number: u32,
        case: &Json,
        got: &Bodies,
        expected: &Bodies,
        commits: &[Commit],
    ) -> Result<&'static str, String> {
        let path = if self.format == Format::Current { "/org-plain" } else { "/dev-signed" };
        for body in got.get(path).into_iter().flatten() {
            let body: Json = serde_json::from_str(body).unwrap();
            if body["event_type"].as_str().is_some_and(|kind| kind.starts_with("FLAG_")) {
                self.knowledge.take(&body)?;
            }
        }
        let mut got = got.clone();
        got.values_mut().for_each(|all| all.sort());
        if BY_SQL.contains(&number) {
            return judge_sql(case, &got, commits, self.format);
        }
        if PREVIOUS_STATE_WRONG.contains(&number) {
            return if got == *expected {
                Err("Flagsmith is right after all".into())
            } else if without_previous(&got) == without_previous(expected) {
                Ok("right where Flagsmith is wrong (previous_state)")
            } else {
                Err(difference(&got, expected))
            };
        }
        if got != *expected {
            return Err(difference(&got, expected));
        }
        let sent = case["flagsmith_sent"].as_array().unwrap().len();
        let is_double = self.format == Format::Current && sent != got.values().map(Vec::len).sum::<usize>();
        Ok(if is_double { "equal, Flagsmith's doubles once" } else { "equal" })
    }
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

/// Python's `json.dumps(…, sort_keys=True)`, by Python itself: the oracle must not be the code under test.
fn python(value: &Json) -> String {
    let script = "import json,sys; sys.stdout.write(json.dumps(json.load(sys.stdin), sort_keys=True))";
    let mut child = std::process::Command::new("python3")
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(value.to_string().as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

/// Every endpoint that has a secret gets a signature that fits it, and no other gets one.
fn check_signature(received: &Received, secrets: &HashMap<String, String>) {
    let secret = &secrets[&received.path];
    let expected = flagpost::delivery::flagsmith_signature(secret, &received.body);
    assert_eq!(received.header("x-flagsmith-signature"), expected.as_deref(), "{}", received.path);
    assert_eq!(received.header("content-type"), Some("application/json"));
}

/// Changed by SQL: one `FLAG_UPDATED` for each value that really changed, by nobody, at the commit.
fn judge_sql(case: &Json, got: &Bodies, commits: &[Commit], format: Format) -> Result<&'static str, String> {
    let changed: Vec<&Json> =
        case["transactions"][0]["changes"].as_array().unwrap().iter().map(|c| &c["new"]).collect();
    let at = commits[0].at;
    let digits = if format == Format::Current { 6 } else { 3 };
    let timestamp = at.strftime(&format!("%Y-%m-%dT%H:%M:%S.%{digits}fZ")).to_string();
    let mut flags = BTreeSet::new();
    for body in got.values().flatten() {
        let body: Json = serde_json::from_str(body).unwrap();
        let data = &body["data"];
        let (new, previous) = (&data["new_state"], &data["previous_state"]);
        let is_right = body["event_type"] == "FLAG_UPDATED"
            && data["changed_by"] == ""
            && data["timestamp"].as_str().is_some_and(|t| t[..22] == timestamp[..22])
            && new != previous;
        if !is_right {
            return Err(format!("not as a change by SQL must be told (committed {timestamp}): {body}"));
        }
        flags.insert(Knowledge::flag(new));
    }
    // A statement writes rows that do not change as well; those are no events.
    if flags.is_empty() || flags.len() > changed.len() {
        return Err(format!("{} flags for {} rows", flags.len(), changed.len()));
    }
    Ok("right where Flagsmith sends nothing (changed by SQL)")
}

fn without_previous(bodies: &Bodies) -> Bodies {
    let strip = |body: &String| {
        let mut body: Json = serde_json::from_str(body).unwrap();
        if let Some(data) = body["data"].as_object_mut() {
            data.remove("previous_state");
        }
        body.to_string()
    };
    bodies.iter().map(|(path, all)| (path.clone(), all.iter().map(strip).collect())).collect()
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

async fn replay_all(format: Format, title: &str) {
    let mut run = Run::new(format).await;
    let (table, wrong) = run.all().await;
    // Past the test runner's capture: the table is what a reader of a passing run wants to see.
    std::io::stderr().write_all(format!("\n{title}\n{table}").as_bytes()).unwrap();
    if let Some(daemon) = run.daemon.take() {
        daemon.terminate().await.success();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[tokio::test]
async fn current_is_byte_identical_to_flagsmith_where_flagsmith_is_right() {
    replay_all(Format::Current, "recorded cases through the daemon, format current").await;
}

#[tokio::test]
async fn classic_says_the_same_in_the_documented_bodies() {
    replay_all(Format::Classic, "recorded cases through the daemon, format classic").await;
}
