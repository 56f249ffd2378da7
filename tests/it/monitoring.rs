//! What watches flagpost fits it: alerts and dashboard name metrics that there are, and every alert has its section of the runbook.
//!
//! Whether the rules are valid and fire when they should is promtool's matter (`make test`).

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::documents::anchors;

/// The address at which an alert's section is found.
const RUNBOOK: &str = "https://github.com/flagpost/flagpost/blob/main/docs/operations.md#";
/// Series that others make: Prometheus of each scrape, the blackbox exporter of each probe.
const OF_OTHERS: [&str; 2] = ["up", "probe_success"];

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The first string literal of a text that begins with one.
fn literal(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix('"')?.split('"').next()
}

/// The names that a source file gives to `function`, each with the text that follows it. A registry may come before the name.
fn given<'a>(source: &'a str, function: &str) -> Vec<(&'a str, &'a str)> {
    let calls = source.split(function).skip(1).map(str::trim_start);
    let arguments = calls.map(|call| call.strip_prefix("registry,").unwrap_or(call));
    arguments.filter_map(|arguments| Some((literal(arguments)?, arguments))).collect()
}

/// What the type of a metric makes of its name (OpenMetrics, "Suffixes").
fn suffixes(kind: &str) -> &'static [&'static str] {
    match () {
        () if kind.contains("Counter") => &["_total"],
        () if kind.contains("Histogram") => &["_bucket", "_count", "_sum"],
        () if kind.contains("Info") => &["_info"],
        () => &[""],
    }
}

/// The names that a scrape can show.
fn registered() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut add = |prefix: &str, name: &str, kind: &str| {
        names.extend(suffixes(kind).iter().map(|suffix| format!("{prefix}{name}{suffix}")));
    };
    let gathered = file("src/ops/metrics.rs");
    for (name, _) in given(&gathered, "gauge(") {
        add("flagpost_", name, "Gauge");
    }
    for (name, _) in given(&gathered, "registry.register(") {
        add("flagpost_", name, if name == "build" { "Info" } else { "Gauge" });
    }
    let counted = file("src/fact/meters.rs");
    for (name, after) in given(&counted, "registry.register(") {
        let field = after.split_once("self.").unwrap().1.split('.').next().unwrap();
        let declared = format!("pub {field}: ");
        let kind = counted.split_once(&declared).unwrap().1.lines().next().unwrap();
        add("flagpost_", name, kind);
    }
    let process = file("src/ops/process.rs");
    for (name, _) in given(&process, "figure(") {
        add("", name, "Gauge");
    }
    names
}

/// The names of series in an expression: words that begin as ours do, and those of others.
fn series(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| {
            word.starts_with("flagpost_") || word.starts_with("process_") || OF_OTHERS.contains(word)
        })
        .map(str::to_owned)
        .collect()
}

fn unknown(expression: &str) -> Vec<String> {
    let names = registered();
    let used = series(expression);
    used.into_iter().filter(|name| !names.contains(name) && !OF_OTHERS.contains(&name.as_str())).collect()
}

struct Alert {
    name: String,
    text: String,
}

impl Alert {
    /// The value of a key that stands in one line.
    fn value(&self, key: &str) -> &str {
        let line = self.text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("{} has no {key}", self.name))
    }

    fn expression(&self) -> &str {
        self.text.split_once("expr:").unwrap().1.split_once("for:").unwrap().0
    }
}

fn alerts() -> Vec<Alert> {
    let rules = file("monitoring/alerts.yml");
    let alert = |text: &str| Alert { name: text.lines().next().unwrap().to_owned(), text: text.to_owned() };
    rules.split("- alert: ").skip(1).map(alert).collect()
}

/// Every expression of the dashboard.
fn expressions(value: &Value, all: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value.as_str() {
                    Some(text) if key == "expr" || key == "definition" => all.push(text.to_owned()),
                    _ => expressions(value, all),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, all)),
        _ => {}
    }
}

#[test]
fn alerts_and_dashboard_are_about_metrics_that_there_are() {
    let alerts = alerts();
    assert!(alerts.len() > 20, "{}", alerts.len());
    for alert in &alerts {
        assert!(!series(alert.expression()).is_empty(), "{} watches nothing", alert.name);
        assert_eq!(unknown(alert.expression()), Vec::<String>::new(), "{}", alert.name);
    }
    let dashboard: Value = serde_json::from_str(&file("monitoring/grafana.json")).unwrap();
    let mut all = Vec::new();
    expressions(&dashboard, &mut all);
    assert!(all.len() > 40, "{}", all.len());
    for expression in all {
        assert_eq!(unknown(&expression), Vec::<String>::new(), "{expression}");
    }
}

#[test]
fn a_metric_that_is_none_would_be_found() {
    assert_eq!(unknown("rate(flagpost_attempts[5m]) > flagpost_lag_seconds"), ["flagpost_attempts"]);
    assert_eq!(unknown("process_cpu_minutes / up"), ["process_cpu_minutes"]);
}

#[test]
fn every_metric_is_on_the_dashboard() {
    let dashboard = file("monitoring/grafana.json");
    let shown = series(&dashboard);
    // Of a histogram the buckets are enough.
    let is_needed = |name: &String| !name.ends_with("_sum") && !name.ends_with("_count");
    let missing: Vec<String> =
        registered().into_iter().filter(is_needed).filter(|name| !shown.contains(name)).collect();
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn every_alert_says_what_it_is_about_and_has_its_section_of_the_runbook() {
    let runbook = file("docs/operations.md");
    let anchors = anchors(&runbook);
    let tests = file("monitoring/alerts_test.yml");
    let alerts = alerts();
    for alert in &alerts {
        assert!(["warning", "critical"].contains(&alert.value("severity")), "{}", alert.name);
        for key in ["for", "summary", "description"] {
            assert!(!alert.value(key).is_empty(), "{}: {key}", alert.name);
        }
        let anchor = alert.value("runbook_url").strip_prefix(RUNBOOK).unwrap();
        assert_eq!(anchor, alert.name.to_lowercase(), "{}", alert.name);
        assert!(anchors.contains(anchor), "docs/operations.md has no section {}", alert.name);
        assert!(tests.contains(&format!("\"{}\"", alert.name)), "alerts_test.yml lacks {}", alert.name);
    }
    let names: BTreeSet<String> = alerts.iter().map(|alert| alert.name.to_lowercase()).collect();
    let stale: Vec<&String> =
        anchors.iter().filter(|a| a.starts_with("flagpost") && !names.contains(*a)).collect();
    assert!(stale.is_empty(), "sections of alerts that are none: {stale:?}");
}
