//! `flagpost log`: what has happened, and what became of it. The newest come last; `--follow` goes on from there.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use clap::Args;
use serde_json::Value as Json;
use tokio::signal::unix::{SignalKind, signal};

use super::endpoint;
use super::printable::{cut, one_line};
use super::view::{EventView, Names};
use super::wanted::Wanted;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::ledger::{DeliveryState, Filter, Reader};

/// Between two looks: one read of a number when nothing has happened.
const POLL: Duration = Duration::from_millis(250);
/// So many events that are not over are looked at again: what becomes of them is printed too.
const WATCHED: usize = 200;
/// So much of an audit event's text is shown.
const AUDIT_CHARS: usize = 60;

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    wanted: Wanted,
    /// With a delivery that is delivered, pending, retrying, dead, dropped or shadowed
    #[arg(long, value_parser = DeliveryState::named)]
    status: Option<DeliveryState>,
    /// So many, the newest
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    limit: usize,
    /// Go on with what happens from now on: new events, and what becomes of them
    #[arg(long, short)]
    follow: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn log(config: &Config, options: &Options) -> Result<u8> {
    let reader = endpoint::reader(config)?;
    let filter = Filter { state: options.status, ..options.wanted.filter(config, &reader)? };
    let mut log = Log { reader, filter, json: options.json, names: Names::default(), open: BTreeMap::new() };
    // Read before the list: what is recorded meanwhile is new.
    let last = log.reader.last_event()?;
    let newest = log.reader.search(&log.filter, 0, options.limit)?;
    let after = newest.last().copied().unwrap_or(0).max(last);
    for seq in newest {
        if !log.print(seq)? {
            return Ok(0);
        }
    }
    if options.follow {
        log.follow(after).await?;
    }
    Ok(0)
}

struct Log {
    reader: Reader,
    filter: Filter,
    json: bool,
    names: Names,
    /// Events (`event.seq`) that are not over, as they were when they were last looked at.
    open: BTreeMap<i64, EventView>,
}

impl Log {
    /// Prints an event. False when nobody reads any more.
    fn print(&mut self, seq: i64) -> Result<bool> {
        let Some(view) = self.view(seq)? else { return Ok(true) };
        let is_printed = self.line(seq, &view)?;
        self.watch(seq, view);
        Ok(is_printed)
    }

    fn watch(&mut self, seq: i64, view: EventView) {
        let is_over = view
            .deliveries
            .iter()
            .all(|delivery| !matches!(delivery.state, DeliveryState::Pending | DeliveryState::Retrying));
        if is_over {
            self.open.remove(&seq);
            return;
        }
        self.open.insert(seq, view);
        if self.open.len() > WATCHED {
            self.open.pop_first();
        }
    }

    /// The event with the deliveries that were asked for; `None` when it has been forgotten.
    fn view(&mut self, seq: i64) -> Result<Option<EventView>> {
        let Some(event) = self.reader.recorded(seq)? else { return Ok(None) };
        let mut deliveries = self.reader.deliveries(seq)?;
        if let Some(endpoint) = self.filter.endpoint {
            deliveries.retain(|delivery| delivery.endpoint == endpoint);
        }
        EventView::new(&self.reader, &mut self.names, event, &deliveries).map(Some)
    }

    async fn follow(&mut self, mut after: i64) -> Result<()> {
        let stop = |kind| {
            signal(kind)
                .map_err(|e| Error::internal(format!("signals cannot be listened to: {e}; try again")))
        };
        let (mut interrupt, mut terminate) = (stop(SignalKind::interrupt())?, stop(SignalKind::terminate())?);
        let mut version = None;
        loop {
            let current = self.reader.version()?;
            if version != Some(current) {
                version = Some(current);
                if !self.changed()? || !self.fresh(&mut after)? {
                    return Ok(());
                }
            }
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// Prints what has become of the events that were not over. False when nobody reads any more.
    fn changed(&mut self) -> Result<bool> {
        for seq in self.open.keys().copied().collect::<Vec<_>>() {
            let Some(view) = self.view(seq)? else {
                self.open.remove(&seq);
                continue;
            };
            if self.open.get(&seq).is_some_and(|before| fates(before) == fates(&view)) {
                continue;
            }
            let is_wanted = self.has_state(&view);
            if is_wanted && !self.line(seq, &view)? {
                return Ok(false);
            }
            self.watch(seq, view);
        }
        Ok(true)
    }

    /// Prints the events after `after`, and moves it. False when nobody reads any more.
    fn fresh(&mut self, after: &mut i64) -> Result<bool> {
        // What is asked for by its fate may have none yet: it is watched until it has.
        let filter = Filter { state: None, ..self.filter.clone() };
        let last = self.reader.last_event()?;
        for seq in self.reader.search(&filter, *after, usize::MAX)? {
            let Some(view) = self.view(seq)? else { continue };
            if self.has_state(&view) && !self.line(seq, &view)? {
                return Ok(false);
            }
            self.watch(seq, view);
            *after = seq;
        }
        *after = last.max(*after);
        Ok(true)
    }

    fn has_state(&self, view: &EventView) -> bool {
        let has = |state| view.deliveries.iter().any(|delivery| delivery.state.is(state));
        self.filter.state.is_none_or(has)
    }

    fn line(&self, seq: i64, view: &EventView) -> Result<bool> {
        let line = if self.json {
            serde_json::to_string(view)
                .map_err(|e| Error::internal(format!("an event cannot be written as JSON: {e}")))?
        } else {
            self.text(seq, view)?
        };
        let mut out = std::io::stdout().lock();
        Ok(writeln!(out, "{line}").and_then(|()| out.flush()).is_ok())
    }

    fn text(&self, seq: i64, view: &EventView) -> Result<String> {
        let mut subject = view.subject();
        if let Some(log) = self.audit_text(seq, view)? {
            let separator = if subject.is_empty() { "" } else { ": " };
            subject = format!("{subject}{separator}{}", cut(&one_line(&log), AUDIT_CHARS));
        }
        let time = view.commit_time.replace('T', " ");
        let time = time.get(..23).unwrap_or(&time);
        Ok(format!(
            "{time}Z  {}  {:<17}  {:<16}  {subject}  →  {}",
            view.short_id(),
            view.kind,
            view.happened(),
            view.fate()
        ))
    }

    /// What an audit event says.
    fn audit_text(&self, seq: i64, view: &EventView) -> Result<Option<String>> {
        if view.feature_id.is_some() {
            return Ok(None);
        }
        let Some((_, body)) = self.reader.bodies(seq)?.into_iter().next() else { return Ok(None) };
        let body: Json = serde_json::from_str(&body).unwrap_or_default();
        let log = body.get("data").and_then(|data| data.get("log")).or(body.get("log"));
        Ok(log.and_then(Json::as_str).map(str::to_owned))
    }
}

/// What has become of each delivery. A further attempt that failed as the one before it is no news.
fn fates(view: &EventView) -> Vec<(&str, DeliveryState)> {
    view.deliveries.iter().map(|delivery| (delivery.endpoint.as_str(), delivery.state)).collect()
}
