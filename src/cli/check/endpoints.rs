//! The endpoints of Flagsmith's tables and of the configuration: can anything be sent to them, and safely? No request is
//! sent; names are resolved, and connections made (`certificates`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use url::Url;

use super::certificates;
use super::code::Code;
use super::report::Report;
use super::session::is_this_machine;
use crate::config::Config;
use crate::delivery::{Guard, Resolver, SystemLookup, redacted};
use crate::event::EndpointKey;
use crate::source::Listener;

/// A name server that does not answer must not hold the report up.
const RESOLVE_WITHIN: Duration = Duration::from_secs(3);
/// So many names are resolved at a time; the resolver takes a thread for each.
const AT_A_TIME: usize = 16;
/// So many are named in one line.
const SHOWN: usize = 5;

/// An endpoint that is enabled.
pub(super) struct Enabled<'a> {
    pub(super) key: EndpointKey,
    pub(super) url: &'a str,
    /// The environment or the organisation whose events it gets; `None` where the configuration decides.
    owner: Option<i64>,
    has_secret: bool,
}

pub(super) async fn check(config: &Config, listeners: &[Listener], report: &mut Report) {
    let resolver = Resolver::new(config.guard(), Arc::new(SystemLookup));
    let enabled = enabled(config, listeners);
    let disabled = listeners.iter().filter(|listener| !listener.enabled).count();
    let found: Vec<Option<Obstacle>> =
        stream::iter(enabled.iter().map(|endpoint| obstacle(&resolver, endpoint.url)))
            .buffered(AT_A_TIME)
            .collect()
            .await;
    let good: Vec<&Enabled<'_>> =
        enabled.iter().zip(&found).filter(|(_, obstacle)| obstacle.is_none()).map(|(one, _)| one).collect();
    report.ok(
        Code::Endpoints,
        format!(
            "{} of {} enabled endpoints can be sent to, {disabled} are disabled",
            good.len(),
            enabled.len()
        ),
    );
    for (endpoint, obstacle) in enabled.iter().zip(found) {
        if let Some(obstacle) = obstacle {
            warn(endpoint, &obstacle, report);
        }
        warn_unverified(config, endpoint, report);
    }
    certificates::check(config, &good, report).await;
    warn_plain(&good, report);
    warn_unsigned(&enabled, report);
    warn_twice(&enabled, report);
    list_configured(config, report);
    if enabled.iter().any(|endpoint| endpoint.key.row().is_some()) {
        report.warn(
            Code::FlagsmithWebhooks,
            "Flagsmith sends its own webhooks too (the database does not tell whether they are off): receivers would get \
             everything twice",
            "set DISABLE_WEBHOOKS=true in Flagsmith's environment and restart it, if that is not done yet",
        );
    } else if enabled.is_empty() {
        report.ok(Code::FlagsmithWebhooks, "no endpoint is enabled: nothing is sent");
    }
}

fn enabled<'a>(config: &'a Config, listeners: &'a [Listener]) -> Vec<Enabled<'a>> {
    let in_database = listeners.iter().filter(|listener| listener.enabled).filter_map(|listener| {
        Some(Enabled {
            key: EndpointKey::of(listener.table, listener.id)?,
            url: &listener.url,
            owner: Some(listener.owner),
            has_secret: listener.has_secret,
        })
    });
    let configured = config.targets.configured().iter().map(|configured| Enabled {
        key: EndpointKey::Configured(configured.name),
        url: &configured.endpoint.url,
        owner: None,
        has_secret: !configured.endpoint.secret.is_empty(),
    });
    in_database.chain(configured).collect()
}

/// The first of some endpoints, and how many there are.
fn named(endpoints: &[&Enabled<'_>]) -> String {
    let shown = endpoints.iter().take(SHOWN).map(|endpoint| endpoint.key.to_string());
    let shown: Vec<String> = shown.collect();
    match endpoints.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// What is sent by plain http to another network can be read and changed on the way.
fn warn_plain(good: &[&Enabled<'_>], report: &mut Report) {
    let is_plain = |endpoint: &&&Enabled<'_>| {
        let Ok(url) = Url::parse(endpoint.url) else { return false };
        let host = url.host_str().unwrap_or_default();
        url.scheme() == "http" && Guard::default().check_url(&url).is_ok() && !is_this_machine(host)
    };
    let plain: Vec<&Enabled<'_>> = good.iter().filter(is_plain).copied().collect();
    if plain.is_empty() {
        return;
    }
    report.warn(
        Code::EndpointPlain,
        format!(
            "plain http, so flags can be read on the way, and a signature does not hide them: {}",
            named(&plain)
        ),
        "give them https URLs; network.https_only = true refuses the others",
    );
}

fn warn_unsigned(enabled: &[Enabled<'_>], report: &mut Report) {
    let unsigned: Vec<&Enabled<'_>> = enabled.iter().filter(|endpoint| !endpoint.has_secret).collect();
    if unsigned.is_empty() {
        return;
    }
    report.warn(
        Code::EndpointUnsigned,
        format!("no secret, so their receivers cannot tell who calls: {}", named(&unsigned)),
        "give each a secret in Flagsmith (environment or organisation settings, Webhooks), or secret_file in the configuration",
    );
}

/// Two rows of one environment with one URL: each event is sent there twice. What the configuration's own endpoints get is theirs
/// to say: only the database's are the same for sure.
fn warn_twice(enabled: &[Enabled<'_>], report: &mut Report) {
    let mut by_place: BTreeMap<(&str, &str, i64), Vec<&Enabled<'_>>> = BTreeMap::new();
    for endpoint in enabled {
        let (Some((table, _)), Some(owner)) = (endpoint.key.row(), endpoint.owner) else { continue };
        by_place.entry((endpoint.url, table.name(), owner)).or_default().push(endpoint);
    }
    for ((url, ..), same) in by_place.into_iter().filter(|(_, same)| same.len() > 1) {
        report.warn(
            Code::EndpointTwice,
            format!("{} get the same events at the same URL, {}", named(&same), redacted(url)),
            "disable or delete all but one of them in Flagsmith",
        );
    }
}

fn list_configured(config: &Config, report: &mut Report) {
    for configured in config.targets.configured() {
        let url = redacted(&configured.endpoint.url);
        let signed = if configured.endpoint.secret.is_empty() { "not signed" } else { "signed" };
        let key = EndpointKey::Configured(configured.name);
        report.ok(Code::ConfiguredEndpoint, format!("{key} {url}, {signed}"));
    }
}

fn warn_unverified(config: &Config, endpoint: &Enabled<'_>, report: &mut Report) {
    let options = config.endpoint_options(endpoint.key, endpoint.url);
    if options.is_some_and(|options| !options.tls.verifies()) {
        report.warn(
            Code::EndpointTls,
            format!(
                "{} {}: TLS IS NOT VERIFIED (verify = false): whoever is on the way can read and change what is sent",
                endpoint.key,
                redacted(endpoint.url)
            ),
            "name the issuer's certificate in network.ca_file and remove verify = false from [[webhooks.endpoint]]",
        );
    }
}

/// Why nothing can be sent to an endpoint.
enum Obstacle {
    /// What its URL says.
    Url(String),
    /// What its name leads to, or that it leads nowhere.
    Name(String),
}

fn warn(endpoint: &Enabled<'_>, obstacle: &Obstacle, report: &mut Report) {
    let place = match endpoint.key {
        EndpointKey::Configured(_) => "correct it in the configuration",
        EndpointKey::Environment(_) | EndpointKey::Organisation(_) => "correct or disable it in Flagsmith",
    };
    let (Obstacle::Url(why) | Obstacle::Name(why)) = obstacle;
    let mend = match obstacle {
        _ if why.starts_with("network guard") => {
            format!("{place}, or allow its network: network.allow (FLAGPOST_NETWORK_ALLOW)")
        }
        Obstacle::Url(_) => place.to_owned(),
        Obstacle::Name(_) => {
            format!("{place}, or see why this machine does not find the name: getent hosts NAME")
        }
    };
    report.warn(Code::Endpoint, format!("{} {}: {why}", endpoint.key, redacted(endpoint.url)), mend);
}

/// What stands in the way of sending to `url`.
async fn obstacle(resolver: &Resolver, url: &str) -> Option<Obstacle> {
    let url = match Url::parse(url) {
        Ok(url) => url,
        Err(error) => return Some(Obstacle::Url(format!("it is no URL ({error})"))),
    };
    let look = async {
        resolver.check_literal(&url).await.map_err(Obstacle::Url)?;
        resolver.check(&url).await.map_err(Obstacle::Name)
    };
    match tokio::time::timeout(RESOLVE_WITHIN, look).await {
        Err(_) => {
            Some(Obstacle::Name(format!("its name was not resolved within {} s", RESOLVE_WITHIN.as_secs())))
        }
        Ok(found) => found.err(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_told_where_it_leaves_the_own_network() {
        let told = |url| {
            let endpoint =
                Enabled { key: EndpointKey::Environment(7), url, owner: Some(1), has_secret: true };
            let mut report = Report::default();
            warn_plain(&[&endpoint], &mut report);
            report.to_json()["checks"].clone()
        };
        for url in ["http://receiver.example.com/", "http://8.8.8.8:8080/hook"] {
            let warned = told(url);
            assert_eq!(
                (&warned[0]["code"], &warned[0]["status"]),
                (&"endpoint-plain".into(), &"warn".into())
            );
            assert!(
                warned[0]["message"].as_str().is_some_and(|text| text.ends_with("environment:7")),
                "{warned}"
            );
            let mend = "give them https URLs; network.https_only = true refuses the others";
            assert_eq!(warned[0]["mend"], mend);
        }
        for url in ["https://8.8.8.8/", "http://localhost/", "http://127.0.0.1/", "http://10.0.0.1/"] {
            assert_eq!(told(url).as_array().map(Vec::len), Some(0), "{url}");
        }
    }
}
