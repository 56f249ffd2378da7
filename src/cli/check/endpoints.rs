//! The endpoints that Flagsmith's tables name: can anything be sent to them? Nothing is sent; names are resolved.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use url::{Host, Url};

use super::report::{Group, Report};
use crate::cli::endpoint_url::redacted;
use crate::config::Config;
use crate::delivery::Guard;
use crate::event::EndpointKey;
use crate::source::Listener;

/// A name server that does not answer must not hold the report up.
const RESOLVE_WITHIN: Duration = Duration::from_secs(3);
/// So many names are resolved at a time; the resolver takes a thread for each.
const AT_A_TIME: usize = 16;
const GROUP: Group = Group::Endpoints;

pub(super) async fn check(config: &Config, listeners: &[Listener], report: &mut Report) {
    let guard = Guard::new(config.allow.clone());
    let enabled: Vec<&Listener> = listeners.iter().filter(|listener| listener.enabled).collect();
    let found: Vec<Option<String>> =
        stream::iter(enabled.iter().map(|listener| obstacle(&guard, &listener.url)))
            .buffered(AT_A_TIME)
            .collect()
            .await;
    let good = found.iter().filter(|obstacle| obstacle.is_none()).count();
    report.ok(
        GROUP,
        "endpoints",
        format!(
            "{good} of {} enabled endpoints can be sent to, {} are disabled",
            enabled.len(),
            listeners.len() - enabled.len()
        ),
    );
    for (listener, obstacle) in enabled.iter().zip(found) {
        if let Some(obstacle) = obstacle {
            warn(listener, &obstacle, report);
        }
    }
    if enabled.is_empty() {
        report.ok(GROUP, "flagsmith-webhooks", "no endpoint is enabled: nothing is sent");
    } else {
        report.warn(
            GROUP,
            "flagsmith-webhooks",
            "Flagsmith sends its own webhooks too (the database does not tell whether they are off): receivers would get \
             everything twice",
            "set DISABLE_WEBHOOKS=true in Flagsmith's environment and restart it, if that is not done yet",
        );
    }
}

fn warn(listener: &Listener, obstacle: &str, report: &mut Report) {
    let key = EndpointKey::of(listener.table, listener.id).map(|key| key.to_string()).unwrap_or_default();
    report.warn(
        GROUP,
        "endpoint",
        format!("{key} {}: {obstacle}", redacted(&listener.url)),
        "correct or disable it in Flagsmith, or allow its network: network.allow (FLAGPOST_NETWORK_ALLOW)",
    );
}

/// Why nothing can be sent to `url`.
async fn obstacle(guard: &Guard, url: &str) -> Option<String> {
    let url = match Url::parse(url) {
        Ok(url) => url,
        Err(error) => return Some(format!("it is no URL ({error})")),
    };
    if let Err(refused) = guard.check_url(&url) {
        return Some(refused);
    }
    match url.host() {
        Some(Host::Domain(name)) => unresolved(guard, name).await,
        _ => None,
    }
}

async fn unresolved(guard: &Guard, name: &str) -> Option<String> {
    let found = tokio::time::timeout(RESOLVE_WITHIN, tokio::net::lookup_host((name, 0))).await;
    let addresses: Vec<IpAddr> = match found {
        Err(_) => return Some(format!("{name} was not resolved within {} s", RESOLVE_WITHIN.as_secs())),
        Ok(Err(error)) => return Some(format!("{name} cannot be resolved: {error}")),
        Ok(Ok(addresses)) => addresses.map(|address| address.ip()).collect(),
    };
    let mut refused = None;
    for address in addresses {
        match guard.check(address) {
            Ok(()) => return None,
            Err(error) => refused = Some(error),
        }
    }
    Some(refused.map_or_else(|| format!("{name} has no address"), |error| error.to_string()))
}
