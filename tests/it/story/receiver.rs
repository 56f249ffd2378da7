//! A receiver: knows of every flag value what the last event said, and what it was told otherwise (what was there before
//! flagpost, what was born with an environment). It reads bodies, as real ones do.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use super::oracle::{FlagValue, For, Live, Visible};
use super::play::Told;

#[derive(Debug, Default)]
pub(super) struct Receiver {
    known: BTreeMap<FlagValue, Visible>,
    /// The version that was told last, by feature and environment.
    versions: BTreeMap<(i64, i64), String>,
    all_versions: BTreeSet<String>,
}

/// A flag event, read from its `current` body.
#[derive(Debug)]
pub(super) struct FlagEvent {
    pub(super) flag: FlagValue,
    pub(super) previous: Option<Visible>,
    pub(super) new: Option<Visible>,
}

impl FlagEvent {
    /// `None` when the event is of no flag; an error when its body is not of its flag.
    pub(super) fn read(told: &Told) -> Result<Option<FlagEvent>, String> {
        let Some(flag) = told.flag else { return Ok(None) };
        let body: Json = serde_json::from_str(&told.current).unwrap();
        let side = |name: &str| Some(&body["data"][name]).filter(|state| !state.is_null());
        let (previous, new) = (side("previous_state"), side("new_state"));
        let kind = if new.is_some() { "FLAG_UPDATED" } else { "FLAG_DELETED" };
        if body["event_type"] != kind || !previous.into_iter().chain(new).all(|state| is_of(state, flag)) {
            return Err(format!("{flag:?} in {body}"));
        }
        Ok(Some(FlagEvent { flag, previous: previous.map(visible), new: new.map(visible) }))
    }
}

/// Whether a body tells for what flag value it is. A segment that is gone has no id in it.
fn is_of(state: &Json, flag: FlagValue) -> bool {
    let segment = &state["feature_segment"]["segment"]["id"];
    let whom = match flag.whom {
        For::Everybody => state["identity"].is_null() && state["feature_segment"].is_null(),
        For::Segment(id) => segment.is_null() || segment.as_i64() == Some(id),
        For::Identity(id) => state["identity"].as_i64() == Some(id),
    };
    whom && state["feature"]["id"] == flag.feature && state["environment"]["id"] == flag.environment
}

fn visible(state: &Json) -> Visible {
    let variants = state["multivariate_feature_state_values"].as_array().unwrap();
    let variant = |variant: &Json| {
        let option = &variant["multivariate_feature_option"];
        let percentage = variant["percentage_allocation"].as_f64();
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

    /// Learns which versions are live by other means than an event.
    pub(super) fn is_told_of_versions(&mut self, live: &BTreeMap<(i64, i64), Live>) {
        self.versions.extend(live.iter().map(|(flag, live)| (*flag, live.uuid.clone())));
    }

    /// Takes an event of a version that went live, which is told once.
    pub(super) fn takes_version(&mut self, flag: (i64, i64), told: &Told) -> Result<(), String> {
        let body: Json = serde_json::from_str(&told.current).unwrap();
        let uuid = body["data"]["uuid"].as_str().unwrap_or_default().to_owned();
        if body["event_type"] != "NEW_VERSION_PUBLISHED" || body["data"]["feature"]["id"] != flag.0 {
            return Err(format!("no version of {flag:?}: {body}"));
        }
        if !self.all_versions.insert(uuid.clone()) {
            return Err(format!("version {uuid} is told twice"));
        }
        self.versions.insert(flag, uuid);
        Ok(())
    }

    /// The version of a feature in an environment that was told last.
    pub(super) fn version(&self, flag: (i64, i64)) -> Option<&str> {
        self.versions.get(&flag).map(String::as_str)
    }

    /// Forgets everything: what it knows may be out of date.
    pub(super) fn forgets_all(&mut self) {
        self.known.clear();
    }

    /// Takes an event; an error when it does not go on from what the receiver knows.
    pub(super) fn takes(&mut self, event: FlagEvent) -> Result<(), String> {
        let known = self.known.get(&event.flag);
        if known != event.previous.as_ref() {
            return Err(format!("the receiver knows {known:?}, but the event says {event:?}"));
        }
        self.takes_what_is_new(event)
    }

    /// The same for a receiver that need not have known the flag.
    pub(super) fn takes_what_is_new(&mut self, event: FlagEvent) -> Result<(), String> {
        let known = self.known.get(&event.flag);
        if known.is_some() && known != event.previous.as_ref() {
            return Err(format!("the receiver knows {known:?}, but the event says {event:?}"));
        }
        // A body does not tell which option it is that is gone, nor a percentage that is infinite from one that is NULL.
        let shows_all = |visible: &Visible| {
            visible.variants.iter().all(|(option, _, percentage)| option.is_some() && percentage.is_some())
        };
        if event.previous == event.new && event.new.as_ref().is_none_or(shows_all) {
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
