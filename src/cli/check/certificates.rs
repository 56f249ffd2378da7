//! Whether endpoints take a connection, and how long their certificates are good. No request is sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use url::Url;

use super::code::Code;
use super::endpoints::Enabled;
use super::report::Report;
use super::session::{EXPIRES_SOON, days_left};
use crate::change::Micros;
use crate::cli::printable::one_line;
use crate::config::Config;
use crate::delivery::{Handshakes, Resolver, Shown, SystemLookup, redacted};
use crate::error::Kind;
use crate::event::EndpointKey;

/// An endpoint that does not answer must not hold the report up.
const LOOK_WITHIN: Duration = Duration::from_secs(4);
const AT_A_TIME: usize = 16;

/// Endpoints at the same scheme, host and port: one look is enough for all of them.
struct Place<'a> {
    url: Url,
    first: &'a Enabled<'a>,
    count: usize,
    /// Whether the configuration wants the certificate verified.
    verifies: bool,
}

impl Place<'_> {
    fn name(&self) -> String {
        let more = match self.count {
            1 => String::new(),
            n => format!(" and {} more there", n - 1),
        };
        format!("{} {}{more}", self.first.key, redacted(self.first.url))
    }
}

/// Looks at endpoints that can be sent to.
pub(super) async fn check(config: &Config, good: &[&Enabled<'_>], report: &mut Report) {
    let resolver = Resolver::new(config.guard(), Arc::new(SystemLookup));
    let handshakes = match Handshakes::new(resolver, &config.trust) {
        Ok(handshakes) => handshakes,
        Err(error) => {
            // The daemon would not start: its HTTP client needs them too.
            return report.fail(
                Code::EndpointCertificate,
                Kind::Config,
                error,
                "install the system's issuers (package ca-certificates), or name yours in SSL_CERT_FILE",
            );
        }
    };
    let places = places(config, good);
    let looks = places.iter().map(|place| look(&handshakes, &place.url));
    let found: Vec<Result<Option<Shown>, String>> = stream::iter(looks).buffered(AT_A_TIME).collect().await;
    let mut tally = Tally::default();
    for (place, found) in places.iter().zip(found) {
        match found {
            Err(why) => tell_unreached(place, &why, report),
            Ok(None) => {}
            Ok(Some(shown)) => tell_certificate(place, &shown, Micros::now(), &mut tally, report),
        }
    }
    if tally.good > 0 {
        report.ok(
            Code::EndpointCertificate,
            format!(
                "{} certificates are trusted; the first expires in {} days",
                tally.good, tally.first_days
            ),
        );
    }
}

async fn look(handshakes: &Handshakes, url: &Url) -> Result<Option<Shown>, String> {
    match tokio::time::timeout(LOOK_WITHIN, handshakes.look(url)).await {
        Err(_) => Err(format!("it has not answered within {} s", LOOK_WITHIN.as_secs())),
        Ok(found) => found,
    }
}

fn places<'a>(config: &Config, good: &[&'a Enabled<'a>]) -> Vec<Place<'a>> {
    let mut all: BTreeMap<(String, String, u16), Place<'a>> = BTreeMap::new();
    for endpoint in good {
        let Ok(url) = Url::parse(endpoint.url) else { continue };
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { continue };
        let verifies =
            config.endpoint_options(endpoint.key, endpoint.url).is_none_or(|options| options.tls.verifies());
        let key = (url.scheme().to_owned(), host.to_owned(), port);
        all.entry(key)
            .and_modify(|place| {
                place.count += 1;
                place.verifies |= verifies;
            })
            .or_insert(Place { url, first: endpoint, count: 1, verifies });
    }
    all.into_values().collect()
}

#[derive(Default)]
struct Tally {
    good: usize,
    first_days: i64,
}

fn tell_unreached(place: &Place<'_>, why: &str, report: &mut Report) {
    report.warn(
        Code::EndpointReach,
        format!("{}: {}", place.name(), one_line(why)),
        "start the receiver, or open the way to it from here; until then what is for it waits: flagpost status",
    );
}

fn tell_certificate(place: &Place<'_>, shown: &Shown, now: Micros, tally: &mut Tally, report: &mut Report) {
    let (code, days) = (Code::EndpointCertificate, days_left(shown.expires_at, now));
    // With verify = false anything will do, which is told by itself.
    if !place.verifies {
        return;
    }
    let renew = "let whoever runs the receiver renew its certificate";
    if days < 0 {
        let message =
            format!("{}: its certificate expired {} days ago: nothing is delivered", place.name(), -days);
        return match place.first.key {
            EndpointKey::Configured(_) => report.fail_around(code, message, renew),
            // Whoever edits an environment in Flagsmith decides about its URL: no reason for a failure of ours.
            EndpointKey::Environment(_) | EndpointKey::Organisation(_) => report.warn(code, message, renew),
        };
    }
    if let Some(refused) = &shown.refused {
        return report.warn(
            code,
            format!("{}: its certificate is not trusted ({}): nothing is delivered", place.name(), one_line(refused)),
            "name the issuer's certificate in network.ca_file (FLAGPOST_NETWORK_CA_FILE), or let the receiver send its whole chain",
        );
    }
    if days < EXPIRES_SOON {
        return report.warn(code, format!("{}: its certificate expires in {days} days", place.name()), renew);
    }
    tally.first_days = if tally.good == 0 { days } else { tally.first_days.min(days) };
    tally.good += 1;
}
