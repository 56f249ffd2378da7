//! Delivery: what the ledger says is due is sent, and what came of it goes back to the ledger.
//!
//! One lane per endpoint, with its own limit of calls in flight: an endpoint that is slow or dead delays no other. Order
//! within a flag is the ledger's: only the first pending delivery of a flag is ever due. The dispatcher keeps in memory
//! what is in flight and a few bodies ahead, however much is queued. It knows neither flags nor PostgreSQL.

mod answer;
mod client;
mod guard;
mod lane;
mod lookup;
mod redact;
mod retry;
mod sign;
mod target;
mod tls;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::change::Micros;
use crate::error::{Error, Result};
use crate::event::EndpointKey;
use crate::ledger::{Due, Endpoint, Newsstand, Outcome, Reader, Verdict, Write};

pub use answer::Answer;
pub use client::{
    ACTION, CHANGE_REQUEST_ID, CHANGE_REQUEST_TITLE, Client, EVENT_ID, SEQUENCE, SIGNATURE, Settings,
    Timeouts, WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP,
};
pub use guard::{DatabasePlace, Guard, Refused};
pub use lookup::{Found, Lookup, Resolver, SystemLookup};
pub use redact::redacted;
pub use retry::Schedule;
pub use sign::{flagsmith_signature, standard_signatures};
pub use target::{Configured, EndpointOptions, Targets};
pub use tls::{Tls, Trust};

use lane::Lane;

/// How deliveries are made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Calls in flight to one endpoint.
    pub max_in_flight: usize,
    /// When to try again.
    pub schedule: Schedule,
    /// How long calls in flight may go on when the daemon stops.
    pub drain: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { max_in_flight: 16, schedule: Schedule::default(), drain: Duration::from_secs(10) }
    }
}

/// Sends what is due until it is told to stop.
pub struct Dispatcher {
    reader: Reader,
    writes: mpsc::Sender<Write>,
    newsstand: Arc<Newsstand>,
    client: Client,
    options: Options,
    lanes: HashMap<EndpointKey, Lane>,
    calls: JoinSet<Finished>,
}

/// A call that has ended.
struct Finished {
    due: Due,
    began: Micros,
    took: Duration,
    answer: Answer,
}

impl Dispatcher {
    /// A dispatcher over the ledger that `reader` reads and `writes` writes.
    pub fn new(
        reader: Reader,
        writes: mpsc::Sender<Write>,
        newsstand: Arc<Newsstand>,
        client: Client,
        options: Options,
    ) -> Dispatcher {
        Dispatcher {
            reader,
            writes,
            newsstand,
            client,
            options,
            lanes: HashMap::new(),
            calls: JoinSet::new(),
        }
    }

    /// Runs until `stop`; then lets calls in flight end, within the drain time.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        for endpoint in self.reader.endpoints_with_work()? {
            self.lanes.entry(endpoint).or_default().has_work = true;
        }
        loop {
            let wake = self.fill()?;
            let sleep = wake.map_or(Duration::from_secs(3600), |at| {
                Duration::from_micros(u64::try_from(at.0 - Micros::now().0).unwrap_or(0))
            });
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.newsstand.wait() => self.take_news(),
                Some(finished) = self.calls.join_next() => self.finish(finished).await?,
                () = tokio::time::sleep(sleep) => self.mark_due_lanes(),
            }
        }
        self.drain().await
    }

    fn take_news(&mut self) {
        let news = self.newsstand.take();
        for endpoint in news.ready {
            self.lanes.entry(endpoint).or_default().has_work = true;
        }
        for endpoint in news.changed {
            if let Some(lane) = self.lanes.get_mut(&endpoint) {
                lane.forget_endpoint();
            }
        }
        for (endpoint, events) in news.settled {
            if let Some(lane) = self.lanes.get_mut(&endpoint) {
                lane.settled(&events);
            }
        }
    }

    fn mark_due_lanes(&mut self) {
        let now = Micros::now();
        for lane in self.lanes.values_mut() {
            if lane.next_due.is_some_and(|at| at <= now) {
                lane.has_work = true;
                lane.next_due = None;
            }
        }
    }

    /// Starts calls wherever something is due and there is room. Returns when to look again.
    fn fill(&mut self) -> Result<Option<Micros>> {
        for (endpoint, lane) in &mut self.lanes {
            while lane.has_room(self.options.max_in_flight) {
                if !lane.refill(*endpoint, &self.reader, self.options.max_in_flight)? {
                    break;
                }
                let target = match self.client.configured(*endpoint) {
                    None => lane.target(*endpoint, &self.reader)?,
                    configured => configured,
                };
                let Some(target) = target else {
                    // Deleted: the ledger has dropped its queue.
                    lane.clear();
                    break;
                };
                let Some(due) = lane.next() else { break };
                self.calls.spawn(call(self.client.clone(), target, due));
            }
        }
        self.lanes.retain(|_, lane| !lane.is_idle());
        Ok(self.lanes.values().filter_map(|lane| lane.next_due).min())
    }

    async fn finish(&mut self, finished: Result<Finished, tokio::task::JoinError>) -> Result<()> {
        let finished = finished.map_err(|e| Error::internal(format!("a delivery task failed: {e}")))?;
        let Finished { due, began, took, answer } = finished;
        let now = Micros::now();
        let attempt = due.attempts + 1;
        let verdict = match &answer.error {
            None => Verdict::Delivered,
            Some(_) => self.options.schedule.after_failure(attempt, due.recorded_at, now, rand::random()),
        };
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        report(&due, attempt, milliseconds, &answer, verdict, now);
        let outcome = Outcome {
            endpoint: due.endpoint,
            event: due.event,
            lane: due.lane,
            attempt,
            at: began,
            http_status: answer.status,
            milliseconds,
            error: answer.error,
            verdict,
        };
        if let Some(lane) = self.lanes.get_mut(&outcome.endpoint) {
            lane.ended();
        }
        // The writer is gone only when it failed; the daemon stops with its error.
        self.writes
            .send(Write::Outcome(outcome))
            .await
            .map_err(|_| Error::internal("the ledger's writer has stopped"))
    }

    async fn drain(&mut self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + self.options.drain;
        while !self.calls.is_empty() {
            match tokio::time::timeout_at(deadline, self.calls.join_next()).await {
                Ok(Some(finished)) => self.finish(finished).await?,
                Ok(None) => break,
                Err(_) => {
                    warn!(
                        in_flight = self.calls.len(),
                        "stopping with calls in flight: they will be sent again"
                    );
                    self.calls.abort_all();
                    break;
                }
            }
        }
        Ok(())
    }
}

async fn call(client: Client, target: Endpoint, due: Due) -> Finished {
    let (began, start) = (Micros::now(), Instant::now());
    let answer = client.send(&target, due.clone()).await;
    Finished { due, began, took: start.elapsed(), answer }
}

fn report(due: &Due, attempt: u32, latency_ms: u64, answer: &Answer, verdict: Verdict, now: Micros) {
    let (event_id, endpoint_id) = (&due.event_id, due.endpoint);
    let (feature, http_status) = (due.feature.as_deref(), answer.status);
    let error = answer.error.as_deref();
    match verdict {
        Verdict::Delivered => {
            info!(%event_id, %endpoint_id, feature, attempt, http_status, latency_ms, "delivered");
        }
        Verdict::Retry(at) => {
            let retry_in_s = (at.0 - now.0) / 1_000_000;
            warn!(%event_id, %endpoint_id, feature, attempt, http_status, latency_ms, error, retry_in_s, "delivery failed");
        }
        Verdict::Dead => {
            warn!(%event_id, %endpoint_id, feature, attempt, http_status, latency_ms, error, "delivery given up: dead letter");
        }
    }
}
