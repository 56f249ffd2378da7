//! The proof that nothing was lost: what was committed against what arrived at one endpoint.
//!
//! Repeats are told by the event id and must be the same bytes. Without them, the events of each flag must be its
//! committed changes: all of them, in order, each `previous_state` being the `new_state` before. Pure.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::webhook::Webhook;

/// What a flag was like: first before everything, then after each commit.
#[derive(Debug)]
pub(super) struct Track {
    pub(super) flag: &'static str,
    pub(super) states: Vec<Json>,
}

/// The part of a state that the demo changes, in the form of [`Track::states`].
pub(super) fn visible(enabled: &Json, value: &Json) -> Json {
    json!([enabled, value])
}

/// What came out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) committed: usize,
    pub(super) received: usize,
    /// Different ids.
    pub(super) events: usize,
    pub(super) repeats: usize,
    /// Committed changes without an event.
    pub(super) lost: usize,
    pub(super) problems: Vec<String>,
}

/// Compares the changes of flags with the flag events of one endpoint, in the order of their arrival.
pub(super) fn of_flags(tracks: &[Track], webhooks: &[&Webhook]) -> Proof {
    let (mut proof, events) = without_repeats(webhooks);
    let mut known = 0;
    for track in tracks {
        let told: Vec<[Json; 2]> =
            events.iter().filter(|event| event.flag() == track.flag).map(|event| change(event)).collect();
        known += told.len();
        proof.committed += track.states.len().saturating_sub(1);
        compare(track, &told, &mut proof);
    }
    if known != events.len() {
        proof.problems.push(format!("{} events of flags that nobody changed", events.len() - known));
    }
    proof
}

/// Compares a number of audit rows with the audit events of one endpoint.
pub(super) fn of_audit(rows: usize, webhooks: &[&Webhook]) -> Proof {
    let (mut proof, events) = without_repeats(webhooks);
    proof.committed = rows;
    proof.lost = rows.saturating_sub(events.len());
    if events.len() > rows {
        proof.problems.push(format!("{} audit events of {rows} rows", events.len()));
    }
    proof
}

fn without_repeats<'a>(webhooks: &[&'a Webhook]) -> (Proof, Vec<&'a Webhook>) {
    let mut proof = Proof { received: webhooks.len(), ..Proof::default() };
    let mut first: HashMap<&str, &Webhook> = HashMap::new();
    let mut events = Vec::new();
    for webhook in webhooks {
        let Some(earlier) = first.get(webhook.id.as_str()) else {
            first.insert(&webhook.id, webhook);
            events.push(*webhook);
            continue;
        };
        proof.repeats += 1;
        if earlier.bytes != webhook.bytes {
            proof.problems.push(format!("event {} came again with another body", webhook.id));
        }
    }
    proof.events = events.len();
    (proof, events)
}

fn change(event: &Webhook) -> [Json; 2] {
    [event.previous_state(), event.new_state()].map(|state| {
        let part = |name: &str| state.and_then(|state| state.get(name)).cloned().unwrap_or_default();
        visible(&part("enabled"), &part("feature_state_value"))
    })
}

fn compare(track: &Track, told: &[[Json; 2]], proof: &mut Proof) {
    let mut rest = told.iter().peekable();
    let mut missing = 0;
    for committed in track.states.windows(2) {
        if rest.next_if(|told| told.as_slice() == committed).is_none() {
            missing += 1;
        }
    }
    proof.lost += missing;
    let left = rest.count();
    if left > 0 {
        proof.problems.push(format!(
            "{left} events of {} are out of order, or tell of states that were never committed",
            track.flag
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::receiver::Received;
    use jiff::Timestamp;

    fn event(id: &str, flag: &str, previous: i64, new: i64) -> Webhook {
        let state =
            |value: i64| json!({"enabled": true, "feature_state_value": value, "feature": {"name": flag}});
        let body = json!({"event_type": "FLAG_UPDATED",
            "data": {"previous_state": state(previous), "new_state": state(new)}});
        let received = Received {
            path: "/".into(),
            headers: vec![("x-flagpost-event-id".into(), id.into())],
            body: body.to_string().into_bytes(),
            at: Timestamp::UNIX_EPOCH,
        };
        Webhook::read(&received, "").unwrap()
    }

    fn track(flag: &'static str, values: &[i64]) -> Track {
        Track { flag, states: values.iter().map(|value| visible(&true.into(), &(*value).into())).collect() }
    }

    fn proof(tracks: &[Track], events: &[Webhook]) -> Proof {
        of_flags(tracks, &events.iter().collect::<Vec<_>>())
    }

    #[test]
    fn all_in_order_with_a_repeat_is_well() {
        let tracks = [track("a", &[0, 1, 2]), track("b", &[5, 6])];
        let events =
            [event("1", "a", 0, 1), event("3", "b", 5, 6), event("1", "a", 0, 1), event("2", "a", 1, 2)];
        let expected =
            Proof { committed: 3, received: 4, events: 3, repeats: 1, lost: 0, problems: Vec::new() };
        assert_eq!(proof(&tracks, &events), expected);
    }

    #[test]
    fn a_missing_one_is_lost() {
        let tracks = [track("a", &[0, 1, 2, 3])];
        for missing in 0..3 {
            let mut events = vec![event("1", "a", 0, 1), event("2", "a", 1, 2), event("3", "a", 2, 3)];
            events.remove(missing);
            assert_eq!(proof(&tracks, &events).lost, 1);
        }
    }

    #[test]
    fn disorder_other_bodies_and_strangers_are_problems() {
        let tracks = [track("a", &[0, 1, 2])];
        let well = || vec![event("1", "a", 0, 1), event("2", "a", 1, 2)];
        let mut swapped = well();
        swapped.swap(0, 1);
        let mut other_body = well();
        other_body.push(event("2", "a", 0, 2));
        let mut doubled = well();
        doubled.push(event("3", "a", 1, 2));
        let mut stranger = well();
        stranger.push(event("4", "b", 1, 2));
        for events in [swapped, other_body, doubled, stranger] {
            assert_eq!(proof(&tracks, &events).problems.len(), 1, "{events:?}");
        }
        assert_eq!(proof(&tracks, &well()).problems, [""; 0]);
    }

    #[test]
    fn audit_events_are_counted_by_id() {
        let events = [event("1", "", 0, 0), event("1", "", 0, 0), event("2", "", 0, 0)];
        let events: Vec<&Webhook> = events.iter().collect();
        let proof = of_audit(3, &events);
        assert_eq!((proof.events, proof.repeats, proof.lost), (2, 1, 1));
    }
}
