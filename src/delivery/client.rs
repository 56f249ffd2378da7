//! One attempt: the HTTP call. Redirects are failures, the answer is read up to a cap, the whole call has one deadline. Errors
//! are told without the URL, which can carry credentials.
//!
//! There is a client of the library for each way of making TLS, and apart from it one for the database's port: the guard
//! decides by address and port, and the library's resolver is told no port.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::answer::{Answer, chain, judge};
use super::guard::Guard;
use super::lookup::{ForClient, Lookup, Resolver, SystemLookup};
use super::redact::redacted;
use super::sign::{flagsmith_signature, standard_signatures};
use super::target::{EndpointOptions, Targets};
use super::tls::{Tls, Trust};
use crate::change::Micros;
use crate::error::{Error, Result};
use crate::event::{EndpointKey, EndpointName};
use crate::fact::{TlsUnverified, trace};
use crate::ledger::{Due, Endpoint};

/// Deterministic id of the event; the same in every repeat, so that a receiver can drop repeats.
pub const EVENT_ID: HeaderName = HeaderName::from_static("x-flagpost-event-id");
/// What happened: `created`, `updated`, `removed`, with the scope as a parameter.
pub const ACTION: HeaderName = HeaderName::from_static("x-flagpost-action");
/// W3C Trace Context: the trace that the call belongs to, where traces are made.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The event's number among those of its flag (or audit log), from 1, without gaps.
pub const SEQUENCE: HeaderName = HeaderName::from_static("x-flagpost-sequence");
/// `workflows_core_changerequest.id` of the change request that caused the event, if one did.
pub const CHANGE_REQUEST_ID: HeaderName = HeaderName::from_static("x-flagpost-change-request-id");
/// Its title, percent-encoded UTF-8 (RFC 3986 §2.1).
pub const CHANGE_REQUEST_TITLE: HeaderName = HeaderName::from_static("x-flagpost-change-request-title");
/// `true` where an operator asked for the delivery again (`flagpost replay`).
pub const REPLAY: HeaderName = HeaderName::from_static("x-flagpost-replay");
/// `true` where the changes themselves were missed, and the event tells the difference (`flagpost recover`).
pub const RECONSTRUCTED: HeaderName = HeaderName::from_static("x-flagpost-reconstructed");
/// Flagsmith's own signature header.
pub const SIGNATURE: HeaderName = HeaderName::from_static("x-flagsmith-signature");
/// Standard Webhooks: the event's id again.
pub const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
/// Standard Webhooks: when this attempt was made, in seconds since 1970.
pub const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
/// Standard Webhooks: one signature for each secret that the endpoint has or had a short while ago.
pub const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Most headers of an answer; with more it is refused. The library caps their bytes too: 408 KiB in HTTP/1.
const ANSWER_HEADERS: usize = 100;
/// Most bytes of an HTTP/2 answer's headers.
const ANSWER_HEADER_BYTES: u32 = 16 * 1024;
/// What an HTTP/2 endpoint may send before we read: a little more than is read of an answer, and on one connection as much for
/// a few answers at once.
const STREAM_WINDOW: u32 = 32 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;

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

/// What a client is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What may be reached.
    pub guard: Guard,
    /// How names are looked up.
    pub lookup: Arc<dyn Lookup>,
    /// Time limits of calls to endpoints that have none of their own.
    pub timeouts: Timeouts,
    /// Issuers that are trusted beside the system's.
    pub trust: Trust,
    /// Endpoints of the configuration, and options of single ones.
    pub targets: Arc<Targets>,
}

impl Settings {
    /// With the system's resolver and trust, and no endpoint that is called in a way of its own.
    pub fn new(guard: Guard, timeouts: Timeouts) -> Settings {
        let (trust, targets) = (Trust::default(), Arc::default());
        Settings { guard, lookup: Arc::new(SystemLookup), timeouts, trust, targets }
    }
}

/// Sends deliveries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    resolver: Resolver,
    common: Http,
    /// Of the endpoints that make TLS in a way of their own: by name, or of the database's by URL.
    special: HashMap<(Option<EndpointName>, String), Http>,
}

/// The library's clients for one way of making TLS.
#[derive(Debug)]
struct Http {
    tls: Tls,
    ordinary: reqwest::Client,
    /// For the database's port: hardly anybody ever needs it.
    at_database_port: OnceLock<Option<reqwest::Client>>,
}

impl Client {
    /// A client as `settings` say. Warns of endpoints that are not verified.
    pub fn new(settings: Settings) -> Result<Client> {
        let resolver = Resolver::new(settings.guard.clone(), Arc::clone(&settings.lookup));
        let http = |tls: &Tls| {
            let ordinary = build(&settings, tls, ForClient { resolver: resolver.clone(), port: None })
                .map_err(|e| Error::no_http_client(chain(&e)))?;
            Ok::<_, Error>(Http { tls: tls.clone(), ordinary, at_database_port: OnceLock::new() })
        };
        let mut special = HashMap::new();
        for (name, url, options) in settings.targets.all_options() {
            if !options.tls.verifies() {
                let endpoint = name.map(|name| EndpointKey::Configured(name).to_string()).unwrap_or_default();
                TlsUnverified { endpoint_id: endpoint.to_string(), url: redacted(url) }.tell();
            }
            if !options.tls.is_default() {
                special.insert(place(name, url), http(&options.tls)?);
            }
        }
        let common = http(&Tls::default())?;
        Ok(Client(Arc::new(Inner { resolver, common, special, settings })))
    }

    /// URL and secret of an endpoint that the configuration has, not the database.
    pub fn configured(&self, key: EndpointKey) -> Option<Endpoint> {
        self.0.settings.targets.endpoint(key)
    }

    /// How this endpoint is called, if not like all others.
    pub fn options(&self, key: EndpointKey, url: &str) -> Option<&EndpointOptions> {
        self.0.settings.targets.options(key, url)
    }

    /// Makes one attempt.
    pub async fn send(&self, endpoint: &Endpoint, due: Due) -> Answer {
        let options = self.options(due.endpoint, &endpoint.url);
        let whole = options.and_then(|options| options.timeout).unwrap_or(self.0.settings.timeouts.whole);
        let deadline = Instant::now() + whole;
        let (url, userinfo) = match Url::parse(&endpoint.url) {
            Ok(url) => without_userinfo(url),
            Err(e) => {
                return Answer::failed(format!(
                    "the endpoint's URL is no URL ({e}): correct it in Flagsmith"
                ));
            }
        };
        let secrets = secrets(endpoint, &url, userinfo.as_ref(), options);
        let call = async {
            self.0.resolver.check_literal(&url).await?;
            let http = self.http(due.endpoint, endpoint, &url)?;
            let mut headers = options.map(|options| options.headers.clone()).unwrap_or_default();
            if let Some(userinfo) = &userinfo {
                headers.entry(AUTHORIZATION).or_insert(userinfo.basic());
            }
            headers.extend(ours(endpoint, &due, Micros::now()));
            let sent = http.post(url.clone()).headers(headers).body(due.body).send().await;
            sent.map_err(|e| self.failure(e))
        };
        match timeout_at(deadline, call).await {
            Ok(Ok(response)) => judge(response, deadline, &secrets).await,
            Ok(Err(error)) => Answer::failed(error),
            Err(_) => Answer::failed(format!("no answer within {whole:?}")),
        }
    }

    fn failure(&self, error: reqwest::Error) -> String {
        if error.is_connect() && error.is_timeout() {
            return format!("no connection within {:?}", self.0.settings.timeouts.connect);
        }
        chain(&error.without_url())
    }

    /// The library's client for this endpoint.
    fn http(&self, key: EndpointKey, endpoint: &Endpoint, url: &Url) -> Result<&reqwest::Client, String> {
        let name = match key {
            EndpointKey::Configured(name) => Some(name),
            EndpointKey::Environment(_) | EndpointKey::Organisation(_) => None,
        };
        let http = self.0.special.get(&place(name, &endpoint.url)).unwrap_or(&self.0.common);
        if !self.0.resolver.is_database_port(url) {
            return Ok(&http.ordinary);
        }
        let client = http.at_database_port.get_or_init(|| {
            let (resolver, port) = (self.0.resolver.clone(), url.port_or_known_default());
            build(&self.0.settings, &http.tls, ForClient { resolver, port }).ok()
        });
        client.as_ref().ok_or_else(|| "the HTTP client for the database's port cannot be made".into())
    }
}

/// Under which key the client of an endpoint is kept.
fn place(name: Option<EndpointName>, url: &str) -> (Option<EndpointName>, String) {
    (name, url.to_owned())
}

fn build(settings: &Settings, tls: &Tls, resolver: ForClient) -> reqwest::Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .dns_resolver(resolver)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .connect_timeout(settings.timeouts.connect)
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(16)
        .http1_max_headers(ANSWER_HEADERS)
        .http2_max_header_list_size(ANSWER_HEADER_BYTES)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .tcp_nodelay(true);
    tls.apply(builder, &settings.trust).build()
}

/// Name and password of a URL.
struct Userinfo {
    name: Vec<u8>,
    password: Vec<u8>,
    /// Both as they stand in the URL, percent-encoded.
    written: [String; 2],
}

impl Userinfo {
    fn encoded(&self) -> String {
        STANDARD.encode([&self.name[..], b":", &self.password].concat())
    }

    /// Basic authentication (RFC 7617).
    fn basic(&self) -> HeaderValue {
        // Base64 is ASCII.
        let mut value = HeaderValue::from_str(&format!("Basic {}", self.encoded()))
            .unwrap_or(HeaderValue::from_static("Basic"));
        value.set_sensitive(true);
        value
    }
}

/// Takes the userinfo out of the URL: nothing that is logged or told of the request may hold it.
fn without_userinfo(mut url: Url) -> (Url, Option<Userinfo>) {
    if url.username().is_empty() && url.password().is_none() {
        return (url, None);
    }
    let decoded = |text: &str| percent_decode_str(text).collect();
    let (name, password) = (url.username().to_owned(), url.password().unwrap_or_default().to_owned());
    let userinfo = Userinfo { name: decoded(&name), password: decoded(&password), written: [name, password] };
    // Both fail only for URLs that cannot have userinfo, and there is some.
    url.set_username("").ok();
    url.set_password(None).ok();
    (url, Some(userinfo))
}

/// What an answer must not bring into the ledger, however it is written.
fn secrets(
    endpoint: &Endpoint,
    url: &Url,
    userinfo: Option<&Userinfo>,
    options: Option<&EndpointOptions>,
) -> Vec<String> {
    let mut all: Vec<String> = endpoint.old_secrets.clone();
    all.push(endpoint.secret.clone());
    all.extend(url.query().map(str::to_owned));
    all.extend(url.query_pairs().map(|(_, value)| value.into_owned()));
    if let Some(userinfo) = userinfo {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        all.extend([userinfo.encoded(), text(&userinfo.name), text(&userinfo.password)]);
        all.extend(userinfo.written.clone());
    }
    for value in options.iter().flat_map(|options| options.headers.values()) {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        // "Bearer token": the token alone too.
        all.extend(value.split(' ').map(str::to_owned));
        all.push(value);
    }
    // The longest first: one can be a part of another.
    all.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    all
}

/// Our headers: what the event is, and what proves where it comes from, made anew for each attempt: the time is signed too.
fn ours(endpoint: &Endpoint, due: &Due, now: Micros) -> HeaderMap {
    let (body, seconds) = (due.body.as_bytes(), now.0.div_euclid(1_000_000));
    let all_secrets = std::iter::once(&endpoint.secret).chain(&endpoint.old_secrets).map(String::as_str);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("flagpost/", env!("CARGO_PKG_VERSION"))));
    headers.insert(SEQUENCE, due.sequence.into());
    headers.insert(WEBHOOK_TIMESTAMP, seconds.into());
    let request = due.change_request.as_ref();
    let attempt = due.attempts + 1;
    for (name, value) in [
        (EVENT_ID, Some(due.event_id.clone())),
        (ACTION, Some(due.action.clone())),
        (REPLAY, due.replay.then(|| "true".to_owned())),
        (RECONSTRUCTED, due.reconstructed.then(|| "true".to_owned())),
        (CHANGE_REQUEST_ID, request.map(|(id, _)| id.to_string())),
        (
            CHANGE_REQUEST_TITLE,
            request.map(|(_, title)| utf8_percent_encode(title, NON_ALPHANUMERIC).to_string()),
        ),
        (TRACEPARENT, trace::traceparent(&due.event_id, &due.endpoint.to_string(), attempt)),
        (WEBHOOK_ID, Some(due.event_id.clone())),
        (SIGNATURE, flagsmith_signature(&endpoint.secret, body)),
        (WEBHOOK_SIGNATURE, standard_signatures(all_secrets, &due.event_id, seconds, body)),
    ] {
        // All of them are ASCII.
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
            headers.insert(name, value);
        }
    }
    headers
}
