//! The endpoints of Flagsmith's tables and of the configuration: can anything be sent to them? Nothing is sent; names are
//! resolved.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use url::Url;

use super::report::{Group, Report};
use crate::config::Config;
use crate::delivery::{Resolver, SystemLookup, redacted};
use crate::event::EndpointKey;
use crate::source::Listener;

/// A name server that does not answer must not hold the report up.
const RESOLVE_WITHIN: Duration = Duration::from_secs(3);
/// So many names are resolved at a time; the resolver takes a thread for each.
const AT_A_TIME: usize = 16;
const GROUP: Group = Group::Endpoints;

/// An endpoint that is enabled.
struct Enabled<'a> {
    key: EndpointKey,
    url: &'a str,
}

pub(super) async fn check(config: &Config, listeners: &[Listener], report: &mut Report) {
    let resolver = Resolver::new(config.guard(), Arc::new(SystemLookup));
    let in_database = listeners.iter().filter(|listener| listener.enabled).filter_map(|listener| {
        Some(Enabled { key: EndpointKey::of(listener.table, listener.id)?, url: &listener.url })
    });
    let mut enabled: Vec<Enabled<'_>> = in_database.collect();
    let disabled = listeners.len() - enabled.len();
    let is_flagsmiths = !enabled.is_empty();
    let configured = config.targets.configured().iter();
    enabled
        .extend(configured.map(|c| Enabled { key: EndpointKey::Configured(c.name), url: &c.endpoint.url }));
    let found: Vec<Option<String>> =
        stream::iter(enabled.iter().map(|endpoint| obstacle(&resolver, endpoint.url)))
            .buffered(AT_A_TIME)
            .collect()
            .await;
    let good = found.iter().filter(|obstacle| obstacle.is_none()).count();
    report.ok(
        GROUP,
        "endpoints",
        format!("{good} of {} enabled endpoints can be sent to, {disabled} are disabled", enabled.len()),
    );
    for (endpoint, obstacle) in enabled.iter().zip(found) {
        if let Some(obstacle) = obstacle {
            warn(endpoint, &obstacle, report);
        }
        warn_unverified(config, endpoint, report);
    }
    list_configured(config, report);
    if is_flagsmiths {
        report.warn(
            GROUP,
            "flagsmith-webhooks",
            "Flagsmith sends its own webhooks too (the database does not tell whether they are off): receivers would get \
             everything twice",
            "set DISABLE_WEBHOOKS=true in Flagsmith's environment and restart it, if that is not done yet",
        );
    } else if enabled.is_empty() {
        report.ok(GROUP, "flagsmith-webhooks", "no endpoint is enabled: nothing is sent");
    }
}

fn list_configured(config: &Config, report: &mut Report) {
    for configured in config.targets.configured() {
        let url = redacted(&configured.endpoint.url);
        let signed = if configured.endpoint.secret.is_empty() { "not signed" } else { "signed" };
        let key = EndpointKey::Configured(configured.name);
        report.ok(GROUP, "configured-endpoint", format!("{key} {url}, {signed}"));
    }
}

fn warn_unverified(config: &Config, endpoint: &Enabled<'_>, report: &mut Report) {
    let options = config.endpoint_options(endpoint.key, endpoint.url);
    if options.is_some_and(|options| !options.tls.verifies()) {
        report.warn(
            GROUP,
            "endpoint-tls",
            format!(
                "{} {}: TLS IS NOT VERIFIED (verify = false): whoever is on the way can read and change what is sent",
                endpoint.key,
                redacted(endpoint.url)
            ),
            "name the issuer's certificate in network.ca_file and remove verify = false from [[webhooks.endpoint]]",
        );
    }
}

fn warn(endpoint: &Enabled<'_>, obstacle: &str, report: &mut Report) {
    let place = match endpoint.key {
        EndpointKey::Configured(_) => "correct it in the configuration",
        EndpointKey::Environment(_) | EndpointKey::Organisation(_) => "correct or disable it in Flagsmith",
    };
    report.warn(
        GROUP,
        "endpoint",
        format!("{} {}: {obstacle}", endpoint.key, redacted(endpoint.url)),
        format!("{place}, or allow its network: network.allow (FLAGPOST_NETWORK_ALLOW)"),
    );
}

/// Why nothing can be sent to `url`.
async fn obstacle(resolver: &Resolver, url: &str) -> Option<String> {
    let url = match Url::parse(url) {
        Ok(url) => url,
        Err(error) => return Some(format!("it is no URL ({error})")),
    };
    match tokio::time::timeout(RESOLVE_WITHIN, resolver.check(&url)).await {
        Err(_) => Some(format!("its name was not resolved within {} s", RESOLVE_WITHIN.as_secs())),
        Ok(found) => found.err(),
    }
}
