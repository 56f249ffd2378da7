//! What the configuration says of endpoints: endpoints of its own, and how single ones are called.
//!
//! An entry with a name is an endpoint; one without gives options to the endpoints of the database that have its exact URL.
//! URLs and header values can be secret: `Debug` shows neither.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use reqwest::header::HeaderMap;

use super::tls::Tls;
use crate::event::{EndpointKey, EndpointName};
use crate::ledger::Endpoint;

/// How one endpoint is called, where it is not called like all others.
#[derive(Clone, Default)]
pub struct EndpointOptions {
    /// Limit of one whole call; `delivery.timeout` where there is none.
    pub timeout: Option<Duration>,
    /// Calls at once; `delivery.max_in_flight` where there is none.
    pub max_in_flight: Option<usize>,
    /// Headers beside ours, which win where the names are equal. Values are marked as sensitive.
    pub headers: HeaderMap,
    /// How TLS is made.
    pub tls: Tls,
}

impl fmt::Debug for EndpointOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.keys().map(|name| name.as_str()).collect();
        f.debug_struct("EndpointOptions")
            .field("timeout", &self.timeout)
            .field("max_in_flight", &self.max_in_flight)
            .field("headers", &names)
            .field("tls", &self.tls)
            .finish()
    }
}

/// An endpoint of the configuration.
pub struct Configured {
    /// Its name there.
    pub name: EndpointName,
    /// URL and secret.
    pub endpoint: Endpoint,
    /// How it is called.
    pub options: EndpointOptions,
}

/// The configuration's word on endpoints. Default: none.
#[derive(Default)]
pub struct Targets {
    configured: Vec<Configured>,
    by_url: HashMap<String, EndpointOptions>,
}

impl fmt::Debug for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<_> = self.configured.iter().map(|c| (c.name, &c.options)).collect();
        let by_url: Vec<&EndpointOptions> = self.by_url.values().collect();
        f.debug_struct("Targets").field("configured", &named).field("by_url", &by_url).finish()
    }
}

impl Targets {
    /// Endpoints of the configuration, and options of the database's endpoints by exact URL.
    pub fn new(configured: Vec<Configured>, by_url: HashMap<String, EndpointOptions>) -> Targets {
        Targets { configured, by_url }
    }

    /// The configuration's own endpoints.
    pub fn configured(&self) -> &[Configured] {
        &self.configured
    }

    fn named(&self, key: EndpointKey) -> Option<&Configured> {
        let EndpointKey::Configured(name) = key else { return None };
        self.configured.iter().find(|configured| configured.name == name)
    }

    /// URL and secret of an endpoint of the configuration; `None` for the database's, and where there is none of that name.
    pub fn endpoint(&self, key: EndpointKey) -> Option<Endpoint> {
        self.named(key).map(|configured| configured.endpoint.clone())
    }

    /// How the endpoint is called, if the configuration says anything of it.
    pub fn options(&self, key: EndpointKey, url: &str) -> Option<&EndpointOptions> {
        match key {
            EndpointKey::Configured(_) => self.named(key).map(|configured| &configured.options),
            EndpointKey::Environment(_) | EndpointKey::Organisation(_) => self.by_url.get(url),
        }
    }

    /// Every endpoint that has options, with its URL: the database's as [`None`].
    pub(super) fn all_options(&self) -> impl Iterator<Item = (Option<EndpointName>, &str, &EndpointOptions)> {
        let configured = self.configured.iter().map(|c| (Some(c.name), c.endpoint.url.as_str(), &c.options));
        configured.chain(self.by_url.iter().map(|(url, options)| (None, url.as_str(), options)))
    }
}
