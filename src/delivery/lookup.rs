//! Names to addresses: what is looked up passes the guard, and only what passed is connected to.
//!
//! The answer of one look-up is checked and used; there is no second one that could answer otherwise (DNS rebinding). The
//! look-up itself can be replaced, so that tests answer as an attacker's name server would.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::guard::{DatabasePlace, Guard, literal};

/// The addresses of a name.
pub type Found = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Finds the addresses of a name.
pub trait Lookup: Send + Sync + fmt::Debug {
    /// The addresses of `host`, a name or a literal.
    fn lookup(&self, host: &str) -> Found;
}

/// The system's resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, host: &str) -> Found {
        let host = host.to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// Looks names up and hands on only what the guard lets through. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Resolver {
    guard: Guard,
    lookup: Arc<dyn Lookup>,
}

impl Resolver {
    /// A resolver that asks `lookup` and obeys `guard`.
    pub fn new(guard: Guard, lookup: Arc<dyn Lookup>) -> Resolver {
        Resolver { guard, lookup }
    }

    /// Whether the database listens on the port that `url` means.
    pub(super) fn is_database_port(&self, url: &Url) -> bool {
        self.guard.database_at(url.port_or_known_default()).is_some()
    }

    /// Checks what can be checked of a URL without looking its name up: scheme, literal address, the database's place.
    pub async fn check_literal(&self, url: &Url) -> Result<(), String> {
        self.guard.check_url(url)?;
        let database = self.guard.database_at(url.port_or_known_default());
        match (literal(url), database) {
            (Some(address), Some(database)) => {
                let database = self.database(database).await.map_err(|e| e.to_string())?;
                self.guard.check_database(address, &database).map_err(|e| e.to_string())
            }
            _ => Ok(()),
        }
    }

    /// Why nothing can be sent to `url`, as it is now.
    pub async fn check(&self, url: &Url) -> Result<(), String> {
        self.check_literal(url).await?;
        match url.host() {
            Some(Host::Domain(name)) => {
                let port = self.is_database_port(url).then(|| url.port_or_known_default()).flatten();
                self.addresses(name, port).await.map(drop).map_err(|e| e.to_string())
            }
            _ => Ok(()),
        }
    }

    /// The addresses that `url` means and that may be connected to; `Err` says why there is none.
    pub(super) async fn places(&self, url: &Url) -> Result<Vec<SocketAddr>, String> {
        self.check_literal(url).await?;
        let port = url.port_or_known_default().ok_or("the URL has no port")?;
        let addresses = match (literal(url), url.host_str()) {
            (Some(address), _) => vec![address],
            (None, Some(name)) => {
                let of_database = self.is_database_port(url).then_some(port);
                self.addresses(name, of_database).await.map_err(|e| e.to_string())?
            }
            (None, None) => return Err("the URL has no host".into()),
        };
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    /// The addresses of `name` that may be connected to, on `port` where that is the database's. An error where there is
    /// none.
    async fn addresses(&self, name: &str, port: Option<u16>) -> io::Result<Vec<IpAddr>> {
        let database = match self.guard.database_at(port) {
            Some(place) => self.database(place).await?,
            None => Vec::new(),
        };
        let mut allowed = Vec::new();
        let mut refused = None;
        for address in self.lookup.lookup(name).await? {
            match self.guard.check(address).and_then(|()| self.guard.check_database(address, &database)) {
                Ok(()) => allowed.push(address),
                Err(e) => refused = Some(e),
            }
        }
        match refused {
            _ if !allowed.is_empty() => Ok(allowed),
            Some(refused) => Err(io::Error::other(refused)),
            None => Err(io::Error::other(format!("{name} has no address"))),
        }
    }

    /// The database's addresses as they are now. Where they cannot be found nothing is sent to its port.
    async fn database(&self, place: &DatabasePlace) -> io::Result<Vec<IpAddr>> {
        match &place.host {
            None => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
            Some(host) => self.lookup.lookup(host).await.map_err(|e| {
                io::Error::other(format!(
                    "network guard: the endpoint has the database's port, and the database's address cannot be found ({e})"
                ))
            }),
        }
    }
}

/// What the HTTP client asks. It knows no port: a client is used for the database's port only or for all others only.
#[derive(Debug, Clone)]
pub(super) struct ForClient {
    pub(super) resolver: Resolver,
    /// The database's port, if the client is for that one.
    pub(super) port: Option<u16>,
}

impl Resolve for ForClient {
    fn resolve(&self, name: Name) -> Resolving {
        let ForClient { resolver, port } = self.clone();
        Box::pin(async move {
            let addresses = resolver.addresses(name.as_str(), port).await?;
            // The client puts the URL's port in the place of 0.
            Ok(Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}
