//! Shadow mode: Flagsmith goes on sending its own webhooks, to the listener in here; flagpost captures as ever and sends nothing,
//! but compares.
//!
//! It takes the dispatcher's place: events come from the ledger, endpoint by endpoint. They are on record as shadowed from the
//! moment they are written ([`Purpose::Shadow`]), so nothing piles up, and `flagpost run` on the same ledger never sends them,
//! not even after a crash. Invariants: no outgoing connection but to the database; nothing secret is told; what Flagsmith waits
//! for (the listener's answer) waits for nothing.
//!
//! [`compare`] holds the rules, [`finding`] the reports; both are pure.

pub mod compare;
#[cfg(test)]
mod compare_properties;
#[cfg(test)]
mod compare_tests;
pub mod finding;
mod likeness;
mod listener;
mod place;

pub use likeness::About;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::change::Micros;
use crate::config::Config;
use crate::daemon::{self, Outlet};
use crate::error::Result;
use crate::event::{EndpointKey, Format, Formats};
use crate::ledger::{Due, Newsstand, Purpose, Reader};
use compare::{Comparison, Expected, Limits, Received};
use finding::{Class, EventFacts, Finding, Tally};
use listener::{Heard, Listener};
use place::Places;

/// Events read from the ledger at once.
const BATCH: usize = 256;
/// A request to an unknown path has the endpoints read again, this often at the most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Sleep while nothing waits to be judged.
const IDLE: Duration = Duration::from_secs(3600);

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where Flagsmith's webhooks come in.
    pub listen: SocketAddr,
    /// How long something equal is waited for.
    pub grace: Duration,
    /// Later after the commit is late.
    pub late: Duration,
    /// Between two summaries.
    pub report: Duration,
    /// Lines are JSON.
    pub json: bool,
}

/// Runs until SIGTERM or SIGINT; `tell` gets each line of the report, the summary last.
pub async fn run<T>(config: &Config, options: &Options, tell: T) -> Result<()>
where
    T: Fn(&str) + Clone + Send + 'static,
{
    let listener = Listener::bind(options.listen).await?;
    let addr = listener.addr;
    // What Flagsmith sends can only be compared in its own format.
    let formats = Formats { default: Format::Current, by_url: Vec::new() };
    // Of the configuration's own endpoints Flagsmith knows nothing.
    let config = Config { formats, subscriptions: Vec::new(), ..config.clone() };
    let (give_back, given_back) = oneshot::channel();
    let consume = |outlet: Outlet, stop| {
        let mut shadow = Shadow::new(outlet, listener, options, tell.clone())?;
        Ok(async move {
            let watched = shadow.watch(stop).await;
            // Nobody waits for it when the daemon has failed to start.
            give_back.send(shadow).ok();
            watched
        })
    };
    let ready = |summary: &str| {
        if options.json {
            tell(&json!({ "type": "ready", "listen": addr.to_string(), "summary": summary }).to_string());
        } else {
            tell(&format!("{summary}, nothing is sent; listening for Flagsmith on {addr}"));
        }
    };
    let ended = daemon::run_with(&config, Purpose::Shadow, consume, ready).await;
    // Only now is everything in the ledger that was captured.
    if let Ok(mut shadow) = given_back.await {
        shadow.finish()?;
    }
    ended
}

struct Shadow<T> {
    reader: Reader,
    newsstand: Arc<Newsstand>,
    listener: Listener,
    places: Places,
    places_read: Instant,
    comparison: Comparison,
    tally: Tally,
    /// The last event that was read, by endpoint; before `first` nothing is read.
    read: HashMap<EndpointKey, i64>,
    first: i64,
    report: Duration,
    json: bool,
    tell: T,
}

impl<T: Fn(&str) + Send> Shadow<T> {
    fn new(outlet: Outlet, listener: Listener, options: &Options, tell: T) -> Result<Shadow<T>> {
        // No outcome is ever written: the writer need not wait for us.
        let Outlet { reader, newsstand, writes: _ } = outlet;
        let limits = Limits { grace: options.grace, late: options.late, since: Micros::now() };
        let mut places = Places::new(listener.addr);
        places.update(reader.endpoints()?);
        Ok(Shadow {
            first: reader.last_event()?,
            reader,
            newsstand,
            listener,
            places,
            places_read: Instant::now(),
            comparison: Comparison::new(limits),
            tally: Tally::default(),
            read: HashMap::new(),
            report: options.report,
            json: options.json,
            tell,
        })
    }

    async fn watch(&mut self, stop: CancellationToken) -> Result<()> {
        let mut next_report = Instant::now() + self.report;
        loop {
            let sleep = self.comparison.next_deadline().map_or(IDLE, |at| {
                Duration::from_micros(u64::try_from(at.0.saturating_sub(Micros::now().0)).unwrap_or(0))
            });
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.newsstand.wait() => self.take_news()?,
                Some(heard) = self.listener.heard.recv() => self.take_request(heard)?,
                () = tokio::time::sleep(sleep) => {}
                () = tokio::time::sleep_until(next_report) => {
                    self.tell_summary();
                    next_report = Instant::now() + self.report;
                }
            }
            let findings = self.comparison.tick(Micros::now());
            self.tell_findings(findings);
        }
    }

    /// What came until the end, then the summary.
    fn finish(&mut self) -> Result<()> {
        self.update_places()?;
        for endpoint in self.places.keys() {
            self.take_events(endpoint)?;
        }
        while let Ok(heard) = self.listener.heard.try_recv() {
            self.take_request(heard)?;
        }
        let findings = self.comparison.finish(Micros::now());
        self.tell_findings(findings);
        self.tell_summary();
        Ok(())
    }

    fn take_news(&mut self) -> Result<()> {
        let news = self.newsstand.take();
        if !news.changed.is_empty() {
            self.update_places()?;
        }
        for endpoint in news.ready {
            self.take_events(endpoint)?;
        }
        Ok(())
    }

    fn update_places(&mut self) -> Result<()> {
        self.places.update(self.reader.endpoints()?);
        self.places_read = Instant::now();
        Ok(())
    }

    fn take_events(&mut self, endpoint: EndpointKey) -> Result<()> {
        loop {
            let after = self.read.get(&endpoint).copied().unwrap_or(self.first);
            let events = self.reader.shadowed(endpoint, after, BATCH)?;
            let Some(last) = events.last().map(|due| due.event) else { return Ok(()) };
            self.read.insert(endpoint, last);
            for due in events {
                self.take_event(due);
            }
        }
    }

    fn take_event(&mut self, due: Due) {
        let event = EventFacts { id: due.event_id, action: due.action, commit_time: due.commit_time };
        let findings = match self.places.target(due.endpoint) {
            Some(target) => {
                let (target, body) = (target.to_owned(), due.body.into_bytes());
                let expected = Expected { endpoint: due.endpoint, target, event, body };
                self.comparison.expected(expected, Micros::now())
            }
            None => vec![Finding { event: Some(event), ..Finding::of(Class::Elsewhere, Some(due.endpoint)) }],
        };
        self.tell_findings(findings);
    }

    fn take_request(&mut self, heard: Heard) -> Result<()> {
        let mut endpoint = self.places.endpoint(&heard.target);
        if endpoint.is_none() && self.places_read.elapsed() >= LOOK_AGAIN {
            self.update_places()?;
            endpoint = self.places.endpoint(&heard.target);
        }
        let findings = if self.places.is_signed(&heard.target, heard.signature.as_deref(), &heard.body) {
            let Heard { target, body, at, .. } = heard;
            self.comparison.received(Received { target, endpoint, body, at }, Micros::now())
        } else {
            let about = likeness::about(&likeness::read(&heard.body));
            vec![Finding { about, ..Finding::of(Class::BadSignature, endpoint) }]
        };
        self.tell_findings(findings);
        Ok(())
    }

    fn tell_findings(&mut self, findings: Vec<Finding>) {
        for finding in findings {
            self.tally.add(&finding);
            if finding.class.is_difference() {
                let line = if self.json { finding.json().to_string() } else { finding.text() };
                (self.tell)(&line);
            }
        }
    }

    fn tell_summary(&self) {
        let lost = self.listener.lost();
        if self.json {
            let mut summary = self.tally.json();
            if let Some(fields) = summary.as_object_mut() {
                fields.insert("lost_requests".into(), lost.into());
            }
            return (self.tell)(&summary.to_string());
        }
        (self.tell)(&self.tally.text());
        if lost > 0 {
            (self.tell)(&format!(
                "{lost} requests were not compared (too large, too slow, too many at once): something may look missing for that"
            ));
        }
    }
}
