//! `[[webhooks.endpoint]]`: an entry with a name is an endpoint of its own, one without says how the database's endpoints of
//! its exact URL are called. Secrets are read here, once; errors name the key and never a value that can be secret.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::raw::{self, IdOrName};
use super::{parse_duration, read_secret};
use crate::delivery::{Configured, EndpointOptions, Targets, Tls, redacted};
use crate::error::{Error, Result};
use crate::event::{EndpointName, Format, Formats, Kind, Subscription, Wanted};
use crate::ledger::Endpoint;

/// Headers that belong to the call itself: another value would break it or lie about it. Those of flagpost and Standard Webhooks
/// are told by their beginning.
const OUR_HEADERS: [&str; 11] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];
const OUR_PREFIXES: [&str; 4] = ["x-flagpost-", "x-flagsmith-", "webhook-", "proxy-"];

/// What all the entries say together.
pub(super) struct Endpoints {
    pub(super) formats: Formats,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) targets: Targets,
}

pub(super) fn parse(
    raw: raw::Webhooks,
    https_only: bool,
    environment: &BTreeMap<String, String>,
) -> Result<Endpoints> {
    let default =
        raw.format.as_deref().map_or(Ok(Format::Classic), |text| format("webhooks.format", text))?;
    let mut all = Endpoints {
        formats: Formats { default, by_url: Vec::new() },
        subscriptions: Vec::new(),
        targets: Targets::default(),
    };
    let (mut configured, mut by_url) = (Vec::new(), HashMap::new());
    let mut names = HashSet::new();
    for entry in raw.endpoint {
        let Entry { place, url, name, format } = Entry::of(&entry, https_only)?;
        match name {
            Some(name) => {
                if !names.insert(name) {
                    return Err(Error::config(format!(
                        "{place}: there are two of this name: give one another"
                    )));
                }
                let secret = secret(&place, &entry, environment)?;
                let options = options(&place, &entry)?;
                all.subscriptions.push(subscription(&place, name, format.unwrap_or(default), entry)?);
                let endpoint = Endpoint { url, secret, old_secrets: Vec::new(), enabled: true };
                configured.push(Configured { name, endpoint, options });
            }
            None => {
                only_options(&place, &entry)?;
                if by_url.insert(url.clone(), options(&place, &entry)?).is_some() {
                    return Err(Error::config(format!("{place}: there are two of this URL: make them one")));
                }
                all.formats.by_url.extend(format.map(|format| (url, format)));
            }
        }
    }
    all.targets = Targets::new(configured, by_url);
    Ok(all)
}

/// What an entry is about.
struct Entry {
    /// For errors.
    place: String,
    url: String,
    name: Option<EndpointName>,
    format: Option<Format>,
}

impl Entry {
    fn of(entry: &raw::Endpoint, https_only: bool) -> Result<Entry> {
        let place = match &entry.name {
            Some(name) => format!("webhooks.endpoint {name:?}"),
            None => format!("webhooks.endpoint {}", redacted(&entry.url)),
        };
        let name = entry.name.as_deref().map(str::parse).transpose();
        let name = name.map_err(|e: String| Error::config(format!("webhooks.endpoint.name: {e}")))?;
        let scheme = Url::parse(&entry.url).ok().filter(Url::has_host).map(|url| url.scheme().to_owned());
        let wrong = match scheme.as_deref() {
            Some("http") if https_only && name.is_some() => "url is not https, and network.https_only is set",
            Some("http" | "https") => "",
            Some(_) | None => "url is no http or https URL",
        };
        if !wrong.is_empty() {
            return Err(Error::config(format!(
                "{place}: {wrong}: write it as https://hooks.example.com/flags"
            )));
        }
        let format = entry.format.as_deref().map(|text| format(&format!("{place}: format"), text));
        Ok(Entry { place, url: entry.url.clone(), name, format: format.transpose()? })
    }
}

fn format(key: &str, text: &str) -> Result<Format> {
    text.parse().map_err(|e| Error::config(format!("{key}: {e}")))
}

/// What only an endpoint of its own can have.
fn only_options(place: &str, entry: &raw::Endpoint) -> Result<()> {
    let key = match entry {
        raw::Endpoint { secret_file: Some(_), .. } => "secret_file",
        raw::Endpoint { credential: Some(_), .. } => "credential",
        _ if !entry.organisations.is_empty() => "organisations",
        _ if !entry.projects.is_empty() => "projects",
        _ if !entry.environments.is_empty() => "environments",
        _ if !entry.features.is_empty() => "features",
        _ if !entry.tags.is_empty() => "tags",
        _ if !entry.kinds.is_empty() => "kinds",
        _ => return Ok(()),
    };
    Err(Error::config(format!(
        "{place}: {key} is for an endpoint that has a name; without one the database's row says who gets what: give it a \
         name, or remove {key}"
    )))
}

fn secret(place: &str, entry: &raw::Endpoint, environment: &BTreeMap<String, String>) -> Result<String> {
    let (key, path) = match (&entry.secret_file, &entry.credential) {
        (None, None) => return Ok(String::new()),
        (Some(_), Some(_)) => {
            return Err(Error::config(format!(
                "{place}: secret_file and credential are both given: remove one"
            )));
        }
        (Some(path), None) => ("secret_file", PathBuf::from(path)),
        (None, Some(name)) => ("credential", credential(place, name, environment)?),
    };
    let secret = read_secret(&format!("{place}: {key}"), &path)?;
    if secret.expose_secret().is_empty() {
        return Err(Error::config(format!(
            "{place}: {key}: {} is empty: write the secret into it",
            path.display()
        )));
    }
    Ok(secret.expose_secret().to_owned())
}

/// systemd.exec(5), "Credentials": files in `$CREDENTIALS_DIRECTORY`, whose names have no slash.
fn credential(place: &str, name: &str, environment: &BTreeMap<String, String>) -> Result<PathBuf> {
    let is_good = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
    match environment.get("CREDENTIALS_DIRECTORY") {
        Some(directory) if is_good => Ok(Path::new(directory).join(name)),
        Some(_) => Err(Error::config(format!("{place}: credential {name:?} is no name of a credential"))),
        None => Err(Error::config(format!(
            "{place}: credential: systemd gave no credentials: add LoadCredential={name}:/path to the unit, or use secret_file"
        ))),
    }
}

fn options(place: &str, entry: &raw::Endpoint) -> Result<EndpointOptions> {
    if entry.max_in_flight == Some(0) {
        return Err(Error::config(format!(
            "{place}: max_in_flight is 0: nothing would be sent; use 1 or more"
        )));
    }
    let timeout = entry.timeout.as_deref().map(|text| parse_duration(&format!("{place}: timeout"), text));
    let timeout = timeout.transpose()?;
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err(Error::config(format!("{place}: timeout is 0: no call would succeed; use 10s or so")));
    }
    Ok(EndpointOptions {
        timeout,
        max_in_flight: entry.max_in_flight,
        headers: headers(place, &entry.headers)?,
        tls: tls(place, entry)?,
    })
}

fn headers(place: &str, raw: &BTreeMap<String, SecretString>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in raw {
        let bad = |what: &str| Error::config(format!("{place}: headers: {name:?} {what}"));
        let header: HeaderName = name.parse().map_err(|_| bad("is no name of a header"))?;
        let is_ours = OUR_HEADERS.contains(&header.as_str())
            || OUR_PREFIXES.iter().any(|prefix| header.as_str().starts_with(prefix));
        if is_ours {
            return Err(bad("is flagpost's own: remove it"));
        }
        let mut value = HeaderValue::from_str(value.expose_secret())
            .map_err(|_| bad("has a value that no header can have: use printable ASCII"))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

fn tls(place: &str, entry: &raw::Endpoint) -> Result<Tls> {
    let tls = Tls::default().with_verify(entry.verify.unwrap_or(true));
    let (certificate, key) = match (&entry.client_certificate, &entry.client_key) {
        (None, None) => return Ok(tls),
        (Some(certificate), Some(key)) => (Path::new(certificate), Path::new(key)),
        (Some(_), None) | (None, Some(_)) => {
            return Err(Error::config(format!(
                "{place}: client_certificate and client_key belong together: give both, as PEM files"
            )));
        }
    };
    let read = |name: &str, path: &Path| {
        std::fs::read(path)
            .map_err(|e| Error::config(format!("{place}: {name}: {} cannot be read: {e}", path.display())))
    };
    let (certificate, key) = (read("client_certificate", certificate)?, read("client_key", key)?);
    tls.with_identity(&certificate, &key)
        .map_err(|e| Error::config(format!("{place}: client_certificate and client_key cannot be used: {e}")))
}

fn subscription(
    place: &str,
    name: EndpointName,
    format: Format,
    entry: raw::Endpoint,
) -> Result<Subscription> {
    let kinds: Vec<Kind> = entry.kinds.iter().map(|text| kind(place, text)).collect::<Result<_>>()?;
    if let Some(kind) = kinds.iter().find(|kind| !format.has(**kind)) {
        return Err(Error::config(format!(
            "{place}: kinds: there is no {} in the format {:?}: use format = \"current\"",
            kind.name(),
            format.name()
        )));
    }
    let wanted = |list: Vec<IdOrName>| list.into_iter().map(wanted).collect();
    Ok(Subscription {
        name,
        format,
        kinds,
        organisations: wanted(entry.organisations),
        projects: wanted(entry.projects),
        environments: wanted(entry.environments),
        features: wanted(entry.features),
        tags: wanted(entry.tags),
    })
}

fn wanted(raw: IdOrName) -> Wanted {
    match raw {
        IdOrName::Id(id) => Wanted::Id(id),
        IdOrName::Name(name) => Wanted::Name(name),
    }
}

fn kind(place: &str, text: &str) -> Result<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
        let known = Kind::ALL.map(Kind::name).join(", ");
        Error::config(format!("{place}: kinds: {text:?} is no kind of event: use some of {known}"))
    })
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
