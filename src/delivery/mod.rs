//! Delivery: what the ledger says is due is sent, and what came of it goes back to the ledger.
//!
//! One lane per endpoint, with its own limit of calls in flight: an endpoint that is slow or dead delays no other. Order
//! within a flag is the ledger's: only the first pending delivery of a flag is ever due. The dispatcher keeps in memory
//! what is in flight and a few bodies ahead, however much is queued. It knows neither flags nor PostgreSQL.
//!
//! What follows an attempt is decided by pure functions of the history, the answer and the clock: `retry` for the delivery,
//! `breaker` and `pace` for the lane.

mod answer;
mod breaker;
mod client;
mod guard;
mod handshake;
mod lane;
mod lookup;
mod pace;
mod redact;
mod retry;
mod sign;
mod target;
mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::change::Micros;
use crate::error::{Error, Result};
use crate::event::EndpointKey;
use crate::fact::{
    BreakerClosed, BreakerOpened, CallsCutOff, Delivered, DeliveryDead, DeliveryFailed, EndpointGone,
    EndpointUnconfigured, trace,
};
use crate::ledger::{BreakerState, Due, Endpoint, Newsstand, Outcome, Pause, Reader, Verdict, Write};
use crate::pulse::{Pulse, Stage};

pub use answer::Answer;
pub use breaker::{BreakerPolicy, Passage, passage};
pub use client::{
    ACTION, CHANGE_REQUEST_ID, CHANGE_REQUEST_TITLE, Client, EVENT_ID, RECONSTRUCTED, REPLAY, SEQUENCE,
    SIGNATURE, Settings, Timeouts, WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP,
};
pub use guard::{DatabasePlace, Guard, Refused};
pub use handshake::{Handshakes, Shown};
pub use lookup::{Found, Lookup, Resolver, SystemLookup};
pub use redact::redacted;
pub use retry::{History, Reply, Schedule};
pub use sign::{flagsmith_signature, standard_signatures};
pub use target::{Configured, EndpointOptions, Targets};
pub use tls::{Tls, Trust};

use lane::{Lane, Room};

/// Calls in flight to all endpoints together; beyond it an endpoint gets one call at a time, so that none waits for others.
/// Bounds memory and sockets.
const TOTAL_IN_FLIGHT: usize = 512;

/// How often an operator's commands are looked for: one read of a row.
const OPERATOR_POLL: Duration = Duration::from_millis(500);

/// How deliveries are made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Calls in flight to one endpoint.
    pub max_in_flight: usize,
    /// When to try again.
    pub schedule: Schedule,
    /// When an endpoint's breaker opens, and how it probes.
    pub breaker: BreakerPolicy,
    /// How long a secret that was replaced signs as well.
    pub secret_rotation: Duration,
    /// How long calls in flight may go on when the daemon stops.
    pub drain: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_in_flight: 16,
            schedule: Schedule::default(),
            breaker: BreakerPolicy::default(),
            secret_rotation: Duration::from_secs(24 * 3600),
            drain: Duration::from_secs(10),
        }
    }
}

/// How deliveries are made from now on.
pub struct Terms {
    /// Who calls.
    pub client: Client,
    /// How.
    pub options: Options,
}

/// Sends what is due until it is told to stop.
pub struct Dispatcher {
    reader: Reader,
    writes: mpsc::Sender<Write>,
    newsstand: Arc<Newsstand>,
    client: Client,
    options: Options,
    terms: mpsc::Receiver<Terms>,
    lanes: BTreeMap<EndpointKey, Lane>,
    calls: JoinSet<Finished>,
    operator_mark: i64,
    pulse: Arc<Pulse>,
}

/// A call that has ended.
struct Finished {
    due: Due,
    /// Where it went.
    url: String,
    began: Micros,
    took: Duration,
    answer: Answer,
}

impl Dispatcher {
    /// A dispatcher over the ledger that `reader` reads and `writes` writes. Others than the first terms come by `terms`.
    pub fn new(
        reader: Reader,
        writes: mpsc::Sender<Write>,
        newsstand: Arc<Newsstand>,
        Terms { client, options }: Terms,
        terms: mpsc::Receiver<Terms>,
    ) -> Dispatcher {
        Dispatcher {
            reader,
            writes,
            newsstand,
            client,
            options,
            terms,
            lanes: BTreeMap::new(),
            calls: JoinSet::new(),
            operator_mark: 0,
            pulse: Arc::default(),
        }
    }

    /// Shows this pulse that it gets on.
    pub fn with_pulse(mut self, pulse: Arc<Pulse>) -> Dispatcher {
        self.pulse = pulse;
        self
    }

    /// Runs until `stop`; then lets calls in flight end, within the drain time.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        self.operator_mark = self.reader.operator_mark()?;
        self.wake_lanes()?;
        let mut operator = tokio::time::interval(OPERATOR_POLL);
        loop {
            self.pulse.beat(Stage::Delivery);
            let wake = self.fill()?;
            let sleep = wake.map_or(Duration::from_secs(3600), |at| {
                Duration::from_micros(u64::try_from(at.0 - Micros::now().0).unwrap_or(0))
            });
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.newsstand.wait() => self.take_news(),
                Some(terms) = self.terms.recv() => self.go_on_by(terms)?,
                Some(finished) = self.calls.join_next() => self.finish(finished).await?,
                _ = operator.tick() => self.look_for_operator()?,
                () = tokio::time::sleep(sleep) => self.mark_due_lanes(),
            }
        }
        self.drain().await
    }

    /// Calls in flight end as they began.
    fn go_on_by(&mut self, Terms { client, options }: Terms) -> Result<()> {
        (self.client, self.options) = (client, options);
        self.lanes.values_mut().for_each(Lane::forget_all);
        self.wake_lanes()
    }

    fn wake_lanes(&mut self) -> Result<()> {
        for endpoint in self.reader.endpoints_with_work()? {
            self.lanes.entry(endpoint).or_default().has_work = true;
        }
        Ok(())
    }

    /// A command of an operator has written to the ledger: pauses, breakers and queues may be others.
    fn look_for_operator(&mut self) -> Result<()> {
        let mark = self.reader.operator_mark()?;
        if mark != self.operator_mark {
            self.operator_mark = mark;
            self.lanes.values_mut().for_each(Lane::forget_all);
            self.wake_lanes()?;
        }
        Ok(())
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

    /// Starts calls wherever something is due and there is room, one a lane in turn. Returns when to look again.
    fn fill(&mut self) -> Result<Option<Micros>> {
        let now = Micros::now();
        let mut wake = None;
        let mut hungry: Vec<EndpointKey> = self.lanes.keys().copied().collect();
        while !hungry.is_empty() {
            let mut still_hungry = Vec::new();
            for endpoint in hungry {
                match self.start_one(endpoint, now)? {
                    Room::Next => still_hungry.push(endpoint),
                    Room::NotBefore(at) => wake = wake.into_iter().chain([at]).min(),
                    Room::Probe | Room::None => {}
                }
            }
            hungry = still_hungry;
        }
        self.lanes.retain(|_, lane| !lane.is_idle());
        Ok(self.lanes.values().filter_map(|lane| lane.next_due).chain(wake).min())
    }

    /// Starts one call to an endpoint if it may have one. [`Room::Next`] when it may have had room for another.
    fn start_one(&mut self, endpoint: EndpointKey, now: Micros) -> Result<Room> {
        let Dispatcher { lanes, reader, options, calls, client, .. } = self;
        let Some(lane) = lanes.get_mut(&endpoint) else { return Ok(Room::None) };
        if calls.len() >= TOTAL_IN_FLIGHT && !lane.has_nothing_in_flight() {
            return Ok(Room::None);
        }
        lane.state(endpoint, reader)?;
        // Cheap first: most lanes may send nothing most of the time.
        let room = lane.room(now, usize::MAX);
        if matches!(room, Room::NotBefore(_) | Room::None) {
            return Ok(room);
        }
        let target = match client.configured(endpoint) {
            None => lane.target(endpoint, reader, options.secret_rotation)?,
            configured => configured,
        };
        let Some(target) = target else {
            if matches!(endpoint, EndpointKey::Configured(_)) {
                EndpointUnconfigured { endpoint_id: endpoint.to_string() }.tell();
            }
            lane.clear();
            return Ok(Room::None);
        };
        let most = most_in_flight(client, options, endpoint, &target.url);
        let due = match lane.room(now, most) {
            Room::Probe => lane.probe(endpoint, reader)?,
            Room::Next => lane.next(endpoint, reader, most)?,
            other => return Ok(other),
        };
        let Some(due) = due else { return Ok(Room::None) };
        calls.spawn(call(client.clone(), target, due));
        Ok(room)
    }

    async fn finish(&mut self, finished: Result<Finished, tokio::task::JoinError>) -> Result<()> {
        let finished = finished.map_err(|e| Error::internal(format!("a delivery task failed: {e}")))?;
        let now = Micros::now();
        self.pulse.attempted(finished.answer.error.is_none());
        let verdict = self.judge(&finished, now);
        let (breaker, hasten) = self.move_lane(&finished, verdict, now)?;
        let Finished { due, began, took, answer, .. } = finished;
        let attempt = due.attempts + 1;
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        trace::attempted(
            (&due.event_id, &due.endpoint.to_string(), attempt),
            began.0,
            began.plus(took).0,
            answer.error.as_deref(),
            || attributes(&due, attempt, &answer),
        );
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
            answer: answer.excerpt,
            replay: due.replay,
            verdict,
            breaker,
            hasten,
        };
        // The writer is gone only when it failed; the daemon stops with its error.
        self.writes
            .send(Write::Outcome(outcome))
            .await
            .map_err(|_| Error::internal("the ledger's writer has stopped"))
    }

    /// What becomes of the delivery.
    fn judge(&self, finished: &Finished, now: Micros) -> Verdict {
        let Finished { due, answer, .. } = finished;
        if answer.error.is_none() {
            return Verdict::Delivered;
        }
        let attempt = (due.attempts + 1).saturating_sub(due.attempts_before);
        let history = History { attempt, queued_at: due.queued_at };
        self.options.schedule.after_failure(history, answer.reply(), now, rand::random())
    }

    /// What the attempt means for its lane. Returns the breaker if it has changed, and whether the endpoint is back after an
    /// outage.
    fn move_lane(
        &mut self,
        finished: &Finished,
        verdict: Verdict,
        now: Micros,
    ) -> Result<(Option<BreakerState>, bool)> {
        let Dispatcher { lanes, reader, options, client, .. } = self;
        let endpoint = finished.due.endpoint;
        let Some(lane) = lanes.get_mut(&endpoint) else { return Ok((None, false)) };
        lane.ended();
        let before = lane.state(endpoint, reader)?.breaker;
        let after = match verdict {
            Verdict::Delivered => options.breaker.after_success(),
            Verdict::Retry(_) | Verdict::Dead => options.breaker.after_failure(before, now, rand::random()),
            Verdict::Pause => before,
        };
        let state = lane.state(endpoint, reader)?;
        state.breaker = after;
        if verdict == Verdict::Pause && state.pause.is_none() {
            let why = "it answered HTTP 410 Gone".into();
            state.pause = Some(Pause { at: now, by: "endpoint".into(), why });
        }
        let is_back = before.opened_at.is_some() && after.opened_at.is_none();
        match verdict {
            Verdict::Delivered if is_back => lane.pace.start_slowly(),
            Verdict::Delivered => lane.pace.succeeded(),
            Verdict::Retry(at) if finished.answer.reply().is_overload() => {
                let until = finished.answer.retry_after.is_some().then_some(at);
                let most = most_in_flight(client, options, endpoint, &finished.url);
                lane.pace.overloaded(most, until);
            }
            Verdict::Retry(_) | Verdict::Dead | Verdict::Pause => {}
        }
        report_breaker(endpoint, &before, &after);
        Ok(((after != before).then_some(after), is_back))
    }

    async fn drain(&mut self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + self.options.drain;
        while !self.calls.is_empty() {
            match tokio::time::timeout_at(deadline, self.calls.join_next()).await {
                Ok(Some(finished)) => self.finish(finished).await?,
                Ok(None) => break,
                Err(_) => {
                    CallsCutOff { in_flight: self.calls.len() }.tell();
                    self.calls.abort_all();
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Calls at once to an endpoint: what the configuration says of it, or of all.
fn most_in_flight(client: &Client, options: &Options, endpoint: EndpointKey, url: &str) -> usize {
    let own = client.options(endpoint, url).and_then(|options| options.max_in_flight);
    own.unwrap_or(options.max_in_flight)
}

async fn call(client: Client, target: Endpoint, due: Due) -> Finished {
    let (began, start) = (Micros::now(), Instant::now());
    let answer = client.send(&target, due.clone()).await;
    Finished { due, url: target.url, began, took: start.elapsed(), answer }
}

/// What a span says of an attempt.
fn attributes(due: &Due, attempt: u32, answer: &Answer) -> Vec<(&'static str, String)> {
    let status = answer.status.map(|status| ("http.response.status_code", status.to_string()));
    let feature = due.feature.clone().map(|feature| ("flagpost.feature", feature));
    [("flagpost.endpoint", due.endpoint.to_string()), ("flagpost.attempt", attempt.to_string())]
        .into_iter()
        .chain(status)
        .chain(feature)
        .collect()
}

fn report(due: &Due, attempt: u32, latency_ms: u64, answer: &Answer, verdict: Verdict, now: Micros) {
    let (event_id, endpoint_id) = (due.event_id.clone(), due.endpoint.to_string());
    let (environment_id, feature) = (due.environment, due.feature.clone());
    let (http_status, error) = (answer.status, answer.error.clone());
    match verdict {
        Verdict::Delivered => Delivered {
            event_id,
            endpoint_id,
            environment_id,
            feature,
            attempt,
            http_status,
            latency_ms,
            since_commit_s: (!due.replay).then(|| now.since(due.commit_time).as_secs_f64()),
        }
        .tell(),
        Verdict::Retry(at) => DeliveryFailed {
            event_id,
            endpoint_id,
            environment_id,
            feature,
            attempt,
            http_status,
            latency_ms,
            error,
            retry_in_s: (at.0 - now.0) / 1_000_000,
        }
        .tell(),
        Verdict::Pause => {
            EndpointGone { event_id, endpoint_id, environment_id, feature, attempt, http_status, latency_ms }
                .tell();
        }
        Verdict::Dead => DeliveryDead {
            event_id,
            endpoint_id,
            environment_id,
            feature,
            attempt,
            http_status,
            latency_ms,
            error,
        }
        .tell(),
    }
}

fn report_breaker(endpoint: EndpointKey, before: &BreakerState, after: &BreakerState) {
    let endpoint_id = endpoint.to_string();
    match (before.opened_at, after.opened_at) {
        (None, Some(_)) => BreakerOpened { endpoint_id, failures: after.failures }.tell(),
        (Some(_), None) => BreakerClosed { endpoint_id }.tell(),
        (None, None) | (Some(_), Some(_)) => {}
    }
}
