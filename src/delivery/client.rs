//! One attempt: the HTTP call. Redirects are failures, the answer is read up to a cap and thrown away, the whole call has
//! one deadline. Errors are told without the URL, which can carry credentials.

use std::error::Error as StdError;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use url::Url;

use super::guard::{Guard, GuardedResolver};
use super::retry::Reply;
use super::sign::flagsmith_signature;
use crate::error::{Error, Result};
use crate::ledger::{Due, Endpoint};

/// Deterministic id of the event; the same in every repeat, so that a receiver can drop repeats.
pub const EVENT_ID: HeaderName = HeaderName::from_static("x-flagpost-event-id");
/// What happened: `created`, `updated`, `removed`, with the scope as a parameter.
pub const ACTION: HeaderName = HeaderName::from_static("x-flagpost-action");
/// The event's number among those of its flag (or audit log), from 1, without gaps.
pub const SEQUENCE: HeaderName = HeaderName::from_static("x-flagpost-sequence");
/// `workflows_core_changerequest.id` of the change request that caused the event, if one did.
pub const CHANGE_REQUEST_ID: HeaderName = HeaderName::from_static("x-flagpost-change-request-id");
/// Its title, percent-encoded UTF-8 (RFC 3986 §2.1).
pub const CHANGE_REQUEST_TITLE: HeaderName = HeaderName::from_static("x-flagpost-change-request-title");
/// `true` where an operator asked for the delivery again (`flagpost replay`).
pub const REPLAY: HeaderName = HeaderName::from_static("x-flagpost-replay");
/// Flagsmith's own signature header.
pub const SIGNATURE: HeaderName = HeaderName::from_static("x-flagsmith-signature");

/// An answer's body is read up to here, so that the connection can be used again; nobody needs more.
const ANSWER_BYTES: usize = 16 * 1024;

/// Time limits of one call.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Name resolution, TCP and TLS.
    pub connect: Duration,
    /// Everything.
    pub whole: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { connect: Duration::from_secs(5), whole: Duration::from_secs(10) }
    }
}

/// What an endpoint answered, or why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code, if there was an answer.
    pub status: Option<u16>,
    /// Why it is a failure; `None` for a 2xx.
    pub error: Option<String>,
    /// The header `Retry-After`, as it came.
    pub retry_after: Option<String>,
    /// The beginning of the answer's body, for the operator.
    pub excerpt: Option<String>,
}

impl Answer {
    fn failed(error: impl Into<String>) -> Answer {
        Answer { status: None, error: Some(error.into()), retry_after: None, excerpt: None }
    }

    /// What decides about the next attempt.
    pub(super) fn reply(&self) -> Reply<'_> {
        Reply { status: self.status, retry_after: self.retry_after.as_deref() }
    }
}

/// Sends deliveries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    guard: Guard,
}

impl Client {
    /// A client that reaches what `guard` lets through.
    pub fn new(guard: Guard, timeouts: Timeouts) -> Result<Client> {
        let http = reqwest::Client::builder()
            .dns_resolver(GuardedResolver { guard: guard.clone() })
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .connect_timeout(timeouts.connect)
            .timeout(timeouts.whole)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(16)
            .tcp_nodelay(true)
            .build()
            .map_err(|e| Error::internal(format!("the HTTP client cannot be made: {}", chain(&e))))?;
        Ok(Client { http, guard })
    }

    /// Makes one attempt.
    pub async fn send(&self, endpoint: &Endpoint, due: Due) -> Answer {
        let url = match Url::parse(&endpoint.url) {
            Ok(url) => url,
            Err(e) => {
                return Answer::failed(format!(
                    "the endpoint's URL is no URL ({e}): correct it in Flagsmith"
                ));
            }
        };
        if let Err(e) = self.guard.check_url(&url) {
            return Answer::failed(e);
        }
        let mut request = self
            .http
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("flagpost/", env!("CARGO_PKG_VERSION")))
            .header(EVENT_ID, &due.event_id)
            .header(ACTION, &due.action)
            .header(SEQUENCE, due.sequence);
        if due.replay {
            request = request.header(REPLAY, "true");
        }
        if let Some((id, title)) = &due.change_request {
            let title = utf8_percent_encode(title, NON_ALPHANUMERIC).to_string();
            request = request.header(CHANGE_REQUEST_ID, *id).header(CHANGE_REQUEST_TITLE, title);
        }
        if let Some(signature) = flagsmith_signature(&endpoint.secret, due.body.as_bytes())
            && let Ok(value) = HeaderValue::from_str(&signature)
        {
            request = request.header(SIGNATURE, value);
        }
        match request.body(due.body).send().await {
            Ok(response) => judge(response).await,
            Err(e) => Answer::failed(chain(&e.without_url())),
        }
    }
}

async fn judge(mut response: reqwest::Response) -> Answer {
    let status = response.status();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).map(str::to_owned);
    // The verdict is the status line's; the body is read only to use the connection again.
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > ANSWER_BYTES {
            break;
        }
    }
    let error = if status.is_success() {
        None
    } else if status.is_redirection() {
        Some(format!("HTTP {}: redirects are not followed: give the endpoint its final URL", status.as_u16()))
    } else {
        Some(format!("HTTP {}", status.as_u16()))
    };
    Answer { status: Some(status.as_u16()), error, retry_after, excerpt: None }
}

/// An error with its causes: reqwest's own text is only "error sending request".
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}
