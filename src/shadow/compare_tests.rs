//! The rules of the comparison, one test each.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::compare::{Comparison, Expected, Limits, Received};
use super::finding::{Class, EventFacts, Finding, Tally};
use crate::change::Micros;
use crate::event::EndpointKey;

const GRACE: Duration = Duration::from_secs(30);
const ENDPOINT: EndpointKey = EndpointKey::Environment(1);

fn at(seconds: f64) -> Micros {
    #[allow(clippy::cast_possible_truncation, reason = "small numbers")]
    Micros((seconds * 1e6) as i64)
}

/// Listening since 0; the tests begin at 100.
fn comparison() -> Comparison {
    Comparison::new(Limits { grace: GRACE, late: Duration::from_secs(10), since: at(0.0) })
}

fn state(enabled: bool, value: &str) -> Json {
    json!({
        "enabled": enabled, "feature_state_value": value, "identity": null, "feature_segment": null,
        "feature": {"id": 7, "name": "banner"}, "environment": {"id": 1, "name": "Dev"},
        "multivariate_feature_state_values": [],
    })
}

fn updated(new: &Json, previous: &Json, by: &str) -> Json {
    json!({ "event_type": "FLAG_UPDATED",
            "data": { "new_state": new, "previous_state": previous, "changed_by": by, "timestamp": "2026-01-01T00:00:05Z" } })
}

fn expected(body: &Json, commit: f64) -> Expected {
    let event = EventFacts {
        id: format!("e{commit}"),
        action: "updated;scope=default".into(),
        commit_time: at(commit),
    };
    Expected {
        endpoint: ENDPOINT,
        target: "/hook".into(),
        event,
        body: body.to_string().into_bytes(),
        is_versioned: false,
    }
}

fn received(body: &Json, seconds: f64) -> Received {
    let body = body.to_string().into_bytes();
    Received { target: "/hook".into(), endpoint: Some(ENDPOINT), body, at: at(seconds) }
}

fn classes(findings: &[Finding]) -> Vec<Class> {
    findings.iter().map(|finding| finding.class).collect()
}

fn toggle() -> Json {
    updated(&state(true, "a"), &state(false, "a"), "kim@example.com")
}

#[test]
fn equal_bodies_meet_whichever_comes_first() {
    let mut comparison = comparison();
    assert!(comparison.expected(expected(&toggle(), 100.0), at(100.1)).is_empty());
    assert_eq!(classes(&comparison.received(received(&toggle(), 101.0), at(101.0))), [Class::Equal]);
    let other = updated(&state(false, "a"), &state(true, "a"), "kim@example.com");
    assert!(comparison.received(received(&other, 102.0), at(102.0)).is_empty());
    assert_eq!(classes(&comparison.expected(expected(&other, 101.9), at(102.1))), [Class::Equal]);
    assert!(comparison.tick(at(200.0)).is_empty());
}

#[test]
fn an_equal_body_for_another_url_is_not_equal() {
    let mut comparison = comparison();
    comparison.expected(expected(&toggle(), 100.0), at(100.1));
    let elsewhere = Received { target: "/other".into(), endpoint: None, ..received(&toggle(), 101.0) };
    assert!(comparison.received(elsewhere, at(101.0)).is_empty());
    assert_eq!(classes(&comparison.tick(at(140.0))), [Class::Unexplained, Class::Missing]);
}

#[test]
fn the_second_equal_body_is_a_double() {
    let mut comparison = comparison();
    comparison.received(received(&toggle(), 100.0), at(100.0));
    comparison.received(received(&toggle(), 100.1), at(100.1));
    assert_eq!(classes(&comparison.expected(expected(&toggle(), 99.9), at(100.2))), [Class::Equal]);
    let judged = comparison.tick(at(131.0));
    assert_eq!(classes(&judged), [Class::Doubled]);
    assert_eq!(judged[0].event.as_ref().unwrap().id, "e99.9");
}

#[test]
fn two_endpoints_of_one_url_get_one_each() {
    let mut comparison = comparison();
    comparison.received(received(&toggle(), 100.0), at(100.0));
    comparison.received(received(&toggle(), 100.1), at(100.1));
    comparison.expected(expected(&toggle(), 99.9), at(100.2));
    let other = Expected { endpoint: EndpointKey::Organisation(1), ..expected(&toggle(), 99.9) };
    assert_eq!(classes(&comparison.expected(other, at(100.2))), [Class::Equal]);
    assert!(comparison.tick(at(200.0)).is_empty());
}

#[test]
fn what_comes_late_is_late_and_what_comes_after_the_grace_was_missing() {
    let mut comparison = comparison();
    comparison.expected(expected(&toggle(), 100.0), at(100.1));
    let late = comparison.received(received(&toggle(), 112.0), at(112.0));
    assert_eq!((classes(&late), late[0].delay_ms), (vec![Class::Late], Some(12_000)));
    let other = updated(&state(false, "a"), &state(true, "a"), "");
    comparison.expected(expected(&other, 120.0), at(120.1));
    assert!(comparison.tick(at(150.0)).is_empty());
    let missing = comparison.tick(at(150.2));
    assert_eq!(classes(&missing), [Class::Missing]);
    assert!(missing[0].explained.unwrap().contains("SQL"));
    assert_eq!(classes(&comparison.received(received(&other, 160.0), at(160.0))), [Class::Late]);
    comparison.received(received(&other, 161.0), at(161.0));
    assert_eq!(classes(&comparison.tick(at(200.0))), [Class::Doubled]);
}

/// Flagsmith's previous state has this value where ours has another; what the difference came to.
fn with_previous(comparison: &mut Comparison, value: &str) -> Finding {
    comparison.expected(expected(&toggle(), 100.0), at(100.1));
    let theirs = updated(&state(true, "a"), &state(false, value), "kim@example.com");
    comparison.received(received(&theirs, 101.0), at(101.0));
    comparison.received(received(&theirs, 101.1), at(101.1));
    let judged = comparison.tick(at(140.0));
    assert_eq!(classes(&judged), [Class::Differs, Class::Doubled]);
    assert_eq!(judged[0].paths, ["data.previous_state.feature_state_value"]);
    judged[0].clone()
}

#[test]
fn a_previous_state_is_explained_by_earlier_states_that_are_known_and_by_nothing_else() {
    let old = updated(&state(true, "new"), &state(true, "old"), "kim@example.com").to_string();
    let mut known = comparison();
    known.recall(old.as_bytes(), at(50.0));
    // The value of one earlier state with the rest of another: Flagsmith mixes them.
    assert!(with_previous(&mut known, "old").explained.is_some());
    for (value, recalled_at) in [("never", 50.0), ("new", 100.0), ("new", 120.0)] {
        let mut comparison = comparison();
        comparison.recall(old.as_bytes(), at(recalled_at));
        assert_eq!(with_previous(&mut comparison, value).explained, None, "{value} at {recalled_at}");
    }
    assert_eq!(with_previous(&mut comparison(), "old").explained, None, "nothing is known");

    let mut other = state(true, "old");
    other["environment"]["id"] = 2.into();
    let mut comparison = comparison();
    comparison.recall(updated(&other, &other, "kim@example.com").to_string().as_bytes(), at(50.0));
    assert_eq!(with_previous(&mut comparison, "old").explained, None, "another environment's");
}

#[test]
fn another_author_is_a_difference_that_nothing_explains_but_at_a_deletion() {
    let mut comparison = comparison();
    comparison.expected(expected(&toggle(), 100.0), at(100.1));
    let theirs = updated(&state(true, "a"), &state(false, "a"), "lee@example.com");
    comparison.received(received(&theirs, 101.0), at(101.0));
    let judged = comparison.tick(at(140.0));
    assert_eq!(
        (judged[0].paths.as_slice(), judged[0].explained),
        (["data.changed_by".to_owned()].as_slice(), None)
    );

    let gone = |by: &str, time: &str| {
        json!({ "event_type": "FLAG_DELETED",
                "data": { "new_state": null, "previous_state": state(true, "a"), "changed_by": by, "timestamp": time } })
    };
    let mut explained = |time: &str| {
        comparison.expected(expected(&gone("kim", "2026-01-01T00:00:05.5Z"), 150.0), at(150.1));
        comparison.received(received(&gone("lee", time), 151.0), at(151.0));
        comparison.tick(at(190.0))[0].explained
    };
    assert!(explained("2026-01-01T00:00:05Z").unwrap().contains("deletion"));
    assert_eq!(explained("2026-01-01T00:00:06Z"), None, "no last edit is after the deletion");
    assert_eq!(explained("no time"), None);
}

#[test]
fn another_new_state_is_missing_and_unexplained() {
    let mut comparison = comparison();
    comparison.expected(expected(&toggle(), 100.0), at(100.1));
    let theirs = updated(&state(true, "b"), &state(false, "a"), "kim@example.com");
    comparison.received(received(&theirs, 101.0), at(101.0));
    assert_eq!(classes(&comparison.tick(at(140.0))), [Class::Unexplained, Class::Missing]);
}

#[test]
fn any_bytes_are_compared_as_bytes() {
    let mut comparison = comparison();
    for body in [&b""[..], b"\xff\xfe", b"[[[[", b"{\"data\": 1}", b"null"] {
        let garbage = Received { body: body.to_vec(), ..received(&Json::Null, 100.0) };
        comparison.received(garbage, at(100.0));
    }
    let deep = Received { body: vec![b'['; 100_000], ..received(&Json::Null, 100.0) };
    comparison.received(deep, at(100.0));
    assert_eq!(classes(&comparison.tick(at(140.0))), [Class::Unexplained; 6]);
}

#[test]
fn nobody_is_accused_of_what_was_not_listened_to() {
    let mut comparison = Comparison::new(Limits { grace: GRACE, late: GRACE, since: at(100.0) });
    comparison.expected(expected(&toggle(), 99.0), at(100.0));
    let other = updated(&state(false, "a"), &state(true, "a"), "kim@example.com");
    comparison.received(received(&other, 100.5), at(100.5));
    assert_eq!(classes(&comparison.tick(at(140.0))), [Class::Unjudged, Class::Unjudged]);
}

#[test]
fn while_the_stream_catches_up_requests_wait() {
    let mut comparison = comparison();
    comparison.received(received(&toggle(), 150.0), at(150.0));
    let old = updated(&state(false, "x"), &state(true, "x"), "kim@example.com");
    comparison.expected(expected(&old, 100.0), at(170.0));
    assert!(comparison.tick(at(185.0)).is_empty());
    assert_eq!(classes(&comparison.expected(expected(&toggle(), 149.9), at(190.0))), [Class::Equal]);
}

#[test]
fn the_end_tells_what_is_certain_and_no_more() {
    let mut comparison = comparison();
    comparison.expected(expected(&toggle(), 100.0), at(100.1));
    comparison.received(received(&toggle(), 100.2), at(100.2));
    comparison.received(received(&toggle(), 100.3), at(100.3));
    let other = updated(&state(false, "a"), &state(true, "a"), "kim@example.com");
    comparison.expected(expected(&other, 101.0), at(101.1));
    assert_eq!(classes(&comparison.finish(at(102.0))), [Class::Doubled, Class::Unjudged]);
}

#[test]
fn memory_is_bounded() {
    let mut comparison = comparison();
    let mut unjudged = 0;
    for number in 0..70_u8 {
        let large = Received { body: vec![number; 1024 * 1024], ..received(&Json::Null, 100.0) };
        unjudged += comparison.received(large, at(100.0)).len();
    }
    assert_eq!(unjudged, 6);
    assert_eq!(comparison.tick(at(140.0)).len(), 64);
}

#[test]
fn the_tally_adds_up_and_lines_cannot_break_a_terminal() {
    let mut tally = Tally::default();
    let mut finding = Finding::of(Class::Differs, Some(ENDPOINT));
    finding.explained = Some("known");
    finding.about.feature = Some("\u{1b}[2J\n".into());
    tally.add(&finding);
    tally.add(&Finding::of(Class::Unexplained, None));
    let summary = tally.json();
    assert_eq!(summary["total"]["differs_explained"], 1);
    assert_eq!(summary["total"]["unexplained"], 1);
    assert_eq!(summary["endpoints"].as_array().unwrap().len(), 2);
    assert!(!finding.text().contains(['\u{1b}', '\n']), "{}", finding.text());
    assert!(tally.text().contains("environment:1"));
}
