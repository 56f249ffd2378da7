//! One trace for each event: from the commit to each attempt. Where traces are not asked for, nothing of it happens.
//!
//! The ids need no memory: the trace's is the event's own id, a span's is a digest of what it is about, so a restart goes on in the
//! same trace. Source: W3C Trace Context, `traceparent`; OpenTelemetry, "Traces".

use std::sync::OnceLock;

use prometheus_client::metrics::counter::Counter;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::meters;

/// Something that took its time.
#[derive(Debug, Clone)]
pub struct Span {
    /// The event's id without its dashes.
    pub trace: String,
    /// This span's.
    pub id: String,
    /// The span that it belongs to.
    pub parent: Option<String>,
    /// What it is.
    pub name: &'static str,
    /// Microseconds since 1970.
    pub began: i64,
    /// The same.
    pub ended: i64,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// More of it, for people.
    pub attributes: Vec<(&'static str, String)>,
}

static OUT: OnceLock<mpsc::Sender<Span>> = OnceLock::new();

/// From here on spans are made and go to `out`; those that it has no room for are dropped and counted.
pub fn begin(out: mpsc::Sender<Span>) {
    // A second time changes nothing: there is one daemon a process.
    OUT.set(out).ok();
}

/// The span from the commit to the event's place in the ledger, if traces are made: the root of its trace.
pub fn recorded(
    event: &str,
    began: i64,
    ended: i64,
    attributes: impl FnOnce() -> Vec<(&'static str, String)>,
) {
    send(|| Span {
        trace: trace(event),
        id: digest(&[event]),
        parent: None,
        name: "change",
        began,
        ended,
        error: None,
        attributes: attributes(),
    });
}

/// The span of a call, if traces are made.
pub fn attempted(
    (event, endpoint, attempt): (&str, &str, u32),
    began: i64,
    ended: i64,
    error: Option<&str>,
    attributes: impl FnOnce() -> Vec<(&'static str, String)>,
) {
    send(|| Span {
        trace: trace(event),
        id: digest(&[event, endpoint, &attempt.to_string()]),
        parent: Some(digest(&[event])),
        name: "attempt",
        began,
        ended,
        error: error.map(str::to_owned),
        attributes: attributes(),
    });
}

/// What tells the receiver of a call in which trace it is; `None` where none are made.
pub fn traceparent(event: &str, endpoint: &str, attempt: u32) -> Option<String> {
    OUT.get()?;
    Some(format!("00-{}-{}-01", trace(event), digest(&[event, endpoint, &attempt.to_string()])))
}

/// How many were dropped.
pub fn dropped() -> &'static Counter {
    &meters().spans_dropped
}

fn send(span: impl FnOnce() -> Span) {
    let Some(out) = OUT.get() else { return };
    if out.try_send(span()).is_err() {
        dropped().inc();
    }
}

fn trace(event: &str) -> String {
    event.replace('-', "")
}

fn digest(parts: &[&str]) -> String {
    let hash = Sha256::digest(parts.join("\n"));
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
