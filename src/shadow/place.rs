//! Which endpoints point to the listener, with which path and which secret.
//!
//! Flagsmith sends to a row as it was when it made the request, which may be under way for a while. So a row that was changed,
//! disabled or deleted counts for a grace time more, with the URL and the secret that it had, and then no longer: whoever
//! replaces an endpoint without a secret by one with a secret wants signatures from then on.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use url::{Host, Url};

use super::notice::Pointing;
use crate::change::Micros;
use crate::delivery::flagsmith_signature;
use crate::error::{Error, Result};
use crate::event::EndpointKey;
use crate::ledger::Endpoint;

/// Which URLs mean the listener.
#[derive(Debug, Clone)]
pub(super) struct Here {
    listen: SocketAddr,
    /// What was said to mean it; then nothing else does.
    said: Vec<Origin>,
}

/// The beginning of a URL, as it was given with `--as`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(Url);

impl Origin {
    /// Reads `http://host:port` or `https://host:port`, with or without the beginning of a path.
    pub fn parse(text: &str) -> Result<Origin> {
        let bad = |what: &str| Error::config(format!("--as {what}: give a URL such as http://flagpost:8000"));
        // The text itself is not repeated: somebody may have pasted a whole URL with a token.
        let url = Url::parse(text).map_err(|e| bad(&e.to_string()))?;
        let is_http = ["http", "https"].contains(&url.scheme()) && url.has_host();
        let has_more = url.query().is_some()
            || url.fragment().is_some()
            || !url.username().is_empty()
            || url.password().is_some();
        if !is_http || has_more {
            return Err(bad("takes scheme, host, port and the beginning of a path, nothing else"));
        }
        Ok(Origin(url))
    }

    fn covers(&self, url: &Url) -> bool {
        self.0.origin() == url.origin() && url.path().starts_with(self.0.path())
    }
}

impl Here {
    /// The listener at `listen`, by what was said; by default its own addresses.
    pub(super) fn new(listen: SocketAddr, said: Vec<Origin>) -> Here {
        Here { listen, said }
    }

    /// Path and query of a URL that means the listener. By default that is plain HTTP to its port, at `localhost` or one of
    /// its addresses. Any other name may mean this machine or another, so it must be said.
    fn target(&self, url: &str) -> Option<String> {
        let url = Url::parse(url).ok()?;
        let is_here = if self.said.is_empty() {
            self.has_port(&url) && self.is_own_host(&url)
        } else {
            self.said.iter().any(|origin| origin.covers(&url))
        };
        is_here.then(|| target_of(&url))
    }

    /// Whether a URL that does not mean the listener looks as if it were meant to.
    fn is_doubtful(&self, url: &str) -> bool {
        let port = Url::parse(url).is_ok_and(|url| self.has_port(&url));
        port && self.target(url).is_none()
    }

    fn has_port(&self, url: &Url) -> bool {
        url.scheme() == "http" && url.port_or_known_default() == Some(self.listen.port())
    }

    fn is_own_host(&self, url: &Url) -> bool {
        match url.host() {
            Some(Host::Ipv4(ip)) => self.is_own(IpAddr::V4(ip)),
            Some(Host::Ipv6(ip)) => self.is_own(IpAddr::V6(ip)),
            Some(Host::Domain(name)) => {
                name == "localhost" && (self.listen.ip().is_unspecified() || self.listen.ip().is_loopback())
            }
            None => false,
        }
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        let (ours, ip) = (self.listen.ip().to_canonical(), ip.to_canonical());
        if ours.is_unspecified() {
            // Only an address of this machine can be bound. Nothing is sent.
            return !ip.is_unspecified() && UdpSocket::bind((ip, 0)).is_ok();
        }
        ours == ip
    }
}

/// The endpoints as they were last read, and what they were a moment ago. Not `Debug`: it holds secrets.
pub(super) struct Places {
    here: Here,
    grace: Duration,
    /// As they are now first.
    all: Vec<Place>,
    doubtful: usize,
}

#[derive(PartialEq, Eq)]
struct Place {
    key: EndpointKey,
    /// Path and query; `None` where the URL points elsewhere.
    target: Option<String>,
    secret: String,
    /// Until when it counts although it is no longer so.
    until: Option<Micros>,
}

impl Place {
    fn counts(&self, now: Micros) -> bool {
        self.until.is_none_or(|until| now <= until)
    }
}

impl Places {
    /// No endpoints yet. `grace` is how long a request may be under way.
    pub(super) fn new(here: Here, grace: Duration) -> Places {
        Places { here, grace, all: Vec::new(), doubtful: 0 }
    }

    /// Takes the endpoints as they are now. Nothing is sent to one that is disabled, so it is none.
    pub(super) fn update(&mut self, endpoints: Vec<(EndpointKey, Endpoint)>, now: Micros) {
        self.doubtful = 0;
        let mut all = Vec::new();
        for (key, endpoint) in endpoints.into_iter().filter(|(_, endpoint)| endpoint.enabled) {
            self.doubtful += usize::from(self.here.is_doubtful(&endpoint.url));
            let target = self.here.target(&endpoint.url);
            all.push(Place { key, target, secret: endpoint.secret, until: None });
        }
        let until = now.plus(self.grace);
        for place in std::mem::take(&mut self.all) {
            let is_still = place.until.is_none() && all.contains(&place);
            if !is_still && place.counts(now) {
                all.push(Place { until: place.until.or(Some(until)), ..place });
            }
        }
        self.all = all;
    }

    /// All that are known.
    pub(super) fn keys(&self) -> Vec<EndpointKey> {
        let mut keys: Vec<EndpointKey> = self.all.iter().map(|place| place.key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// How many point here, and how many look as if they should: the port is the listener's, and the host is not known.
    pub(super) fn pointing(&self) -> Pointing {
        let now = self.all.iter().filter(|place| place.until.is_none());
        Pointing { here: now.filter(|place| place.target.is_some()).count(), doubtful: self.doubtful }
    }

    /// Where requests to this endpoint come in; `None` where they do not. An event may be read a while after the endpoint has
    /// gone, so it is asked for as long as it is known.
    pub(super) fn target(&self, key: EndpointKey) -> Option<&str> {
        self.all.iter().find(|place| place.key == key)?.target.as_deref()
    }

    /// The first endpoint with this target.
    pub(super) fn endpoint(&self, target: &str, now: Micros) -> Option<EndpointKey> {
        self.with(target, now).map(|place| place.key).min()
    }

    /// Whether a request is signed as an endpoint with this target asks: by one of them, if several have it.
    pub(super) fn is_signed(&self, target: &str, signature: Option<&str>, body: &[u8], now: Micros) -> bool {
        let mut secrets = self.with(target, now).map(|place| place.secret.as_str()).peekable();
        secrets.peek().is_none()
            || secrets.any(|secret| {
                flagsmith_signature(secret, body).is_none_or(|right| signature == Some(right.as_str()))
            })
    }

    fn with<'a>(&'a self, target: &'a str, now: Micros) -> impl Iterator<Item = &'a Place> {
        self.all.iter().filter(move |place| place.counts(now) && place.target.as_deref() == Some(target))
    }
}

/// Path and query as they look in a parsed URL, whoever wrote them.
pub(super) fn normal_target(target: &str) -> String {
    Url::parse(&format!("http://host{target}")).map_or_else(|_| target.to_owned(), |url| target_of(&url))
}

fn target_of(url: &Url) -> String {
    url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    fn here(listen: &str, said: &[&str]) -> Here {
        let said = said.iter().map(|text| Origin::parse(text).unwrap()).collect();
        Here::new(listen.parse().unwrap(), said)
    }

    fn endpoint(path: &str, secret: &str) -> Endpoint {
        Endpoint {
            url: format!("http://127.0.0.1:9000{path}"),
            secret: secret.into(),
            old_secrets: Vec::new(),
            enabled: true,
        }
    }

    fn places() -> Places {
        Places::new(here("127.0.0.1:9000", &[]), GRACE)
    }

    fn at(seconds: i64) -> Micros {
        Micros(seconds * 1_000_000)
    }

    #[test]
    fn by_default_a_url_points_here_by_port_and_own_address() {
        let at_one = here("10.0.0.5:9000", &[]);
        for (url, target) in [
            ("http://10.0.0.5:9000/a", Some("/a")),
            ("http://10.0.0.5:9000/a?b=c", Some("/a?b=c")),
            ("http://[::ffff:10.0.0.5]:9000", Some("/")),
            ("http://10.0.0.6:9000/a", None),
            ("http://flagpost:9000/a", None),
            ("http://localhost:9000/a", None),
            ("http://10.0.0.5/a", None),
            ("https://10.0.0.5:9000/a", None),
            ("no url", None),
        ] {
            assert_eq!(at_one.target(url).as_deref(), target, "{url}");
        }
        let at_all = here("0.0.0.0:9000", &[]);
        assert!(at_all.target("http://127.0.0.1:9000/").is_some());
        assert!(at_all.target("http://LOCALHOST:9000/").is_some());
        // TEST-NET-1 (RFC 5737) is nobody's.
        assert!(at_all.target("http://192.0.2.1:9000/").is_none());
        assert_eq!(normal_target("/å b"), "/%C3%A5%20b");
    }

    #[test]
    fn what_was_said_points_here_and_nothing_else() {
        let said = here("0.0.0.0:9000", &["http://flagpost:9000", "https://hooks.example.com/shadow/"]);
        for (url, target) in [
            ("http://flagpost:9000/a?b=c", Some("/a?b=c")),
            ("https://hooks.example.com/shadow/a", Some("/shadow/a")),
            ("https://hooks.example.com:443/shadow/a", Some("/shadow/a")),
            ("https://hooks.example.com/other", None),
            ("http://hooks.example.com/shadow/a", None),
            ("http://flagpost.evil:9000/a", None),
            ("http://127.0.0.1:9000/a", None),
        ] {
            assert_eq!(said.target(url).as_deref(), target, "{url}");
        }
        for text in ["flagpost:9000", "http://", "ftp://a", "http://a/?token=sekrit", "http://u:sekrit@a"] {
            let error = Origin::parse(text).unwrap_err().to_string();
            assert!(error.contains("--as") && !error.contains("sekrit"), "{error}");
        }
    }

    #[test]
    fn a_name_that_nobody_has_said_is_doubtful() {
        let mut places = places();
        let named = Endpoint { url: "http://flagpost:9000/a".into(), ..endpoint("", "") };
        let elsewhere = Endpoint { url: "https://example.com/a".into(), ..endpoint("", "") };
        places.update(
            vec![
                (EndpointKey::Environment(1), endpoint("/a", "")),
                (EndpointKey::Environment(2), named),
                (EndpointKey::Environment(3), elsewhere),
            ],
            at(0),
        );
        assert_eq!(places.pointing(), Pointing { here: 1, doubtful: 1 });
    }

    #[test]
    fn a_secret_asks_for_its_signature() {
        let mut places = places();
        places.update(
            vec![
                (EndpointKey::Environment(1), endpoint("/signed", "s")),
                (EndpointKey::Environment(2), endpoint("/plain", "")),
            ],
            at(0),
        );
        let is_signed = |target, signature, body| places.is_signed(target, signature, body, at(0));
        let right = flagsmith_signature("s", b"body");
        assert!(is_signed("/signed", right.as_deref(), b"body"));
        assert!(!is_signed("/signed", right.as_deref(), b"other"));
        assert!(!is_signed("/signed", None, b"body"));
        assert!(is_signed("/plain", None, b"body"));
        assert!(is_signed("/nobody's", None, b"body"));
    }

    #[test]
    fn what_was_replaced_counts_as_long_as_a_request_may_be_under_way() {
        let (old, new) = (EndpointKey::Environment(1), EndpointKey::Environment(2));
        let signature = flagsmith_signature("s", b"body");
        let before = vec![(old, endpoint("/hook", ""))];
        let disabled = Endpoint { enabled: false, ..endpoint("/hook", "") };
        for after in [
            vec![(new, endpoint("/hook", "s"))],
            vec![(old, endpoint("/hook", "s"))],
            vec![(old, disabled), (new, endpoint("/hook", "s"))],
        ] {
            let mut places = places();
            places.update(before.clone(), at(0));
            places.update(after.clone(), at(100));
            // Reading it again does not begin a new grace time.
            places.update(after, at(120));
            assert!(places.is_signed("/hook", signature.as_deref(), b"body", at(100)));
            assert!(places.is_signed("/hook", None, b"body", at(130)));
            assert!(!places.is_signed("/hook", None, b"body", at(131)));
            assert!(places.is_signed("/hook", signature.as_deref(), b"body", at(131)));
            assert_eq!(places.target(old), Some("/hook"));
        }
    }

    #[test]
    fn what_comes_back_counts_again() {
        let mut places = places();
        let there = vec![(EndpointKey::Environment(1), endpoint("/hook", "s"))];
        places.update(there.clone(), at(0));
        places.update(Vec::new(), at(10));
        places.update(there, at(20));
        assert!(!places.is_signed("/hook", None, b"body", at(1_000)));
        assert_eq!(places.endpoint("/hook", at(1_000)), Some(EndpointKey::Environment(1)));
        assert_eq!(places.keys(), [EndpointKey::Environment(1)]);
    }
}
