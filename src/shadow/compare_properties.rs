//! What holds of the comparison in whatever order events and requests come: nothing is lost, nothing is counted twice.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::compare::{Comparison, Expected, Limits, Received};
use super::finding::{Class, EventFacts, Finding};
use crate::change::Micros;
use crate::event::EndpointKey;

const SECOND: i64 = 1_000_000;
const GRACE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
enum Step {
    /// Ours: which flag, arrived from which value.
    Event(u8, u8),
    /// Flagsmith's.
    Request(u8, u8),
    /// Bytes that are no body.
    Garbage(Vec<u8>),
    /// Seconds that pass.
    Wait(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_u8, 0..3_u8).prop_map(|(flag, from)| Step::Event(flag, from)),
        4 => (0..3_u8, 0..3_u8).prop_map(|(flag, from)| Step::Request(flag, from)),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Step::Garbage),
        2 => (0..45_u8).prop_map(Step::Wait),
    ]
}

fn body(flag: u8, from: u8) -> Vec<u8> {
    let state = |value: u8| json!({ "feature": { "id": flag }, "environment": { "id": 1 }, "feature_state_value": value });
    let data = json!({ "new_state": state(9), "previous_state": state(from), "changed_by": "kim", "timestamp": "t" });
    json!({ "event_type": "FLAG_UPDATED", "data": data }).to_string().into_bytes()
}

/// The findings, how many events and how many requests went in.
fn play(steps: &[Step]) -> (Vec<Finding>, usize, usize) {
    let limits = Limits { grace: GRACE, late: Duration::from_secs(10), since: Micros(0) };
    let (mut comparison, mut now) = (Comparison::new(limits), Micros(1_000 * SECOND));
    let (mut findings, mut events, mut requests) = (Vec::new(), 0, 0);
    for (number, step) in steps.iter().enumerate() {
        let request = |body| Received { target: "/hook".into(), endpoint: None, body, at: now };
        findings.extend(match step {
            Step::Event(flag, from) => {
                events += 1;
                let event = EventFacts { id: number.to_string(), action: String::new(), commit_time: now };
                let (endpoint, target) = (EndpointKey::Environment(1), "/hook".to_owned());
                comparison.expected(
                    Expected { endpoint, target, event, body: body(*flag, *from), is_versioned: false },
                    now,
                )
            }
            Step::Request(flag, from) => {
                requests += 1;
                comparison.received(request(body(*flag, *from)), now)
            }
            Step::Garbage(bytes) => {
                requests += 1;
                comparison.received(request(bytes.clone()), now)
            }
            Step::Wait(seconds) => {
                now = Micros(now.0 + i64::from(*seconds) * SECOND);
                comparison.tick(now)
            }
        });
    }
    findings.extend(comparison.tick(Micros(now.0 + 3_600 * SECOND)));
    assert_eq!(comparison.next_deadline(), None, "nothing waits for ever");
    (findings, events, requests)
}

fn count(findings: &[Finding], classes: &[Class]) -> usize {
    findings.iter().filter(|finding| classes.contains(&finding.class)).count()
}

proptest! {
    #[test]
    fn every_request_comes_to_one_finding(steps in prop::collection::vec(step(), 0..60)) {
        let (findings, _, requests) = play(&steps);
        let of_requests = [Class::Equal, Class::Late, Class::Doubled, Class::Differs, Class::Unexplained];
        prop_assert_eq!(count(&findings, &of_requests), requests);
    }

    #[test]
    fn every_event_comes_to_one_finding(steps in prop::collection::vec(step(), 0..60)) {
        let (findings, events, _) = play(&steps);
        let mut told: Vec<&str> = findings
            .iter()
            .filter(|f| matches!(f.class, Class::Equal | Class::Late | Class::Missing | Class::Differs))
            .filter_map(|f| f.event.as_ref().map(|event| event.id.as_str()))
            .collect();
        told.sort_unstable();
        // An equal body after the grace period: the event was missing, then late.
        told.dedup();
        prop_assert_eq!(told.len(), events);
    }

    #[test]
    fn what_flagsmith_sends_as_we_would_is_never_a_difference(
        flags in prop::collection::vec((0..3_u8, 0..3_u8, any::<bool>()), 0..40),
    ) {
        let steps: Vec<Step> = flags
            .iter()
            .flat_map(|(flag, from, is_ours_first)| {
                let pair = [Step::Event(*flag, *from), Step::Request(*flag, *from)];
                if *is_ours_first { pair } else { let [a, b] = pair; [b, a] }
            })
            .collect();
        let (findings, events, _) = play(&steps);
        prop_assert_eq!(count(&findings, &[Class::Equal]), events);
        prop_assert_eq!(findings.len(), events);
    }

    #[test]
    fn any_bytes_are_told_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let (findings, _, _) = play(&[Step::Garbage(bytes)]);
        let lines: Vec<String> = findings.iter().map(Finding::text).collect();
        prop_assert!(lines.iter().all(|line| !line.contains(char::is_control)));
    }
}
