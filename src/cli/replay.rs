//! `flagpost replay`: deliveries that were made or given up are made again: same body, same id, marked as a replay in a header.
//!
//! They are queued in the ledger, where the daemon finds them, and keep the order of their flag like all others. With `--to`
//! nothing is queued: the command itself sends to another place (`sandbox`).

mod sandbox;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use super::endpoint;
use super::wanted::{self, BESIDE_IDS, Wanted};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::event::EndpointKey;
use crate::ledger::{DeliveryState, Filter, Operator, Reader, Replayable};

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Events by their ids, or how they begin
    #[arg(value_name = "ID", conflicts_with_all = BESIDE_IDS)]
    ids: Vec<String>,
    /// Only what was given up (dead letters)
    #[arg(long)]
    failed: bool,
    #[command(flatten)]
    wanted: Wanted,
    /// Send to this URL instead, a sandbox say: once each event, from here, unsigned, and nothing is recorded
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// With --to: sign with the secret in this file. Secrets of real endpoints never sign what goes elsewhere
    #[arg(long, value_name = "FILE", requires = "to")]
    secret_file: Option<PathBuf>,
    /// Only say what would be sent
    #[arg(long)]
    dry_run: bool,
}

/// Which deliveries: by the events themselves, or by what they are about.
struct Selection {
    events: Option<Vec<i64>>,
    filter: Filter,
}

pub(super) async fn replay(config: &Config, options: &Options) -> Result<u8> {
    if options.ids.is_empty() && !options.failed && options.wanted.is_everything() {
        return Err(Error::config(
            "replay needs to be told what: event ids, --failed, --endpoint, --environment, --organisation, --feature, --kind, \
             --since or --until; everything at once is never sent again (--dry-run shows what would be)",
        ));
    }
    let reader = endpoint::reader(config)?;
    let selection = selection(config, &reader, options)?;
    match &options.to {
        Some(url) => {
            let place = sandbox::Place::new(url, options.secret_file.as_deref())?;
            sandbox::send(config, &reader, &selection, &place, options.dry_run).await
        }
        None => queue(config, &reader, &selection, options.dry_run),
    }
}

fn selection(config: &Config, reader: &Reader, options: &Options) -> Result<Selection> {
    let state = options.failed.then_some(DeliveryState::Dead);
    let filter = Filter { state, ..options.wanted.filter(config, reader)? };
    if options.ids.is_empty() {
        return Ok(Selection { events: None, filter });
    }
    let mut events = Vec::new();
    for id in &options.ids {
        events.push(wanted::event(reader, id)?.seq);
    }
    events.sort_unstable();
    events.dedup();
    Ok(Selection { events: Some(events), filter })
}

/// What was found, by endpoint.
#[derive(Default)]
struct Found {
    again: BTreeMap<EndpointKey, Vec<i64>>,
    pending: u64,
    /// Their endpoint was deleted, before or after they were sent.
    gone: u64,
    shadowed: u64,
}

impl Found {
    fn new(config: &Config, reader: &Reader, selection: &Selection) -> Result<Found> {
        let mut found = Found::default();
        let endpoints = match selection.filter.endpoint {
            Some(endpoint) => vec![endpoint],
            None => reader.endpoints_with_deliveries()?,
        };
        for endpoint in endpoints {
            let some = match &selection.events {
                Some(events) => of_events(reader, endpoint, events, selection.filter.state)?,
                None => reader.replayable(endpoint, &selection.filter)?,
            };
            found.add(endpoint, some, endpoint::find(config, reader, endpoint)?.is_some());
        }
        Ok(found)
    }

    fn add(&mut self, endpoint: EndpointKey, some: Replayable, is_there: bool) {
        self.pending += some.pending;
        self.gone += some.dropped;
        self.shadowed += some.shadowed;
        if !is_there {
            self.gone += u64::try_from(some.events.len()).unwrap_or(u64::MAX);
        } else if !some.events.is_empty() {
            self.again.insert(endpoint, some.events);
        }
    }
}

fn of_events(
    reader: &Reader,
    endpoint: EndpointKey,
    events: &[i64],
    state: Option<DeliveryState>,
) -> Result<Replayable> {
    let mut found = Replayable::default();
    for event in events {
        let deliveries = reader.deliveries(*event)?;
        let its = deliveries.iter().filter(|delivery| delivery.endpoint == endpoint);
        its.filter(|delivery| state.is_none_or(|state| delivery.state == state))
            .for_each(|delivery| found.add(*event, delivery.state));
    }
    Ok(found)
}

fn queue(config: &Config, reader: &Reader, selection: &Selection, dry_run: bool) -> Result<u8> {
    let found = Found::new(config, reader, selection)?;
    let mut queued: Vec<(EndpointKey, usize)> = Vec::new();
    for (endpoint, events) in &found.again {
        let count = if dry_run { events.len() } else { requeue(config, *endpoint, events)? };
        queued.push((*endpoint, count));
    }
    let total: usize = queued.iter().map(|(_, count)| count).sum();
    let noun = if total == 1 { "delivery" } else { "deliveries" };
    match (total, dry_run) {
        (0, _) => say!("nothing to send again"),
        (_, true) => say!("{total} {noun} would be sent again:"),
        (_, false) => say!("{total} {noun} queued again, marked with X-Flagpost-Replay: true:"),
    }
    for (endpoint, count) in &queued {
        say!("  {:<20} {count}{}", endpoint.to_string(), condition(config, reader, *endpoint)?);
    }
    tell_of_others(&found);
    if total > 0 && !dry_run {
        say!(
            "a running daemon sends them now, else they go out when it starts; \"flagpost status\" shows how far it is"
        );
    }
    Ok(0)
}

/// Queues the deliveries of an event again that were made or given up, to one endpoint or to all that are still there. Returns how
/// many.
pub(super) fn again(
    config: &Config,
    reader: &Reader,
    event: i64,
    endpoint: Option<EndpointKey>,
) -> Result<usize> {
    let filter = Filter { endpoint, ..Filter::default() };
    let found = Found::new(config, reader, &Selection { events: Some(vec![event]), filter })?;
    found.again.iter().map(|(endpoint, events)| requeue(config, *endpoint, events)).sum()
}

fn requeue(config: &Config, endpoint: EndpointKey, events: &[i64]) -> Result<usize> {
    let deliveries: Vec<(EndpointKey, i64)> = events.iter().map(|event| (endpoint, *event)).collect();
    Operator::open(&config.state_dir)?.requeue(&deliveries)
}

/// What keeps an endpoint from getting them, or what somebody may not expect.
fn condition(config: &Config, reader: &Reader, endpoint: EndpointKey) -> Result<String> {
    if reader.lane(endpoint)?.pause.is_some() {
        return Ok(format!("  (paused: they wait for \"flagpost resume {endpoint}\")"));
    }
    let is_disabled = endpoint::find(config, reader, endpoint)?.is_some_and(|endpoint| !endpoint.enabled);
    Ok(if is_disabled {
        "  (disabled in Flagsmith, and gets them all the same)".into()
    } else {
        String::new()
    })
}

fn tell_of_others(found: &Found) {
    let kinds = [
        (found.pending, "still pending: sent anyway, in their turn"),
        (found.gone, "for an endpoint that was deleted"),
        (found.shadowed, "recorded in shadow mode, of which nothing is ever sent"),
    ];
    for (count, what) in kinds.into_iter().filter(|(count, _)| *count > 0) {
        say!("left alone: {count} {what}");
    }
}
