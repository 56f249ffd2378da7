//! The network guard: which addresses a webhook may reach.
//!
//! A webhook URL is written by whoever may edit an environment; the daemon stands in the operator's network. So loopback,
//! private, link-local (with the cloud's metadata service), multicast and other special addresses are refused unless
//! `network.allow` names their network. Literals are checked before the request, names when they are resolved, and only
//! the addresses that passed are connected to (no second look-up that could answer otherwise). Sources: RFC 6890 and the
//! IANA special-purpose registries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Decides by address. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    allow: Arc<[IpNet]>,
}

impl Guard {
    /// A guard that lets through the public internet and the networks of `allow`.
    pub fn new(allow: Vec<IpNet>) -> Guard {
        Guard { allow: allow.into() }
    }

    /// `Err` names why `address` is refused.
    pub fn check(&self, address: IpAddr) -> Result<(), Refused> {
        let address = embedded(address);
        if self.allow.iter().any(|net| net.contains(&address)) {
            return Ok(());
        }
        match special(address) {
            Some(why) => Err(Refused { address, why }),
            None => Ok(()),
        }
    }

    /// Checks a URL before it is used: its scheme, and its address if that is a literal.
    pub fn check_url(&self, url: &Url) -> Result<(), String> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!(
                "the URL's scheme is {:?}: only http and https can be sent to",
                url.scheme()
            ));
        }
        match url.host() {
            Some(Host::Ipv4(address)) => self.check(address.into()).map_err(|e| e.to_string()),
            Some(Host::Ipv6(address)) => self.check(address.into()).map_err(|e| e.to_string()),
            Some(Host::Domain(_)) => Ok(()),
            None => Err("the URL has no host".into()),
        }
    }
}

/// An address that the guard refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("network guard: {address} is {why}: allow it with network.allow if that is meant")]
pub struct Refused {
    address: IpAddr,
    why: &'static str,
}

/// The IPv4 address inside an IPv6 one (mapped, compatible, NAT64, 6to4), which is where the packet ends up.
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let [a, b, c, .., g, h] = v6.segments();
    let v4 = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    let is_compatible = v6.segments().iter().take(6).all(|s| *s == 0) && (g, h) != (0, 0) && (g, h) != (0, 1);
    match (a, b) {
        _ if v6.to_ipv4_mapped().is_some() || is_compatible => v4(g, h),
        (0x64, 0xff9b) => v4(g, h),
        (0x2002, _) => v4(b, c),
        _ => address,
    }
}

fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6),
    }
}

fn special_v4(v4: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = v4.octets();
    match (a, b, c) {
        (127, ..) => Some("a loopback address"),
        (10, ..) | (192, 168, _) | (172, 16..=31, _) => Some("a private address"),
        (100, 64..=127, _) => Some("a carrier-grade NAT address"),
        (169, 254, _) => Some("a link-local address (the cloud's metadata service is one)"),
        (0, ..) => Some("an address of this host"),
        (224..=239, ..) => Some("a multicast address"),
        (240..=255, ..) => Some("a reserved or broadcast address"),
        (192, 0, 0) | (192, 0, 2) | (198, 51, 100) | (203, 0, 113) | (192, 88, 99) => {
            Some("a special-purpose or documentation address")
        }
        (198, 18..=19, _) => Some("a benchmarking address"),
        _ => None,
    }
}

fn special_v6(v6: Ipv6Addr) -> Option<&'static str> {
    let [a, b, ..] = v6.segments();
    match (a, b) {
        _ if v6.is_loopback() => Some("a loopback address"),
        _ if v6.is_unspecified() => Some("an address of this host"),
        (0xfe80..=0xfebf, _) => Some("a link-local address"),
        (0xfec0..=0xfeff, _) => Some("a site-local address"),
        (0xfc00..=0xfdff, _) => Some("a unique-local address"),
        (0xff00..=0xffff, _) => Some("a multicast address"),
        (0x2001, 0xdb8) | (0x3fff, 0..=0xfff) => Some("a documentation address"),
        (0x2001, 0) => Some("a Teredo address"),
        (0x100, 0) => Some("a discard address"),
        _ => None,
    }
}

/// Resolves names with the system's resolver and hands on only what the guard lets through.
#[derive(Debug, Clone)]
pub(super) struct GuardedResolver {
    pub(super) guard: Guard,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.guard.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut allowed: Vec<SocketAddr> = Vec::new();
            let mut refused = None;
            for address in found {
                match guard.check(address.ip()) {
                    Ok(()) => allowed.push(address),
                    Err(e) => refused = Some(e),
                }
            }
            match refused {
                Some(e) if allowed.is_empty() => Err(e.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_refused_in_every_disguise() {
        let guard = Guard::default();
        for refused in [
            "127.0.0.1",
            "127.255.255.254",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "239.1.1.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "198.51.100.1",
            "203.0.113.9",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "2001:db8::1",
            "fec0::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2002:0a00:0001::1",
            "::7f00:1",
            "2001::1",
        ] {
            assert!(guard.check(refused.parse().unwrap()).is_err(), "{refused} passed");
        }
        for passed in
            ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::101:101", "::ffff:8.8.8.8"]
        {
            assert!(guard.check(passed.parse().unwrap()).is_ok(), "{passed} was refused");
        }
    }

    #[test]
    fn a_network_can_be_allowed() {
        let guard = Guard::new(vec!["10.20.0.0/16".parse().unwrap(), "127.0.0.0/8".parse().unwrap()]);
        assert!(guard.check("10.20.1.1".parse().unwrap()).is_ok());
        assert!(guard.check("::ffff:127.0.0.1".parse().unwrap()).is_ok());
        assert!(guard.check("10.21.1.1".parse().unwrap()).is_err());
    }

    #[test]
    fn literals_are_checked_however_they_are_written() {
        let guard = Guard::default();
        for url in [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::ffff:127.0.0.1]/",
            "http://0177.0.0.1/",
            "http://[::1]:80/",
            "ftp://example.com/",
            "file:///etc/passwd",
        ] {
            assert!(guard.check_url(&Url::parse(url).unwrap()).is_err(), "{url} passed");
        }
        assert!(guard.check_url(&Url::parse("https://example.com/hook").unwrap()).is_ok());
    }
}
