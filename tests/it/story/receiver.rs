//! A receiver: knows of every flag value what the last event said, and what it was told otherwise (what was there before
//! flagpost, what was born with an environment). It reads bodies, as real ones do.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::oracle::{FlagValue, For, Visible};

#[derive(Debug, Default)]
pub(super) struct Receiver {
    known: BTreeMap<FlagValue, Visible>,
}

/// A flag event, read from its `current` body.
#[derive(Debug)]
pub(super) struct FlagEvent {
    pub(super) flag: FlagValue,
    pub(super) previous: Option<Visible>,
    pub(super) new: Option<Visible>,
}

impl FlagEvent {
    /// `None` when the body is of no flag event.
    pub(super) fn read(body: &str) -> Option<FlagEvent> {
        let body: Json = serde_json::from_str(body).unwrap();
        let kind = body["event_type"].as_str().unwrap();
        if !matches!(kind, "FLAG_UPDATED" | "FLAG_DELETED") {
            return None;
        }
        let side = |name: &str| Some(&body["data"][name]).filter(|state| !state.is_null());
        let (previous, new) = (side("previous_state"), side("new_state"));
        assert_eq!(kind == "FLAG_DELETED", new.is_none(), "{body}");
        let flag = flag(new.or(previous).unwrap());
        assert!(previous.is_none_or(|previous| self::flag(previous) == flag), "two flags in {body}");
        Some(FlagEvent { flag, previous: previous.map(visible), new: new.map(visible) })
    }
}

fn flag(state: &Json) -> FlagValue {
    let segment = &state["feature_segment"]["segment"]["id"];
    let whom = match (state["identity"].as_i64(), segment.as_i64()) {
        (Some(identity), _) => For::Identity(identity),
        (None, Some(segment)) => For::Segment(segment),
        (None, None) => For::Everybody,
    };
    FlagValue {
        feature: state["feature"]["id"].as_i64().unwrap(),
        environment: state["environment"]["id"].as_i64().unwrap(),
        whom,
    }
}

fn visible(state: &Json) -> Visible {
    let variants = state["multivariate_feature_state_values"].as_array().unwrap();
    let variant = |variant: &Json| {
        let option = &variant["multivariate_feature_option"];
        let percentage = variant["percentage_allocation"].as_f64().unwrap();
        (option["id"].as_i64(), option["value"].clone(), percentage)
    };
    Visible {
        enabled: state["enabled"].as_bool().unwrap(),
        value: state["feature_state_value"].clone(),
        variants: variants.iter().map(variant).collect(),
        priority: state["feature_segment"]["priority"].as_i64(),
    }
}

impl Receiver {
    /// Learns flag values by other means than an event.
    pub(super) fn is_told(&mut self, flags: &BTreeMap<FlagValue, Visible>) {
        self.known.extend(flags.iter().map(|(flag, visible)| (*flag, visible.clone())));
    }

    /// Forgets an environment: what it knows of it may be out of date.
    pub(super) fn forgets(&mut self, environment: i64) {
        self.known.retain(|flag, _| flag.environment != environment);
    }

    /// Takes an event; an error when it does not go on from what the receiver knows.
    pub(super) fn takes(&mut self, event: FlagEvent) -> Result<(), String> {
        let known = self.known.get(&event.flag);
        if known != event.previous.as_ref() {
            return Err(format!("the receiver knows {known:?}, but the event says {event:?}"));
        }
        self.takes_unchecked(event)
    }

    /// The same for a receiver that may have missed something.
    pub(super) fn takes_unchecked(&mut self, event: FlagEvent) -> Result<(), String> {
        if event.previous == event.new {
            return Err(format!("nothing changed by {event:?}"));
        }
        match event.new {
            Some(new) => self.known.insert(event.flag, new),
            None => self.known.remove(&event.flag),
        };
        Ok(())
    }

    pub(super) fn known(&self) -> &BTreeMap<FlagValue, Visible> {
        &self.known
    }
}
