//! The comparison: what flagpost would have sent and what Flagsmith sent go in, findings come out.
//!
//! Pure: no I/O, no clock; every call is told the time, which must not go back. Rules:
//!
//! - Bodies that are equal to the byte and for the same URL are paired as soon as both are there, whichever came first: equal,
//!   or late.
//! - Everything else is judged when its grace period is over, for until then something equal may still come. A request is
//!   then a double (its body was paired before), or differs from an event that tells of the same thing, or is unexplained. An
//!   event is then told differently, or missing. An equal body that comes after an event was found missing is late.
//! - Nobody is accused of what was not listened to: what was committed before the start is never missing, what was received
//!   within one grace period of the start is never unexplained, and while events come that are old already (the stream is
//!   catching up) no request is judged.
//!
//! Invariant: memory is bounded, by `HELD`, `HELD_BYTES` and `REMEMBERED`. What does not fit is counted as not judged.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use serde_json::Value as Json;

use super::explain;
use super::finding::{Class, EventFacts, Finding};
use super::history::History;
use super::likeness::{self, About, Digest};
use crate::change::Micros;
use crate::event::EndpointKey;

/// Events and requests that wait, together: several hundred a second over the default grace period.
const HELD: usize = 20_000;
/// Their bodies.
const HELD_BYTES: usize = 64 * 1024 * 1024;
/// Bodies (their digests) that are known to have been paired: doubles are told by them.
const REMEMBERED: usize = 50_000;
/// How long they are, beyond the grace period: Flagsmith's task processor tries again within seconds.
const REMEMBER_FOR: Duration = Duration::from_secs(600);
/// An event that is older than this when it comes shows that the stream is catching up.
const CATCHING_UP: Duration = Duration::from_secs(5);

/// What is in time.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long something equal is waited for.
    pub grace: Duration,
    /// Later after the commit is late.
    pub late: Duration,
    /// When listening began.
    pub since: Micros,
}

/// What flagpost would have sent.
#[derive(Debug, Clone)]
pub struct Expected {
    /// To whom.
    pub endpoint: EndpointKey,
    /// Path and query of its URL.
    pub target: String,
    /// The event's id, action and commit time.
    pub event: EventFacts,
    /// The exact body.
    pub body: Vec<u8>,
    /// Whether its environment has v2 versions.
    pub is_versioned: bool,
}

/// What Flagsmith sent.
#[derive(Debug, Clone)]
pub struct Received {
    /// Path and query.
    pub target: String,
    /// The endpoint with this URL (one of them, if several have it).
    pub endpoint: Option<EndpointKey>,
    /// The exact body.
    pub body: Vec<u8>,
    /// When it had come.
    pub at: Micros,
}

/// Waits for something equal.
struct Held<T> {
    item: T,
    digest: Digest,
    likeness: Option<Digest>,
    deadline: Micros,
}

/// A body that was paired, or missed.
struct Known {
    endpoint: EndpointKey,
    event: EventFacts,
    /// False where an event is missing so far.
    came: bool,
}

type Key = (String, Digest);

/// See the module's documentation.
pub struct Comparison {
    limits: Limits,
    events: VecDeque<Held<Expected>>,
    requests: VecDeque<Held<Received>>,
    held_bytes: usize,
    known: HashMap<Key, Known>,
    /// The keys of `known`, oldest first, with the time at which each is forgotten.
    forget: VecDeque<(Micros, Key)>,
    catching_up_until: Micros,
    history: History,
}

impl Comparison {
    /// A comparison that knows nothing yet.
    pub fn new(limits: Limits) -> Comparison {
        Comparison {
            catching_up_until: limits.since,
            limits,
            events: VecDeque::new(),
            requests: VecDeque::new(),
            held_bytes: 0,
            known: HashMap::new(),
            forget: VecDeque::new(),
            history: History::default(),
        }
    }

    /// Takes a body of ours from before, of a change committed at `at`: it shows states that Flagsmith may still tell as previous
    /// ones.
    pub fn recall(&mut self, body: &[u8], at: Micros) {
        self.history.note(&likeness::read(body), at);
    }

    /// flagpost would have sent this.
    pub fn expected(&mut self, expected: Expected, now: Micros) -> Vec<Finding> {
        if expected.event.commit_time.plus(CATCHING_UP) < now {
            self.catching_up_until = now.plus(self.limits.grace);
        }
        let (digest, body) = (likeness::digest(&expected.body), likeness::read(&expected.body));
        self.history.note(&body, expected.event.commit_time);
        let equal = self.requests.iter().position(|r| r.digest == digest && r.item.target == expected.target);
        if let Some(request) = equal.and_then(|at| self.requests.remove(at)) {
            self.held_bytes -= request.item.body.len();
            return vec![self.pair(expected, digest, &request.item, now)];
        }
        self.held_bytes += expected.body.len();
        let likeness = likeness::likeness(&body);
        let deadline = now.plus(self.limits.grace);
        self.events.push_back(Held { item: expected, digest, likeness, deadline });
        self.shed()
    }

    /// Flagsmith sent this.
    pub fn received(&mut self, received: Received, now: Micros) -> Vec<Finding> {
        let digest = likeness::digest(&received.body);
        let equal = self.events.iter().position(|e| e.digest == digest && e.item.target == received.target);
        if let Some(event) = equal.and_then(|at| self.events.remove(at)) {
            self.held_bytes -= event.item.body.len();
            return vec![self.pair(event.item, digest, &received, now)];
        }
        let key = (received.target.clone(), digest);
        if let Some(known) = self.known.get_mut(&key).filter(|known| !known.came) {
            known.came = true;
            let about = likeness::about(&likeness::read(&received.body));
            return vec![late(known.endpoint, &known.event, about, received.at)];
        }
        self.held_bytes += received.body.len();
        let likeness = likeness::likeness(&likeness::read(&received.body));
        let deadline = now.plus(self.limits.grace);
        self.requests.push_back(Held { item: received, digest, likeness, deadline });
        self.shed()
    }

    /// Judges what has waited long enough.
    pub fn tick(&mut self, now: Micros) -> Vec<Finding> {
        let mut findings = Vec::new();
        if now >= self.catching_up_until {
            while let Some(request) = pop_due(&mut self.requests, now) {
                findings.push(self.judge_request(request, now));
            }
        }
        while let Some(event) = pop_due(&mut self.events, now) {
            findings.push(self.judge_event(event, now));
        }
        while self.forget.front().is_some_and(|(at, _)| *at <= now) {
            self.forget_oldest();
        }
        findings
    }

    /// When [`Comparison::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Micros> {
        let request = self.requests.front().map(|r| r.deadline.max(self.catching_up_until));
        request.into_iter().chain(self.events.front().map(|e| e.deadline)).min()
    }

    /// The end: what can be told by what is here is told, the rest is not judged.
    pub fn finish(&mut self, now: Micros) -> Vec<Finding> {
        let mut findings = self.tick(now);
        while let Some(request) = self.requests.pop_front() {
            let judged = self.judge_request(request, now);
            findings.push(Finding { class: undecided(judged.class), ..judged });
        }
        while let Some(event) = self.events.pop_front() {
            findings.push(unjudged_event(&event.item));
        }
        self.held_bytes = 0;
        findings
    }

    fn pair(&mut self, expected: Expected, digest: Digest, received: &Received, now: Micros) -> Finding {
        let delay = received.at.0 - expected.event.commit_time.0;
        let is_late = u128::try_from(delay).unwrap_or(0) > self.limits.late.as_micros();
        let finding = if is_late {
            let about = likeness::about(&likeness::read(&expected.body));
            late(expected.endpoint, &expected.event, about, received.at)
        } else {
            bare(Some(expected.endpoint), Some(expected.event.clone()), About::default())
        };
        self.remember((expected.target, digest), expected.endpoint, expected.event, true, now);
        finding
    }

    fn judge_request(&mut self, request: Held<Received>, now: Micros) -> Finding {
        let Held { item, digest, likeness, .. } = request;
        self.held_bytes = self.held_bytes.saturating_sub(item.body.len());
        let body = likeness::read(&item.body);
        let key = (item.target, digest);
        if let Some(known) = self.known.get(&key) {
            let (endpoint, event) = (Some(known.endpoint), Some(known.event.clone()));
            return Finding { class: Class::Doubled, ..bare(endpoint, event, likeness::about(&body)) };
        }
        let candidates = self.events.iter().enumerate();
        let alike = candidates
            .filter(|(_, e)| likeness.is_some() && e.likeness == likeness && e.item.target == key.0);
        let best = alike
            .map(|(at, e)| (likeness::differences(&likeness::read(&e.item.body), &body).len(), at))
            .min();
        if let Some(event) = best.and_then(|(_, at)| self.events.remove(at)) {
            self.held_bytes = self.held_bytes.saturating_sub(event.item.body.len());
            return self.differs(event, &body, digest, now);
        }
        let is_early = item.at < self.limits.since.plus(self.limits.grace);
        let class = if is_early { Class::Unjudged } else { Class::Unexplained };
        Finding { class, ..bare(item.endpoint, None, likeness::about(&body)) }
    }

    fn judge_event(&mut self, event: Held<Expected>, now: Micros) -> Finding {
        self.held_bytes = self.held_bytes.saturating_sub(event.item.body.len());
        let ours = likeness::read(&event.item.body);
        let is_alike = |r: &Held<Received>| {
            event.likeness.is_some() && r.likeness == event.likeness && r.item.target == event.item.target
        };
        let mut best = None;
        for (at, request) in self.requests.iter().enumerate().filter(|(_, r)| is_alike(r)) {
            // A double of something else tells nothing of this event.
            if !self.known.contains_key(&(request.item.target.clone(), request.digest)) {
                let count = likeness::differences(&ours, &likeness::read(&request.item.body)).len();
                best = best.into_iter().chain([(count, at)]).min();
            }
        }
        if let Some(request) = best.and_then(|(_, at)| self.requests.remove(at)) {
            self.held_bytes = self.held_bytes.saturating_sub(request.item.body.len());
            return self.differs(event, &likeness::read(&request.item.body), request.digest, now);
        }
        let Held { item, digest, .. } = event;
        if item.event.commit_time < self.limits.since {
            return unjudged_event(&item);
        }
        let explained = explain::missing(&ours, &item.event.action, item.is_versioned);
        self.remember((item.target, digest), item.endpoint, item.event.clone(), false, now);
        Finding {
            class: Class::Missing,
            explained,
            ..bare(Some(item.endpoint), Some(item.event), likeness::about(&ours))
        }
    }

    fn differs(&mut self, event: Held<Expected>, theirs: &Json, digest: Digest, now: Micros) -> Finding {
        let Held { item, .. } = event;
        let ours = likeness::read(&item.body);
        let differences = likeness::differences(&ours, theirs);
        let at = item.event.commit_time;
        let explained = explain::difference(&ours, theirs, &differences, &self.history, at);
        let mut paths = likeness::paths(&differences);
        if paths.is_empty() {
            paths.push("(spelling)".into());
        }
        self.remember((item.target.clone(), digest), item.endpoint, item.event.clone(), true, now);
        self.remember((item.target, event.digest), item.endpoint, item.event.clone(), true, now);
        Finding {
            class: Class::Differs,
            paths,
            explained,
            ..bare(Some(item.endpoint), Some(item.event), likeness::about(&ours))
        }
    }

    fn remember(&mut self, key: Key, endpoint: EndpointKey, event: EventFacts, came: bool, now: Micros) {
        while self.forget.len() >= REMEMBERED {
            self.forget_oldest();
        }
        let until = now.plus(self.limits.grace).plus(REMEMBER_FOR);
        if self.known.insert(key.clone(), Known { endpoint, event, came }).is_none() {
            self.forget.push_back((until, key));
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.forget.pop_front() {
            self.known.remove(&key);
        }
    }

    /// Drops the oldest of what waits while it is more than may be held.
    fn shed(&mut self) -> Vec<Finding> {
        let mut findings = Vec::new();
        while self.events.len() + self.requests.len() > HELD || self.held_bytes > HELD_BYTES {
            let event = self.events.front().map(|e| e.deadline);
            let request = self.requests.front().map(|r| r.deadline);
            let is_request = event.is_none() || request.is_some_and(|at| Some(at) < event);
            let (bytes, finding) = if is_request {
                let Some(request) = self.requests.pop_front() else { break };
                let unjudged = bare(request.item.endpoint, None, About::default());
                (request.item.body.len(), Finding { class: Class::Unjudged, ..unjudged })
            } else {
                let Some(event) = self.events.pop_front() else { break };
                (event.item.body.len(), unjudged_event(&event.item))
            };
            self.held_bytes = self.held_bytes.saturating_sub(bytes);
            findings.push(finding);
        }
        findings
    }
}

fn pop_due<T>(queue: &mut VecDeque<Held<T>>, now: Micros) -> Option<Held<T>> {
    if queue.front()?.deadline <= now { queue.pop_front() } else { None }
}

/// At the end, what is not there may only not have come yet.
fn undecided(class: Class) -> Class {
    if class == Class::Unexplained { Class::Unjudged } else { class }
}

/// An equal one; other classes change what they must.
fn bare(endpoint: Option<EndpointKey>, event: Option<EventFacts>, about: About) -> Finding {
    Finding { event, about, ..Finding::of(Class::Equal, endpoint) }
}

fn late(endpoint: EndpointKey, event: &EventFacts, about: About, at: Micros) -> Finding {
    let delay_ms = Some((at.0 - event.commit_time.0) / 1000);
    Finding { class: Class::Late, delay_ms, ..bare(Some(endpoint), Some(event.clone()), about) }
}

fn unjudged_event(expected: &Expected) -> Finding {
    let about = likeness::about(&likeness::read(&expected.body));
    Finding { class: Class::Unjudged, ..bare(Some(expected.endpoint), Some(expected.event.clone()), about) }
}
