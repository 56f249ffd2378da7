//! The payload formats: an event in, a body out, no I/O. A format is one file.

mod classic;
mod current;
mod json;
mod time;

use std::str::FromStr;

use serde_json::{Value as Json, json};

use super::{Event, Kind, Payload};
use crate::change::{Micros, Row};
use crate::mirror::{StateView, Value};
use crate::schema::{feature, feature_state, identity};

/// Which bodies an endpoint gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The documented bodies of 2020.
    Classic,
    /// What Flagsmith 2.265 sends, byte for byte.
    Current,
}

impl Format {
    /// The name in the configuration and the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Format::Classic => "classic",
            Format::Current => "current",
        }
    }

    /// Whether there is a body for such events: the documentation of 2020 knows no versions.
    pub fn has(self, kind: Kind) -> bool {
        self == Format::Current || kind != Kind::NewVersionPublished
    }

    /// The exact bytes to send, as UTF-8 text.
    pub fn body(self, event: &Event) -> String {
        let value = match (self, &event.payload) {
            (Format::Classic, Payload::Flag(flag)) => envelope(event, classic::flag(flag)),
            (Format::Current, Payload::Flag(flag)) => envelope(event, current::flag(flag)),
            // Nobody gets it in `classic`; the ledger shows it to an operator.
            (_, Payload::Version(version)) => envelope(event, current::version(version)),
            (Format::Classic, Payload::Audit(audit)) => classic::audit(audit),
            (Format::Current, Payload::Audit(audit)) => envelope(event, current::audit(audit)),
        };
        json::write(&value)
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "classic" => Ok(Format::Classic),
            "current" => Ok(Format::Current),
            other => Err(format!("{other:?} is no payload format: use \"classic\" or \"current\"")),
        }
    }
}

fn envelope(event: &Event, data: Json) -> Json {
    json!({ "event_type": event.kind.name(), "data": data })
}

fn text(row: &Row, column: usize) -> Json {
    row.text(column).map_or(Json::Null, Json::from)
}

fn int(row: &Row, column: usize) -> Json {
    row.int(column).map_or(Json::Null, Json::from)
}

/// A boolean column; NULL stays null.
fn boolean(row: &Row, column: usize) -> Json {
    if row.is_null(column) { Json::Null } else { row.flag(column).into() }
}

fn value(value: Value<'_>) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Int(n) => n.into(),
        Value::Bool(b) => b.into(),
        Value::Text(t) => t.into(),
    }
}

fn audit_time(row: &Row, column: usize) -> Json {
    row.text(column).and_then(Micros::parse).map_or(Json::Null, |at| time::six_or_none(at).into())
}

/// The feature as both formats show it, but for its project.
fn feature(view: &StateView, project: Json) -> Json {
    let created = view.feature.text(feature::CREATED_DATE).and_then(Micros::parse);
    json!({
        "created_date": created.map(time::six),
        "default_enabled": view.feature.flag(feature::DEFAULT_ENABLED),
        "description": text(&view.feature, feature::DESCRIPTION),
        "id": int(&view.feature, feature::ID),
        "initial_value": text(&view.feature, feature::INITIAL_VALUE),
        "name": text(&view.feature, feature::NAME),
        "project": project,
        "type": text(&view.feature, feature::TYPE),
    })
}

/// What both formats show of a state in the same way.
fn common_state(view: &StateView) -> serde_json::Map<String, Json> {
    let identifier = view.identity.as_ref().map_or(Json::Null, |row| text(row, identity::IDENTIFIER));
    let mut state = serde_json::Map::new();
    state.insert("enabled".into(), view.state.flag(feature_state::ENABLED).into());
    state.insert("feature_state_value".into(), value(view.value()));
    state.insert("identity".into(), int(&view.state, feature_state::IDENTITY_ID));
    state.insert("identity_identifier".into(), identifier);
    state
}
