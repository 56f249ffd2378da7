//! The network guard: which addresses a webhook may reach.
//!
//! A webhook URL is written by whoever may edit an environment; the daemon stands in the operator's network. So loopback,
//! private, link-local (with the cloud's metadata service), multicast and other special addresses are refused unless
//! `network.allow` names their network. Literals are checked before the request, names when they are resolved (`lookup`), and
//! only the addresses that passed are connected to (no second look-up that could answer otherwise). The database's own address
//! and port are refused even in an allowed network: who may edit an environment must not talk to its server through us.
//! Pure. Sources: RFC 6890 and the IANA special-purpose registries; of IPv6 only the global unicast space (2000::/3, RFC 4291
//! §2.4) can be reached at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use url::{Host, Url};

/// Where the database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabasePlace {
    /// Name or address; `None` for a Unix socket: a server on this machine.
    pub host: Option<String>,
    /// Its port.
    pub port: u16,
}

/// Decides by address. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    allow: Arc<[IpNet]>,
    https_only: bool,
    database: Option<DatabasePlace>,
}

impl Guard {
    /// A guard that lets through the public internet and the networks of `allow`.
    pub fn new(allow: Vec<IpNet>) -> Guard {
        Guard { allow: allow.into(), ..Guard::default() }
    }

    /// Whether `http` is refused.
    #[must_use]
    pub fn with_https_only(self, https_only: bool) -> Guard {
        Guard { https_only, ..self }
    }

    /// Refuses this place too.
    #[must_use]
    pub fn with_database(self, database: DatabasePlace) -> Guard {
        Guard { database: Some(database), ..self }
    }

    /// The database's place, if a URL with this port can mean it.
    pub(super) fn database_at(&self, port: Option<u16>) -> Option<&DatabasePlace> {
        self.database.as_ref().filter(|database| Some(database.port) == port)
    }

    /// `Err` names why `address` is refused.
    pub fn check(&self, address: IpAddr) -> Result<(), Refused> {
        let address = embedded(address);
        if self.allow.iter().any(|net| net.contains(&address)) {
            return Ok(());
        }
        match special(address) {
            Some(why) => Err(Refused { address, why, mend: "allow it with network.allow" }),
            None => Ok(()),
        }
    }

    /// `Err` where `address`, on the database's port, is one of the database's addresses. Addresses of this machine are one:
    /// whatever listens on one of them mostly listens on the others.
    pub(super) fn check_database(&self, address: IpAddr, database: &[IpAddr]) -> Result<(), Refused> {
        let address = embedded(address);
        let is_single = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
        if self.allow.iter().filter(is_single).any(|net| net.addr() == address) {
            return Ok(());
        }
        let is_here = |address: IpAddr| address.is_loopback() || address.is_unspecified();
        let is_same = |other: &IpAddr| {
            let other = embedded(*other);
            other == address || (is_here(other) && is_here(address))
        };
        if database.iter().any(is_same) {
            let mend = "name the single address in network.allow (as 192.0.2.7/32)";
            return Err(Refused { address, why: "the Flagsmith database, on its port", mend });
        }
        Ok(())
    }

    /// Checks a URL before it is used: its scheme, and its address if that is a literal.
    pub fn check_url(&self, url: &Url) -> Result<(), String> {
        match url.scheme() {
            "https" => {}
            "http" if self.https_only => {
                return Err(
                    "the URL is not https, and network.https_only is set: give the endpoint an https URL"
                        .into(),
                );
            }
            "http" => {}
            other => {
                return Err(format!("the URL's scheme is {other:?}: only http and https can be sent to"));
            }
        }
        match literal(url) {
            Some(address) => self.check(address).map_err(|e| e.to_string()),
            None if url.host().is_none() => Err("the URL has no host".into()),
            None => Ok(()),
        }
    }
}

/// The address in a URL that has no name.
pub(super) fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

/// An address that the guard refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("network guard: {address} is {why}: {mend} if that is meant")]
pub struct Refused {
    address: IpAddr,
    why: &'static str,
    mend: &'static str,
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
        // Only the well-known prefix: in 64:ff9b:1::/48 (RFC 8215) the IPv4 address can stand in several places.
        (0x64, 0xff9b) if v6.segments().iter().skip(2).take(4).all(|s| *s == 0) => v4(g, h),
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
        // Public by its number; inside Azure it is the host's own agent.
        (168, 63, 129) => Some("an address of the cloud's platform"),
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
        (0x64, 0xff9b) => Some("a local NAT64 address"),
        (0x100, 0) => Some("a discard address"),
        (0x5f00, _) => Some("a segment routing address"),
        (0..=0x1fff | 0x4000..=0xffff, _) => Some("outside the global unicast space"),
        (0x2001, 0xdb8) | (0x3fff, 0..=0xfff) => Some("a documentation address"),
        (0x2001, 0) => Some("a Teredo address"),
        // 2001::/23, IETF protocol assignments: benchmarking, ORCHID, anycast services. No webhook lives there.
        (0x2001, 0..=0x1ff) => Some("a special-purpose address"),
        _ => None,
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
            "64:ff9b:1::101:101",
            "64:ff9b:0:1::101:101",
            "::ffff:0:101:101",
            "100::1",
            "100:0:0:1::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:30::1",
            "2001:1::1",
            "3fff::1",
            "4000::1",
            "5f00::1",
            "fec0::1",
            "192.0.0.170",
            "192.0.0.192",
            "192.88.99.1",
            "100.100.100.200",
            "168.63.129.16",
            "fd00:ec2::254",
        ] {
            assert!(guard.check(refused.parse().unwrap()).is_err(), "{refused} passed");
        }
        for passed in [
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "64:ff9b::101:101",
            "::ffff:8.8.8.8",
            "2a00:1450::1",
            "2620:4f:8000::1",
            "2001:200::1",
        ] {
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
            "http://[fe80::1]/",
            "http://127.1/",
            "http://１２７.0.0.1/",
        ] {
            assert!(guard.check_url(&Url::parse(url).unwrap()).is_err(), "{url} passed");
        }
        assert!(guard.check_url(&Url::parse("https://example.com/hook").unwrap()).is_ok());
    }

    #[test]
    fn an_address_with_a_zone_is_no_url() {
        for url in ["http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[::1%lo]/"] {
            assert!(Url::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn plain_http_can_be_refused() {
        let guard = Guard::default().with_https_only(true);
        let refused = guard.check_url(&Url::parse("http://example.com/").unwrap()).unwrap_err();
        assert!(refused.contains("network.https_only"), "{refused}");
        assert!(guard.check_url(&Url::parse("https://example.com/").unwrap()).is_ok());
    }

    #[test]
    fn the_database_is_refused_in_an_allowed_network_unless_it_is_named_alone() {
        let guard = |allow: &[&str]| Guard::new(allow.iter().map(|net| net.parse().unwrap()).collect());
        let database: Vec<IpAddr> = vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let refused =
            |guard: Guard, address: &str| guard.check_database(address.parse().unwrap(), &database).is_err();
        for address in ["10.0.0.5", "::ffff:10.0.0.5", "64:ff9b::a00:5", "fd00::5"] {
            assert!(refused(guard(&["10.0.0.0/8", "fd00::/8"]), address), "{address}");
        }
        assert!(!refused(guard(&["10.0.0.0/8"]), "10.0.0.6"));
        assert!(!refused(guard(&["10.0.0.5/32"]), "10.0.0.5"));
        assert!(!refused(guard(&["fd00::5/128"]), "fd00::5"));
        assert!(refused(guard(&["fd00::5/128"]), "10.0.0.5"));
        // This machine has many names.
        let here = ["127.0.0.1".parse().unwrap()];
        for address in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"] {
            assert!(
                guard(&["127.0.0.0/8"]).check_database(address.parse().unwrap(), &here).is_err(),
                "{address}"
            );
        }
    }
}
