//! What a receiver knows after a recovery, against what it would have known had nothing been missed: the recorded cases, with the
//! connection cut after each so many of them.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::Value as Json;

use super::engine_tests::{Harness, ReceiverModel, SETTLE, cases, row};
use super::*;
use crate::change::{Field, Op, RowChange, Transaction};
use crate::mirror::{Mirror, Persist};
use crate::schema::{Capabilities, Table};

/// The flag events of the endpoint that gets all of them.
fn play(harness: &mut Harness, case: &Json, receiver: &mut ReceiverModel) {
    for sent in harness.play(case).iter().filter(|s| s.path == "/org-plain" && s.body.contains("new_state")) {
        receiver.take(&sent.body);
    }
}

/// An engine over what a snapshot of the database would show where this one is.
fn fresh(engine: &Engine) -> Engine {
    let mut mirror = Mirror::new(Capabilities::default());
    for persist in Mirror::new(Capabilities::default()).difference(engine.mirror()) {
        let Persist::Put { table, row, .. } = persist else { unreachable!("there was nothing") };
        mirror.load(table, row);
    }
    let formats = Formats { default: Format::Current, by_url: Vec::new() };
    let mut fresh = Engine::new(mirror, "7351".into(), SETTLE, formats, false);
    fresh.resume(engine.clock(), engine.position);
    fresh
}

fn recovered(told: &Engine, now: &Engine, name: &str) -> Vec<(Event, Vec<Recipient>)> {
    now.reconstruct(told, now.missed(told), &[], Vec::new(), name)
}

/// The number between the slashes of a flag's name in the model.
fn environment_of(flag: &str) -> i64 {
    flag.split('/').nth(1).unwrap().split(['"', ':', ',', '}']).find_map(|part| part.parse().ok()).unwrap()
}

#[test]
fn whenever_the_connection_is_cut_receivers_end_where_they_would_have_ended() {
    let all = cases();
    let mut compared = 0;
    // In the end the project is deleted, and nobody is told of anything: so also until before that.
    let ends = [all.iter().position(|(name, _)| name.starts_with("085")).unwrap(), all.len()];
    for (cut, end) in ends.into_iter().flat_map(|end| (0..end).step_by(6).map(move |cut| (cut, end))) {
        let mut receiver = ReceiverModel::default();
        let mut told = Harness::new(Format::Current, SETTLE);
        all[..cut].iter().for_each(|(_, case)| play(&mut told, case, &mut receiver));
        let mut uncut = Harness::new(Format::Current, SETTLE);
        let mut expected = ReceiverModel::default();
        all[..end].iter().for_each(|(_, case)| play(&mut uncut, case, &mut expected));
        let now = fresh(&uncut.engine);
        let events = recovered(&told.engine, &now, "a moment");
        let ids: HashSet<EventId> = events.iter().map(|(event, _)| event.id).collect();
        assert_eq!(ids.len(), events.len(), "cut after {cut}: two events with one id");
        assert!(events.iter().all(|(event, _)| event.reconstructed));
        let mut flags = BTreeSet::new();
        for (event, _) in &events {
            let Payload::Flag(payload) = &event.payload else { continue };
            let shown = payload.new.as_ref().or(payload.previous.as_ref()).unwrap();
            assert!(
                flags.insert(now.mirror().slot_of_row(&shown.state)),
                "cut after {cut}: told twice: {event:?}"
            );
            // Also checks that what was told last is the previous state.
            receiver.take(&Format::Current.body(event));
        }
        // Nobody is told of what lies below a deleted environment, and what was born with one is known once it changes.
        let is_alive = |flag: &str| now.mirror().environment_is_alive(environment_of(flag));
        let old = |flag: &str| told.engine.mirror().environment_is_alive(environment_of(flag));
        let known: HashMap<&String, &Json> = receiver.0.iter().filter(|(flag, _)| is_alive(flag)).collect();
        for (flag, value) in expected.0.iter().filter(|(flag, _)| is_alive(flag)) {
            match known.get(flag) {
                Some(known) => assert_eq!(*known, value, "cut after {cut}: {flag}"),
                None => assert!(!old(flag), "cut after {cut}: {flag} is unknown"),
            }
            compared += 1;
        }
        // Of an environment and a feature that are both new nobody can tell which was first: such a flag is told.
        for flag in known.keys() {
            let is_there = expected.0.contains_key(*flag) || !old(flag);
            assert!(is_there, "cut after {cut}: {flag} is told, and is not there");
        }
    }
    assert!(compared > 100, "only {compared}");
}

#[test]
fn nothing_missed_is_nothing_told() {
    let mut told = Harness::new(Format::Current, SETTLE);
    cases().iter().for_each(|(_, case)| drop(told.play(case)));
    let now = fresh(&told.engine);
    assert!(recovered(&told.engine, &now, "a moment").is_empty());
    assert!(told.engine.mirror().difference(now.mirror()).is_empty());
}

/// With the flags that the first cases make.
fn with_flags() -> Harness {
    let mut harness = Harness::new(Format::Current, SETTLE);
    cases()[..12].iter().for_each(|(_, case)| drop(harness.play(case)));
    harness
}

fn first_states(harness: &Harness, count: usize) -> Vec<i64> {
    let mirror = harness.engine.mirror();
    let view = |slot| mirror.in_force(&slot, harness.engine.clock()).map(|view| view.state_id());
    mirror.all_slots().filter_map(view).take(count).collect()
}

fn toggled(harness: &Harness, state: i64) -> RowChange {
    let old = harness.engine.mirror().row_by_id(Table::FeatureState, state).unwrap();
    let mut fields: Vec<Field<'_>> = old.fields().collect();
    let enabled = crate::schema::feature_state::ENABLED;
    fields[enabled] = if old.flag(enabled) { Field::Text("f") } else { Field::Text("t") };
    let new = crate::change::Row::pack(&fields);
    RowChange { table: Table::FeatureState, op: Op::Update { old_key: None, new } }
}

fn commit(harness: &mut Harness, at: i64, change: RowChange) -> usize {
    let mut events = 0;
    let xid = at.unsigned_abs();
    let transaction = Transaction { end_lsn: Lsn(xid), xid, commit_time: Micros(at), changes: vec![change] };
    harness.engine.transaction(transaction, &mut |effect| {
        events += usize::from(matches!(effect, Effect::Event(..)));
    });
    events
}

#[test]
fn a_change_that_was_read_and_not_told_yet_goes_on_from_what_was_told() {
    const NOW: i64 = 1_800_000_000_000_000;
    let mut told = with_flags();
    let state = first_states(&told, 1)[0];
    // Read, and its group is open; what follows is missed.
    let first = toggled(&told, state);
    assert_eq!(commit(&mut told, NOW, first), 0);
    let events = recovered(&told.engine, &fresh(&told.engine), "a moment");
    let [(event, _)] = events.as_slice() else { panic!("{events:?}") };
    let Payload::Flag(payload) = &event.payload else { panic!("{event:?}") };
    let enabled =
        |view: &Option<StateView>| view.as_ref().unwrap().state.flag(crate::schema::feature_state::ENABLED);
    assert_ne!(enabled(&payload.previous), enabled(&payload.new));
    // Changed back while nobody looked.
    let mut now = with_flags();
    for at in [NOW, NOW + 1] {
        let change = toggled(&now, state);
        commit(&mut now, at, change);
    }
    assert!(recovered(&told.engine, &fresh(&now.engine), "a moment").is_empty());
}

#[test]
fn history_says_who_and_when_and_in_which_order() {
    const NOW: i64 = 1_800_000_000_000_000;
    let told = with_flags();
    let mut now = with_flags();
    let states = first_states(&now, 3);
    for state in &states {
        let change = toggled(&now, *state);
        commit(&mut now, NOW, change);
    }
    let history = |state: i64, seconds: u32| {
        let json = serde_json::json!({
            "history_id": state, "id": state, "history_type": "~", "history_user_id": 1,
            "history_date": format!("2027-01-01 00:00:{seconds:02}+00"),
        });
        (Table::StateHistory, row(Table::StateHistory, &json, Field::Null))
    };
    let fresh = fresh(&now.engine);
    let missed = fresh.missed(&told.engine);
    assert_eq!(
        missed.iter().flat_map(|missed| missed.states()).collect::<BTreeSet<_>>(),
        states.iter().copied().collect()
    );
    // The third has no history: changed by SQL.
    let rows = [history(states[0], 20), history(states[1], 5), history(states[1], 10)];
    let events = fresh.reconstruct(&told.engine, missed, &rows, Vec::new(), "a moment");
    let told: Vec<(i64, bool)> = events
        .iter()
        .map(|(event, _)| match &event.payload {
            Payload::Flag(payload) => {
                (payload.new.as_ref().unwrap().state_id(), matches!(payload.author, Author::User(_)))
            }
            Payload::Version(_) | Payload::Audit(_) => panic!("{event:?}"),
        })
        .collect();
    assert_eq!(told, [(states[1], true), (states[0], true), (states[2], false)]);
}
