//! Sends spans to a collector, as OpenTelemetry's protocol has it over HTTP in JSON (OTLP 1.x, "OTLP/HTTP"). Traces are there to be
//! looked at: what cannot be sent is dropped, and never delays a delivery.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::fact::{Span, TracesUnsent, trace};

/// Spans that wait to be sent.
pub const QUEUE: usize = 8_192;
/// Spans in one request.
const BATCH: usize = 512;
/// The longest that one waits for others.
const EVERY: Duration = Duration::from_secs(1);
/// Of a request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Between two lines in the log.
const REMIND: Duration = Duration::from_secs(60);

/// Where spans go.
#[derive(Clone, Debug)]
pub struct Collector {
    http: reqwest::Client,
    url: String,
}

impl Collector {
    /// The collector at this base URL (`http://localhost:4318`). `Err` says why the HTTP client cannot be made.
    pub fn new(base: &str) -> Result<Collector, String> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()
            .map_err(|e| e.to_string())?;
        Ok(Collector { http, url: format!("{}/v1/traces", base.trim_end_matches('/')) })
    }

    /// Sends what comes, until nobody sends any more.
    pub async fn run(self, mut spans: mpsc::Receiver<Span>) {
        let mut batch = Vec::new();
        let mut told: Option<tokio::time::Instant> = None;
        while spans.recv_many(&mut batch, BATCH).await > 0 {
            if batch.len() < BATCH {
                tokio::time::sleep(EVERY).await;
                while batch.len() < BATCH {
                    let Ok(span) = spans.try_recv() else { break };
                    batch.push(span);
                }
            }
            let sent = self.send(&batch).await;
            if let Err(error) = sent {
                trace::dropped().inc_by(u64::try_from(batch.len()).unwrap_or(u64::MAX));
                if told.is_none_or(|at| at.elapsed() >= REMIND) {
                    TracesUnsent { error }.tell();
                    told = Some(tokio::time::Instant::now());
                }
            }
            batch.clear();
        }
    }

    async fn send(&self, spans: &[Span]) -> Result<(), String> {
        let request = self
            .http
            .post(&self.url)
            .header("content-type", "application/json")
            .body(body(spans).to_string());
        match request.send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("the collector answered HTTP {}", answer.status().as_u16())),
            Err(error) => Err(format!("the collector cannot be reached: {}", error.without_url())),
        }
    }
}

fn body(spans: &[Span]) -> Value {
    json!({"resourceSpans": [{
        "resource": {"attributes": [attribute("service.name", "flagpost"), attribute("service.version", VERSION)]},
        "scopeSpans": [{
            "scope": {"name": "flagpost", "version": VERSION},
            "spans": spans.iter().map(span).collect::<Vec<_>>(),
        }],
    }]})
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// `SPAN_KIND_PRODUCER`, for what makes the event, and `SPAN_KIND_CLIENT`, for a call.
const KINDS: (u8, u8) = (4, 3);
/// `STATUS_CODE_ERROR`
const FAILED: u8 = 2;

fn span(span: &Span) -> Value {
    let mut value = json!({
        "traceId": span.trace,
        "spanId": span.id,
        "name": span.name,
        "kind": if span.parent.is_none() { KINDS.0 } else { KINDS.1 },
        "startTimeUnixNano": format!("{}000", span.began),
        "endTimeUnixNano": format!("{}000", span.ended.max(span.began)),
        "attributes": span.attributes.iter().map(|(key, value)| attribute(key, value)).collect::<Vec<_>>(),
    });
    if let Some(fields) = value.as_object_mut() {
        if let Some(parent) = &span.parent {
            fields.insert("parentSpanId".into(), parent.as_str().into());
        }
        if let Some(error) = &span.error {
            fields.insert("status".into(), json!({"code": FAILED, "message": error}));
        }
    }
    value
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}
