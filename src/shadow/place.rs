//! Which endpoints point to the listener, with which path and which secret.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use url::{Host, Url};

use crate::delivery::flagsmith_signature;
use crate::event::EndpointKey;
use crate::ledger::Endpoint;

/// The endpoints as they were last read. One that was deleted stays: something to it may still be under way. Not `Debug`: it
/// holds secrets.
pub(super) struct Places {
    listen: SocketAddr,
    all: HashMap<EndpointKey, Place>,
}

struct Place {
    /// Path and query; `None` where the URL points elsewhere.
    target: Option<String>,
    secret: String,
}

impl Places {
    pub(super) fn new(listen: SocketAddr) -> Places {
        Places { listen, all: HashMap::new() }
    }

    /// Takes the endpoints as they are now.
    pub(super) fn update(&mut self, endpoints: Vec<(EndpointKey, Endpoint)>) {
        for (key, endpoint) in endpoints {
            let target = target_here(&endpoint.url, self.listen);
            self.all.insert(key, Place { target, secret: endpoint.secret });
        }
    }

    pub(super) fn keys(&self) -> Vec<EndpointKey> {
        self.all.keys().copied().collect()
    }

    /// Where requests to this endpoint come in; `None` where they do not.
    pub(super) fn target(&self, key: EndpointKey) -> Option<&str> {
        self.all.get(&key)?.target.as_deref()
    }

    /// The first endpoint with this target.
    pub(super) fn endpoint(&self, target: &str) -> Option<EndpointKey> {
        self.with(target).map(|(key, _)| key).min()
    }

    /// Whether a request is signed as an endpoint with this target asks: by one of them, if several have it.
    pub(super) fn is_signed(&self, target: &str, signature: Option<&str>, body: &[u8]) -> bool {
        let mut secrets = self.with(target).map(|(_, place)| place.secret.as_str()).peekable();
        secrets.peek().is_none()
            || secrets.any(|secret| {
                flagsmith_signature(secret, body).is_none_or(|right| signature == Some(right.as_str()))
            })
    }

    fn with<'a>(&'a self, target: &'a str) -> impl Iterator<Item = (EndpointKey, &'a Place)> {
        let all = self.all.iter().map(|(key, place)| (*key, place));
        all.filter(move |(_, place)| place.target.as_deref() == Some(target))
    }
}

/// Path and query as they look in a parsed URL, whoever wrote them.
pub(super) fn normal_target(target: &str) -> String {
    Url::parse(&format!("http://host{target}")).map_or_else(|_| target.to_owned(), |url| target_of(&url))
}

fn target_of(url: &Url) -> String {
    url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()))
}

/// The target of a URL that points to the listener: plain HTTP to its port, and to its address where both are addresses. A name
/// may be whatever it likes, for it means something else inside a container than here.
fn target_here(url: &str, listen: SocketAddr) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let is_host = match url.host()? {
        Host::Ipv4(ip) => is_ours(IpAddr::V4(ip), listen),
        Host::Ipv6(ip) => is_ours(IpAddr::V6(ip), listen),
        Host::Domain(_) => true,
    };
    let is_here = url.scheme() == "http" && url.port_or_known_default() == Some(listen.port()) && is_host;
    is_here.then(|| target_of(&url))
}

fn is_ours(ip: IpAddr, listen: SocketAddr) -> bool {
    listen.ip().is_unspecified() || listen.ip().to_canonical() == ip.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_points_here_by_port_and_address() {
        let listen: SocketAddr = "10.0.0.5:9000".parse().unwrap();
        for (url, target) in [
            ("http://10.0.0.5:9000/a", Some("/a")),
            ("http://flagpost:9000", Some("/")),
            ("http://flagpost:9000/a?b=c", Some("/a?b=c")),
            ("http://10.0.0.6:9000/a", None),
            ("http://flagpost/a", None),
            ("https://flagpost:9000/a", None),
            ("no url", None),
        ] {
            assert_eq!(target_here(url, listen).as_deref(), target, "{url}");
        }
        assert!(target_here("http://10.0.0.6:9000/", "0.0.0.0:9000".parse().unwrap()).is_some());
        assert_eq!(normal_target("/å b"), "/%C3%A5%20b");
    }

    #[test]
    fn a_secret_asks_for_its_signature() {
        let mut places = Places::new("127.0.0.1:9000".parse().unwrap());
        let endpoint = |path: &str, secret: &str| Endpoint {
            url: format!("http://127.0.0.1:9000{path}"),
            secret: secret.into(),
            old_secrets: Vec::new(),
            enabled: true,
        };
        places.update(vec![
            (EndpointKey::Environment(1), endpoint("/signed", "s")),
            (EndpointKey::Environment(2), endpoint("/plain", "")),
        ]);
        let right = flagsmith_signature("s", b"body");
        assert!(places.is_signed("/signed", right.as_deref(), b"body"));
        assert!(!places.is_signed("/signed", right.as_deref(), b"other"));
        assert!(!places.is_signed("/signed", None, b"body"));
        assert!(places.is_signed("/plain", None, b"body"));
        assert!(places.is_signed("/nobody's", None, b"body"));
    }
}
