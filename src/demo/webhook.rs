//! A webhook as the receiver got it, read for people: what kind, of what, signed rightly, and what differs.
//!
//! Pure: bytes in, words out. The signature is computed anew from the received bytes and the endpoint's secret.

use jiff::Timestamp;
use serde_json::Value as Json;

use super::receiver::Received;
use crate::delivery::flagsmith_signature;
use crate::error::{Error, Result};

/// A webhook that arrived.
#[derive(Debug, Clone)]
pub(super) struct Webhook {
    /// The path that it was posted to, which names the endpoint.
    pub(super) endpoint: String,
    /// `event_type` of the body.
    pub(super) event: String,
    /// `X-Flagpost-Action`.
    pub(super) action: String,
    /// `X-Flagpost-Event-Id`: the same in every repeat.
    pub(super) id: String,
    /// Whether the signature is the one of these bytes with this endpoint's secret.
    pub(super) is_signed: bool,
    /// When it had arrived.
    pub(super) at: Timestamp,
    /// `data` of the body.
    pub(super) data: Json,
    /// The body as it came.
    pub(super) bytes: Vec<u8>,
}

impl Webhook {
    /// Reads a request to an endpoint that has this secret.
    pub(super) fn read(received: &Received, secret: &str) -> Result<Webhook> {
        let header = |name: &str| received.header(name).unwrap_or_default().to_owned();
        let mut body: Json = serde_json::from_slice(&received.body).map_err(|e| {
            Error::internal(format!("a body at {} is not JSON ({e}): please report it", received.path))
        })?;
        let expected = flagsmith_signature(secret, &received.body);
        Ok(Webhook {
            endpoint: received.path.clone(),
            event: text(&body, "event_type"),
            action: header("x-flagpost-action"),
            id: header("x-flagpost-event-id"),
            is_signed: expected.as_deref() == received.header("x-flagsmith-signature"),
            at: received.at,
            data: body.get_mut("data").map(Json::take).unwrap_or_default(),
            bytes: received.body.clone(),
        })
    }

    /// Whether it tells of a flag, not of the audit log.
    pub(super) fn is_flag(&self) -> bool {
        self.event.starts_with("FLAG_")
    }

    /// The state after the change.
    pub(super) fn new_state(&self) -> Option<&Json> {
        self.state("new_state")
    }

    /// The state before the change.
    pub(super) fn previous_state(&self) -> Option<&Json> {
        self.state("previous_state")
    }

    fn state(&self, which: &str) -> Option<&Json> {
        self.data.get(which).filter(|state| state.is_object())
    }

    /// Name of the flag.
    pub(super) fn flag(&self) -> String {
        let state = self.new_state().or(self.previous_state());
        state.and_then(|state| state.get("feature")).map(|f| text(f, "name")).unwrap_or_default()
    }

    /// Id of the environment: a number in `classic`, part of an object in `current`.
    pub(super) fn environment(&self) -> Option<i64> {
        let environment = self.new_state().or(self.previous_state())?.get("environment")?;
        environment.get("id").unwrap_or(environment).as_i64()
    }

    /// `log` of an audit event.
    pub(super) fn log(&self) -> String {
        text(&self.data, "log")
    }

    /// `changed_by`.
    pub(super) fn changed_by(&self) -> String {
        text(&self.data, "changed_by")
    }

    /// What is worth reading: only what differs, or all of a state that came or went.
    pub(super) fn story(&self) -> Vec<String> {
        match (self.previous_state(), self.new_state()) {
            (Some(previous), Some(new)) => differences(previous, new),
            (None, Some(new)) => vec![format!("came to be: {}", whole(new))],
            (Some(previous), None) => vec![format!("was: {}", whole(previous))],
            (None, None) => Vec::new(),
        }
    }
}

/// A part of a state, and how it is shown.
type Part = (&'static str, fn(&Json) -> String);

/// The parts of a state that a person looks for.
const PARTS: &[Part] = &[
    ("enabled", Json::to_string),
    ("feature_state_value", Json::to_string),
    ("multivariate_feature_state_values", percentages),
    ("feature_segment", segment),
    ("identity_identifier", Json::to_string),
];

fn differences(previous: &Json, new: &Json) -> Vec<String> {
    let shown = |state: &Json, part: &str, show: fn(&Json) -> String| state.get(part).map(show);
    PARTS
        .iter()
        .filter(|(part, _)| previous.get(part) != new.get(part))
        .map(|(part, show)| {
            let [previous, new] = [previous, new].map(|state| shown(state, part, *show).unwrap_or_default());
            format!("{part}: {previous} → {new}")
        })
        .collect()
}

fn whole(state: &Json) -> String {
    let parts = PARTS.iter().filter_map(|(part, show)| {
        let value = state.get(part)?;
        let is_there = !value.is_null() && value.as_array().is_none_or(|all| !all.is_empty());
        is_there.then(|| format!("{part} {}", show(value)))
    });
    parts.collect::<Vec<_>>().join(", ")
}

fn percentages(values: &Json) -> String {
    let values = values.as_array().map(Vec::as_slice).unwrap_or_default();
    let each = values.iter().map(|value| {
        let option = value.pointer("/multivariate_feature_option/value").unwrap_or(&Json::Null);
        let percentage = value.get("percentage_allocation").and_then(Json::as_f64).unwrap_or_default();
        format!("{option} {percentage} %")
    });
    each.collect::<Vec<_>>().join(", ")
}

/// An id in `classic`, an object in `current`.
fn segment(value: &Json) -> String {
    match (value.pointer("/segment/name"), value.get("priority")) {
        (Some(name), Some(priority)) => format!("{name} (priority {priority})"),
        _ => value.to_string(),
    }
}

fn text(object: &Json, key: &str) -> String {
    object.get(key).and_then(Json::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(body: &str, signature: &str) -> Received {
        Received {
            path: "/production".into(),
            headers: vec![("x-flagsmith-signature".into(), signature.into())],
            body: body.as_bytes().to_vec(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn only_what_differs_is_told() {
        let body = r#"{"event_type": "FLAG_UPDATED", "data": {"changed_by": "Ada Byron",
            "previous_state": {"enabled": true, "feature_state_value": "a", "environment": 2, "feature": {"name": "x"}},
            "new_state": {"enabled": true, "feature_state_value": 7, "environment": {"id": 2}, "feature": {"name": "x"}}}}"#;
        let webhook = Webhook::read(&received(body, ""), "secret").unwrap();
        assert_eq!(webhook.story(), ["feature_state_value: \"a\" → 7"]);
        assert_eq!((webhook.flag().as_str(), webhook.environment()), ("x", Some(2)));
    }

    #[test]
    fn a_signature_counts_only_for_these_bytes_and_this_secret() {
        let signature = flagsmith_signature("secret", b"{}").unwrap();
        assert!(Webhook::read(&received("{}", &signature), "secret").unwrap().is_signed);
        assert!(!Webhook::read(&received("{ }", &signature), "secret").unwrap().is_signed);
        assert!(!Webhook::read(&received("{}", &signature), "other").unwrap().is_signed);
        assert!(!Webhook::read(&received("{}", ""), "secret").unwrap().is_signed);
        let mut unsigned = received("{}", "");
        unsigned.headers.clear();
        assert!(!Webhook::read(&unsigned, "secret").unwrap().is_signed);
    }
}
