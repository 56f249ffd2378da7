//! What a comparison comes to: a finding each, and the tally of them by endpoint and class; for people and as JSON.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::likeness::About;
use crate::change::Micros;
use crate::event::EndpointKey;

/// How what Flagsmith sent compares with what flagpost would have sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// The same bytes, in time.
    Equal,
    /// Flagsmith sent equal bodies more often than flagpost would have.
    Doubled,
    /// Nothing equal came from Flagsmith within the grace period.
    Missing,
    /// Equal, but later after the commit than `--late`.
    Late,
    /// The same flag and the same new state, but something else in it differs.
    Differs,
    /// Flagsmith sent what flagpost would not have sent.
    Unexplained,
    /// The row has a secret and the request has no signature that fits it: not compared.
    BadSignature,
    /// An event for an endpoint that does not point to the listener: not compared, not sent.
    Elsewhere,
    /// Not compared: from before the start, not decided at the end, or more than is kept.
    Unjudged,
}

impl Class {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Class; 9] = [
        Class::Equal,
        Class::Doubled,
        Class::Missing,
        Class::Late,
        Class::Differs,
        Class::Unexplained,
        Class::BadSignature,
        Class::Elsewhere,
        Class::Unjudged,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Class::Equal => "equal",
            Class::Doubled => "doubled",
            Class::Missing => "missing",
            Class::Late => "late",
            Class::Differs => "differs",
            Class::Unexplained => "unexplained",
            Class::BadSignature => "bad_signature",
            Class::Elsewhere => "elsewhere",
            Class::Unjudged => "unjudged",
        }
    }

    /// Whether it may be one of the differences that are known of Flagsmith.
    fn can_be_explained(self) -> bool {
        matches!(self, Class::Missing | Class::Differs)
    }

    /// Whether each one is told when it happens, and not only counted.
    pub fn is_difference(self) -> bool {
        !matches!(self, Class::Equal | Class::Elsewhere | Class::Unjudged)
    }
}

/// flagpost's event that a finding is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFacts {
    /// Its id.
    pub id: String,
    /// Its action, as in `X-Flagpost-Action`.
    pub action: String,
    /// When the change was committed.
    pub commit_time: Micros,
}

/// One comparison's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it came to.
    pub class: Class,
    /// The endpoint; `None` for a request to a path that no endpoint has.
    pub endpoint: Option<EndpointKey>,
    /// flagpost's event, if there is one.
    pub event: Option<EventFacts>,
    /// What it is about.
    pub about: About,
    /// From the commit to the request, in milliseconds, of what came late.
    pub delay_ms: Option<i64>,
    /// Where the bodies differ.
    pub paths: Vec<String>,
    /// Why, where it is known.
    pub explained: Option<&'static str>,
}

impl Finding {
    /// A finding that tells no more than its class.
    pub fn of(class: Class, endpoint: Option<EndpointKey>) -> Finding {
        Finding {
            class,
            endpoint,
            event: None,
            about: About::default(),
            delay_ms: None,
            paths: Vec::new(),
            explained: None,
        }
    }

    /// One JSON object.
    pub fn json(&self) -> Json {
        let mut line = Map::new();
        let mut put = |key: &str, value: Option<Json>| {
            if let Some(value) = value {
                line.insert(key.to_owned(), value);
            }
        };
        put("type", Some("difference".into()));
        put("class", Some(self.class.name().into()));
        put("endpoint", Some(self.endpoint.map_or(Json::Null, |key| key.to_string().into())));
        put("event_type", self.about.kind.map(Json::from));
        put("feature", self.about.feature.clone().map(Json::from));
        put("environment", self.about.environment.clone().map(Json::from));
        if let Some(event) = &self.event {
            put("event_id", Some(event.id.clone().into()));
            put("action", Some(event.action.clone().into()));
            let commit_time = jiff::Timestamp::from_microsecond(event.commit_time.0);
            put("commit_time", commit_time.ok().map(|at| at.to_string().into()));
        }
        put("delay_ms", self.delay_ms.map(Json::from));
        put("paths", (!self.paths.is_empty()).then(|| self.paths.clone().into()));
        put("explained", self.explained.map(Json::from));
        Json::Object(line)
    }

    /// One line for people. Names from requests are quoted with escapes: they can hold anything.
    pub fn text(&self) -> String {
        let endpoint = label(self.endpoint);
        let mut line =
            format!("{:<13} {endpoint:<17} {}", self.class.name(), self.about.kind.unwrap_or("(no event)"));
        if let Some(event) = &self.event {
            line.push_str(&format!(" {}", event.action));
        }
        for (name, value) in [("feature", &self.about.feature), ("environment", &self.about.environment)] {
            if let Some(value) = value {
                line.push_str(&format!(" {name} {value:?}"));
            }
        }
        if let Some(event) = &self.event {
            line.push_str(&format!(" event {}", event.id));
        }
        if let Some(delay) = self.delay_ms {
            line.push_str(&format!(" {delay} ms after the commit"));
        }
        if !self.paths.is_empty() {
            line.push_str(&format!(" at {:?}", self.paths.join(", ")));
        }
        match self.explained {
            Some(why) => line.push_str(&format!(" ({why})")),
            None if self.class.can_be_explained() => line.push_str(" (nothing known explains it)"),
            None => {}
        }
        line
    }
}

fn label(endpoint: Option<EndpointKey>) -> String {
    endpoint.map_or_else(|| "(none)".to_owned(), |key| key.to_string())
}

/// Findings counted by endpoint and class. As large as there are endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    rows: BTreeMap<Option<EndpointKey>, BTreeMap<Class, Count>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    all: u64,
    explained: u64,
}

impl Tally {
    /// Counts a finding.
    pub fn add(&mut self, finding: &Finding) {
        let count = self.rows.entry(finding.endpoint).or_default().entry(finding.class).or_default();
        count.all += 1;
        count.explained += u64::from(finding.explained.is_some());
    }

    fn total(&self) -> BTreeMap<Class, Count> {
        let mut total: BTreeMap<Class, Count> = BTreeMap::new();
        for (class, count) in self.rows.values().flatten() {
            let sum = total.entry(*class).or_default();
            sum.all += count.all;
            sum.explained += count.explained;
        }
        total
    }

    /// The summary for programs: every class by name, in all and for each endpoint. `…_explained` are of those before them.
    pub fn json(&self) -> Json {
        let endpoints: Vec<Json> = self
            .rows
            .iter()
            .map(|(endpoint, counts)| {
                let mut row = counts_json(counts);
                row.insert("endpoint".into(), endpoint.map_or(Json::Null, |key| key.to_string().into()));
                Json::Object(row)
            })
            .collect();
        json!({ "type": "summary", "total": counts_json(&self.total()), "endpoints": endpoints })
    }

    /// The summary for people, a line an endpoint.
    pub fn text(&self) -> String {
        let mut lines = vec![table_line("endpoint", Class::ALL.map(|class| class.name().replace('_', " ")))];
        for (endpoint, counts) in &self.rows {
            lines.push(table_line(&label(*endpoint), cells(counts)));
        }
        let total = self.total();
        lines.push(table_line("all", cells(&total)));
        let explained = |class| {
            let Count { all, explained } = total.get(&class).copied().unwrap_or_default();
            format!("{explained} of {all} {}", class.name())
        };
        lines.push(format!(
            "explained by what is known of Flagsmith: {}, {}",
            explained(Class::Missing),
            explained(Class::Differs)
        ));
        lines.join("\n")
    }
}

fn cells(counts: &BTreeMap<Class, Count>) -> [String; 9] {
    Class::ALL.map(|class| counts.get(&class).map_or_else(|| "-".to_owned(), |count| count.all.to_string()))
}

fn table_line(name: &str, cells: [String; 9]) -> String {
    let mut line = format!("{name:<17}");
    for (cell, class) in cells.iter().zip(Class::ALL) {
        line.push_str(&format!("  {cell:>width$}", width = class.name().len()));
    }
    line
}

fn counts_json(counts: &BTreeMap<Class, Count>) -> Map<String, Json> {
    let mut all = Map::new();
    for class in Class::ALL {
        let count = counts.get(&class).copied().unwrap_or_default();
        all.insert(class.name().into(), count.all.into());
        if class.can_be_explained() {
            all.insert(format!("{}_explained", class.name()), count.explained.into());
        }
    }
    all
}
