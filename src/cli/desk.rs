//! What the status page shows and does, by the same functions as the commands: `status`, `log`, `show`, `pause`, `resume`, `replay`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value as Json, json};
use tokio::sync::watch;

use super::status::{self, OfLedger, wrong};
use super::view::{EventView, Names};
use super::wanted::{self, Wanted};
use super::{endpoint, pause, replay, show};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::ledger::{DeliveryState, Filter, Operator, Reader, Resumed};
use crate::ops::{Answer, Asked, Desk};
use crate::pulse::Trouble;

/// Reading how the queues are goes through all deliveries. It is done again after so many times what it took: pages that are left
/// open must not keep a core busy.
const REST: u32 = 20;
/// Who pauses, as `status` tells it.
const NAME: &str = "status page";

/// See the module's documentation.
pub(super) struct PageDesk {
    /// As it holds, also after a reload.
    config: watch::Receiver<Arc<Config>>,
    queues: Arc<Mutex<Option<Queues>>>,
}

/// What was read of the ledger, and until when that will do.
struct Queues {
    read: OfLedger,
    fresh_until: Instant,
}

/// An event in the list.
#[derive(Serialize)]
struct Listed {
    /// What `before` takes.
    seq: i64,
    #[serde(flatten)]
    event: EventView,
}

impl PageDesk {
    pub(super) fn new(config: watch::Receiver<Arc<Config>>) -> PageDesk {
        PageDesk { config, queues: Arc::default() }
    }

    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.borrow())
    }

    /// Answers on a thread that may wait for the disk.
    fn answer(&self, work: impl FnOnce(&Config) -> Result<Json> + Send + 'static) -> Answer {
        let config = self.config();
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || work(&config)).await;
            done.map_err(|e| Error::internal(format!("an answer to the status page failed: {e}")))?
        })
    }

    /// The same of what changes the queues: how they were will not do any more.
    fn change(&self, work: impl FnOnce(&Config) -> Result<Json> + Send + 'static) -> Answer {
        let queues = Arc::clone(&self.queues);
        self.answer(move |config| {
            let done = work(config);
            *queues.lock().unwrap_or_else(PoisonError::into_inner) = None;
            done
        })
    }
}

impl Desk for PageDesk {
    fn status(&self, troubles: Vec<Trouble>) -> Answer {
        let (config, queues) = (self.config(), Arc::clone(&self.queues));
        Box::pin(async move {
            let ledger = {
                let config = Arc::clone(&config);
                tokio::task::spawn_blocking(move || queues_of(&config, &queues)).await
            };
            let ledger = ledger.map_err(|e| Error::internal(format!("reading the ledger failed: {e}")))?;
            let status = status::with_database(&config, ledger).await;
            let wrong = wrong::wrong(&config, &status, &troubles);
            Ok(json!({ "wrong": wrong, "status": json_of(&status)? }))
        })
    }

    fn deliveries(&self, asked: Asked) -> Answer {
        self.answer(move |config| deliveries(config, asked))
    }

    fn event(&self, id: String) -> Answer {
        self.answer(move |config| {
            let reader = endpoint::reader(config)?;
            json_of(&show::shown(&reader, &id)?.0)
        })
    }

    fn pause(&self, endpoint: String, why: Option<String>) -> Answer {
        self.change(move |config| {
            let key = endpoint::existing(config, &endpoint::reader(config)?, &endpoint)?.0;
            let why = why.filter(|why| !why.trim().is_empty());
            Operator::open(&config.state_dir)?
                .named(NAME)
                .pause(key, why.as_deref().unwrap_or(pause::NO_REASON))?;
            Ok(json!({ "endpoint": key.to_string(), "paused": true }))
        })
    }

    fn resume(&self, endpoint: String) -> Answer {
        self.change(move |config| {
            let key = endpoint::existing(config, &endpoint::reader(config)?, &endpoint)?.0;
            let Resumed { was_paused, was_open } = Operator::open(&config.state_dir)?.resume(key)?;
            Ok(json!({ "endpoint": key.to_string(), "was_paused": was_paused, "was_open": was_open }))
        })
    }

    fn replay(&self, event: String, endpoint: Option<String>) -> Answer {
        self.change(move |config| {
            let reader = endpoint::reader(config)?;
            let event = wanted::event(&reader, &event)?;
            let endpoint = endpoint.map(|text| endpoint::on_record(config, &reader, &text)).transpose()?;
            let queued = replay::again(config, &reader, event.seq, endpoint)?;
            Ok(json!({ "event": event.id, "queued": queued }))
        })
    }
}

/// How the queues are, or were a moment ago. One reads, the others wait for what it has read.
fn queues_of(config: &Config, queues: &Mutex<Option<Queues>>) -> OfLedger {
    let mut queues = queues.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(queues) = queues.as_ref().filter(|queues| queues.fresh_until > Instant::now()) {
        return queues.read.clone();
    }
    let began = Instant::now();
    let read = status::of_ledger(config);
    let rest = began.elapsed().saturating_mul(REST).min(Duration::from_secs(60));
    *queues = Some(Queues { read: read.clone(), fresh_until: Instant::now() + rest });
    read
}

fn deliveries(config: &Config, asked: Asked) -> Result<Json> {
    let reader = endpoint::reader(config)?;
    let Asked { endpoint, state, feature, environment, kind, before, limit } = asked;
    let state = state.map(|text| DeliveryState::named(&text)).transpose().map_err(Error::config)?;
    let wanted = Wanted::asked(endpoint, environment, feature, kind)?;
    let filter = Filter { state, before, ..wanted.filter(config, &reader)? };
    let found = reader.search(&filter, 0, limit)?;
    // There may be more before the first.
    let next = found.first().filter(|_| found.len() == limit);
    let mut names = Names::default();
    let mut events = Vec::new();
    for seq in found.iter().rev() {
        events.extend(listed(&reader, &mut names, &filter, *seq)?);
    }
    Ok(json!({ "events": json_of(&events)?, "next": next }))
}

/// `None` for one that was forgotten meanwhile.
fn listed(reader: &Reader, names: &mut Names, filter: &Filter, seq: i64) -> Result<Option<Listed>> {
    let Some(event) = reader.recorded(seq)? else { return Ok(None) };
    let mut deliveries = reader.deliveries(seq)?;
    deliveries.retain(|delivery| {
        filter.endpoint.is_none_or(|endpoint| delivery.endpoint == endpoint)
            && filter.state.is_none_or(|state| delivery.state.is(state))
    });
    Ok(Some(Listed { seq, event: EventView::new(reader, names, event, &deliveries)? }))
}

fn json_of(shape: &impl Serialize) -> Result<Json> {
    serde_json::to_value(shape).map_err(|e| Error::internal(format!("it cannot be written as JSON: {e}")))
}
