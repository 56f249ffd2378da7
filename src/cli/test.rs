//! `flagpost test`: sends a made-up event to one endpoint, signed as a real one, and says what was answered. Nothing of it is
//! recorded, and no daemon is needed.

use std::time::Instant;

use clap::Args;

use super::endpoint;
use super::printable::{lines, one_line};
use crate::change::Micros;
use crate::config::Config;
use crate::delivery::{Answer, redacted};
use crate::error::Result;
use crate::event::{EndpointKey, Event, sample};
use crate::ledger::Due;

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// environment:ID, organisation:ID, configured:NAME or its exact URL
    endpoint: String,
}

pub(super) async fn test(config: &Config, options: &Options) -> Result<u8> {
    let reader = endpoint::reader(config)?;
    let (key, target) = endpoint::existing(config, &reader, &options.endpoint)?;
    let event = sample(key, Micros::now());
    let format = endpoint::format(config, key, &target);
    let due = due(key, &event, format.body(&event));
    say!("{key} {}", redacted(&target.url));
    let signed =
        if target.secret.is_empty() { "not signed: it has no secret" } else { "signed with its secret" };
    say!(
        "sending  {} that is made up, format {}, {} bytes, {signed}, id {}",
        event.kind.name(),
        format.name(),
        due.body.len(),
        due.event_id
    );
    let client = endpoint::client(config)?;
    let began = Instant::now();
    let answer = client.send(&target, due).await;
    tell(&answer, began.elapsed().as_millis());
    if !target.enabled {
        say!("note     it is disabled in Flagsmith: nothing else is sent to it");
    }
    if reader.lane(key)?.pause.is_some() {
        say!("note     it is paused: \"flagpost resume {key}\" ends that");
    }
    Ok(u8::from(answer.error.is_some()))
}

fn due(endpoint: EndpointKey, event: &Event, body: String) -> Due {
    Due {
        environment: None,
        endpoint,
        event: 0,
        event_id: event.id.to_string(),
        action: event.action.to_string(),
        feature: event.feature_name.clone(),
        // Real ones count from 1: a receiver that keeps the order has nothing to compare it with.
        sequence: 0,
        change_request: None,
        lane: String::new(),
        body,
        attempts: 0,
        attempts_before: 0,
        reconstructed: false,
        replay: false,
        queued_at: event.commit.time,
        commit_time: event.commit.time,
        recorded_at: event.commit.time,
    }
}

fn tell(answer: &Answer, milliseconds: u128) {
    match (&answer.error, answer.status) {
        (None, status) => say!("answered HTTP {} after {milliseconds} ms: good", status.unwrap_or(0)),
        (Some(error), Some(_)) => say!("answered {} after {milliseconds} ms: FAILED", one_line(error)),
        (Some(error), None) => say!("FAILED   {} (after {milliseconds} ms)", one_line(error)),
    }
    for line in answer.excerpt.iter().flat_map(|excerpt| excerpt.lines()) {
        say!("         | {}", lines(line));
    }
}
