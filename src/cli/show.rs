//! `flagpost show`: everything on record of one event: what changed, who got it, what they answered.

mod change;

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use serde_json::Value as Json;

use super::endpoint;
use super::moment;
use super::printable::{cut, lines, one_line};
use super::view::{EventView, Names};
use super::wanted;
use crate::change::Micros;
use crate::config::Config;
use crate::delivery::redacted;
use crate::error::{Error, Result};
use crate::ledger::{Attempt, Delivery, DeliveryState, Reader};
use change::Change;

/// So much of an answer is shown, in characters.
const ANSWER_CHARS: usize = 1024;
/// Environments' keys are in the bodies of audit events in format `current`, as Flagsmith sends them. They are not shown.
const HIDDEN: [&str; 1] = ["api_key"];

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The event's id, or how it begins
    #[arg(value_name = "ID")]
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An event with all that is on record of it.
#[derive(Serialize)]
pub(super) struct Shown {
    #[serde(flatten)]
    event: EventView,
    changed_by: Option<String>,
    /// What changed, of a flag event.
    changes: Vec<Change>,
    /// What the event says, keys of environments left out.
    data: Json,
    #[serde(skip)]
    body_format: String,
    /// By endpoint.
    attempts: BTreeMap<String, Vec<AttemptView>>,
}

#[derive(Serialize)]
struct AttemptView {
    number: u32,
    at: String,
    http_status: Option<u16>,
    milliseconds: u64,
    error: Option<String>,
    answer: Option<String>,
    replay: bool,
}

/// The event whose id begins so.
pub(super) fn shown(reader: &Reader, id: &str) -> Result<(Shown, Vec<Delivery>)> {
    let event = wanted::event(reader, id)?;
    let deliveries = reader.deliveries(event.seq)?;
    let mut attempts = BTreeMap::new();
    for delivery in &deliveries {
        let made = reader.attempts(delivery.endpoint, event.seq)?;
        attempts.insert(delivery.endpoint.to_string(), made.into_iter().map(attempt).collect());
    }
    let bodies = reader.bodies(event.seq)?;
    // `current` tells more: variants, priorities, names.
    let body = bodies.iter().find(|(format, _)| format == "current").or(bodies.first());
    let (body_format, data) = body.map(|(format, text)| (format.clone(), data(text))).unwrap_or_default();
    let shown = Shown {
        changed_by: text(&data, "/changed_by"),
        changes: change::changes(data.get("previous_state"), data.get("new_state")),
        event: EventView::new(reader, &mut Names::default(), event, &deliveries)?,
        data,
        body_format,
        attempts,
    };
    Ok((shown, deliveries))
}

pub(super) fn show(config: &Config, options: &Options) -> Result<u8> {
    let reader = endpoint::reader(config)?;
    let (shown, deliveries) = shown(&reader, &options.id)?;
    if options.json {
        let text = serde_json::to_string_pretty(&shown)
            .map_err(|e| Error::internal(format!("the event cannot be written as JSON: {e}")))?;
        say!("{text}");
    } else {
        print_event(&shown);
        print_said(&shown);
        print_deliveries(config, &reader, &shown, &deliveries)?;
    }
    Ok(0)
}

fn attempt(attempt: Attempt) -> AttemptView {
    AttemptView {
        number: attempt.number,
        at: moment::exact(attempt.at),
        http_status: attempt.http_status,
        milliseconds: attempt.milliseconds,
        error: attempt.error,
        answer: attempt.answer.map(|answer| cut(&answer, ANSWER_CHARS)),
        replay: attempt.replay,
    }
}

/// What a body says, without its envelope.
fn data(body: &str) -> Json {
    let mut body: Json = serde_json::from_str(body).unwrap_or_default();
    let mut data = match body.get_mut("data") {
        Some(data) => data.take(),
        None => body,
    };
    hide(&mut data);
    data
}

fn hide(json: &mut Json) {
    match json {
        Json::Object(fields) => {
            for (name, value) in fields {
                if HIDDEN.contains(&name.as_str()) && value.is_string() {
                    *value = "(hidden)".into();
                } else {
                    hide(value);
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(hide),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

fn text(json: &Json, pointer: &str) -> Option<String> {
    json.pointer(pointer).and_then(Json::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn line(name: &str, text: &str) {
    say!("{name:<12} {text}");
}

fn print_event(shown: &Shown) {
    let event = &shown.event;
    let number = |id: Option<i64>| id.map_or_else(|| "none".to_owned(), |id| id.to_string());
    line("event", &event.id);
    line("what", &format!("{} {}", event.kind, event.happened()));
    if let Some(feature) = &event.feature {
        line("feature", &format!("{} ({})", one_line(feature), number(event.feature_id)));
    }
    let environment = event.environment.as_deref().map(one_line).unwrap_or_default();
    let place = format!("{environment} ({})", number(event.environment_id));
    if event.environment_id.is_some() {
        line("environment", place.trim_start());
    }
    line(
        "project",
        &format!("{} of organisation {}", number(event.project_id), number(event.organisation_id)),
    );
    if let Some(by) = &shown.changed_by {
        line("changed by", &one_line(by));
    }
    if let Some(request) = &event.change_request {
        line("request", &format!("change request {} {:?}", request.id, one_line(&request.title)));
    }
    line("committed", &event.commit_time);
    line("recorded", &event.recorded_at);
    let transaction = match event.xid {
        0 if event.reconstructed => {
            "reconstructed: the changes themselves were missed, their time is when the difference was seen"
                .to_owned()
        }
        0 => "scheduled for this moment".to_owned(),
        xid => format!("transaction (xid) {xid}"),
    };
    line("position", &format!("LSN {}, {transaction}", event.lsn));
    line("sequence", &format!("{} of its flag or audit log", event.sequence));
}

/// What the event says.
fn print_said(shown: &Shown) {
    say!();
    match shown.event.kind.as_str() {
        "FLAG_UPDATED" | "FLAG_DELETED" => print_state(shown),
        "AUDIT_LOG_CREATED" => print_audit(&shown.data),
        _ => print_version(&shown.data),
    }
}

fn print_state(shown: &Shown) {
    let has = |name: &str| shown.data.get(name).is_some_and(|state| !state.is_null());
    say!(
        "{}",
        match (has("previous_state"), has("new_state")) {
            (true, true) => "previous state → new state",
            (false, _) => "new state (there was none before)",
            (true, false) => "last state (there is none any more)",
        }
    );
    let width = shown.changes.iter().map(|change| change.field.chars().count()).max().unwrap_or(0);
    for change in &shown.changes {
        change.lines(width).iter().for_each(|line| say!("  {line}"));
    }
    let is_told = shown.changes.iter().any(|change| change.is_change());
    if !is_told && has("previous_state") && has("new_state") && shown.body_format == "classic" {
        say!("  (what changed is nothing that format classic tells: a variant, or a priority)");
    }
}

fn print_audit(data: &Json) {
    say!("record");
    let named = |name: &str, pointer: &str| {
        if let Some(text) = text(data, pointer) {
            say!("  {name:<12} {}", one_line(&text));
        }
    };
    named("log", "/log");
    named("author", "/author/email");
    named("project", "/project/name");
    named("environment", "/environment/name");
    let object = data.get("related_object_id").filter(|id| !id.is_null());
    if let (Some(kind), Some(id)) = (text(data, "/related_object_type"), object) {
        say!("  {:<12} {} {id}", "about", one_line(&kind));
    }
    named("created", "/created_date");
}

fn print_version(data: &Json) {
    say!("version");
    for (name, pointer) in
        [("uuid", "/uuid"), ("feature", "/feature/name"), ("published by", "/published_by/email")]
    {
        if let Some(text) = text(data, pointer) {
            say!("  {name:<12} {}", one_line(&text));
        }
    }
    for state in data.get("feature_states").and_then(Json::as_array).into_iter().flatten() {
        let field = |name: &str| state.get(name).map(Json::to_string).unwrap_or_default();
        say!(
            "  {:<12} enabled {}, value {}",
            "state",
            field("enabled"),
            cut(&one_line(&field("value")), 100)
        );
    }
}

fn print_deliveries(config: &Config, reader: &Reader, shown: &Shown, deliveries: &[Delivery]) -> Result<()> {
    say!();
    if deliveries.is_empty() {
        say!("no endpoint was there for it");
        return Ok(());
    }
    for delivery in deliveries {
        let url = endpoint::find(config, reader, delivery.endpoint)?.map(|endpoint| redacted(&endpoint.url));
        say!(
            "{}  {}  {}  {}",
            delivery.endpoint,
            fate(delivery),
            delivery.format,
            one_line(url.as_deref().unwrap_or("(deleted)"))
        );
        for attempt in shown.attempts.get(&delivery.endpoint.to_string()).into_iter().flatten() {
            print_attempt(attempt);
        }
    }
    Ok(())
}

fn fate(delivery: &Delivery) -> String {
    let replay = if delivery.replay { " (asked for again)" } else { "" };
    match delivery.state {
        DeliveryState::Pending | DeliveryState::Retrying => {
            let next = moment::relative(delivery.next_at, Micros::now());
            let next =
                if delivery.next_at > Micros::now() { format!("next attempt {next}") } else { "due".into() };
            format!("{}{replay}, {next}", delivery.state.name())
        }
        state => format!("{}{replay}", state.name()),
    }
}

fn print_attempt(attempt: &AttemptView) {
    let status =
        attempt.http_status.map_or_else(|| "no answer".to_owned(), |status| format!("HTTP {status}"));
    let replay = if attempt.replay { "  replay" } else { "" };
    say!("  #{:<3} {}  {status}  {} ms{replay}", attempt.number, attempt.at, attempt.milliseconds);
    if let Some(error) = attempt.error.as_ref().filter(|error| **error != status) {
        say!("       {}", one_line(error));
    }
    for line in attempt.answer.iter().flat_map(|answer| answer.lines()) {
        say!("       | {}", lines(line));
    }
}
