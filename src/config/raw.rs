//! The configuration as it was written: strings, checked only for being known keys of the right shape.

use std::collections::BTreeMap;
use std::path::Path;

use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

use super::changes::{Digests, digests};
use crate::error::{Error, Result};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) database: Database,
    pub(super) source: Source,
    pub(super) state: State,
    pub(super) webhooks: Webhooks,
    pub(super) network: Network,
    pub(super) delivery: Delivery,
    pub(super) notify: Notify,
    pub(super) ops: Ops,
    pub(super) log: Log,
    pub(super) traces: Traces,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Database {
    pub(super) url: Option<SecretString>,
    pub(super) password_file: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Source {
    pub(super) mode: Option<String>,
    pub(super) slot: Option<String>,
    pub(super) publication: Option<String>,
    pub(super) schema: Option<String>,
    pub(super) outbox_max_size: Option<String>,
    pub(super) outbox_poll: Option<String>,
    pub(super) settle: Option<String>,
    pub(super) settle_max: Option<String>,
    pub(super) heartbeat: Option<String>,
    pub(super) max_retained_wal: Option<String>,
    pub(super) max_retained_wal_action: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct State {
    pub(super) dir: Option<String>,
    pub(super) retention: Option<String>,
    pub(super) max_size: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Webhooks {
    pub(super) format: Option<String>,
    #[serde(deserialize_with = "boolean")]
    pub(super) feature_metadata_events: Option<bool>,
    pub(super) endpoint: Vec<Endpoint>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Endpoint {
    pub(super) url: String,
    pub(super) name: Option<String>,
    pub(super) format: Option<String>,
    pub(super) secret_file: Option<String>,
    pub(super) credential: Option<String>,
    pub(super) organisations: Vec<IdOrName>,
    pub(super) projects: Vec<IdOrName>,
    pub(super) environments: Vec<IdOrName>,
    pub(super) features: Vec<IdOrName>,
    pub(super) tags: Vec<IdOrName>,
    pub(super) kinds: Vec<String>,
    pub(super) headers: BTreeMap<String, SecretString>,
    pub(super) timeout: Option<String>,
    pub(super) max_in_flight: Option<usize>,
    pub(super) client_certificate: Option<String>,
    pub(super) client_key: Option<String>,
    pub(super) verify: Option<bool>,
}

/// Keys of a table in `webhooks.endpoint`.
#[cfg(test)]
pub(super) const ENDPOINT_KEYS: &[&str] = &[
    "url",
    "name",
    "format",
    "secret_file",
    "credential",
    "organisations",
    "projects",
    "environments",
    "features",
    "tags",
    "kinds",
    "headers",
    "timeout",
    "max_in_flight",
    "client_certificate",
    "client_key",
    "verify",
];

/// A row of Flagsmith's, by its number or by its name.
#[derive(Deserialize)]
#[serde(untagged, expecting = "an id (a number) or a name (a string)")]
pub(super) enum IdOrName {
    Id(i64),
    Name(String),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Network {
    #[serde(deserialize_with = "list")]
    pub(super) allow: Vec<String>,
    #[serde(deserialize_with = "boolean")]
    pub(super) https_only: Option<bool>,
    pub(super) ca_file: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Delivery {
    pub(super) timeout: Option<String>,
    pub(super) connect_timeout: Option<String>,
    #[serde(deserialize_with = "list")]
    pub(super) retry: Vec<String>,
    pub(super) max_age: Option<String>,
    #[serde(deserialize_with = "number")]
    pub(super) max_in_flight: Option<usize>,
    #[serde(deserialize_with = "number")]
    pub(super) breaker_failures: Option<usize>,
    pub(super) breaker_after: Option<String>,
    pub(super) breaker_probe: Option<String>,
    pub(super) secret_rotation: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Notify {
    pub(super) smtp: Option<SecretString>,
    pub(super) smtp_password_file: Option<String>,
    pub(super) from: Option<String>,
    #[serde(deserialize_with = "list")]
    pub(super) to: Vec<String>,
    #[serde(deserialize_with = "boolean")]
    pub(super) organisations: Option<bool>,
    pub(super) webhook: Option<SecretString>,
    pub(super) after: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Ops {
    pub(super) listen: Option<String>,
    #[serde(deserialize_with = "boolean")]
    pub(super) page: Option<bool>,
    pub(super) token_file: Option<String>,
    #[serde(deserialize_with = "list")]
    pub(super) hosts: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) format: Option<String>,
    pub(super) level: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Traces {
    pub(super) endpoint: Option<String>,
}

/// Keys that a single environment variable can hold. `webhooks.endpoint` is a list of tables and cannot.
pub(super) const KEYS: &[(&str, &str)] = &[
    ("database", "url"),
    ("database", "password_file"),
    ("source", "mode"),
    ("source", "slot"),
    ("source", "publication"),
    ("source", "schema"),
    ("source", "outbox_max_size"),
    ("source", "outbox_poll"),
    ("source", "settle"),
    ("source", "settle_max"),
    ("source", "heartbeat"),
    ("source", "max_retained_wal"),
    ("source", "max_retained_wal_action"),
    ("state", "dir"),
    ("state", "retention"),
    ("state", "max_size"),
    ("webhooks", "format"),
    ("webhooks", "feature_metadata_events"),
    ("network", "allow"),
    ("network", "https_only"),
    ("network", "ca_file"),
    ("delivery", "timeout"),
    ("delivery", "connect_timeout"),
    ("delivery", "retry"),
    ("delivery", "max_age"),
    ("delivery", "max_in_flight"),
    ("delivery", "breaker_failures"),
    ("delivery", "breaker_after"),
    ("delivery", "breaker_probe"),
    ("delivery", "secret_rotation"),
    ("notify", "smtp"),
    ("notify", "smtp_password_file"),
    ("notify", "from"),
    ("notify", "to"),
    ("notify", "organisations"),
    ("notify", "webhook"),
    ("notify", "after"),
    ("ops", "listen"),
    ("ops", "page"),
    ("ops", "token_file"),
    ("ops", "hosts"),
    ("log", "format"),
    ("log", "level"),
    ("traces", "endpoint"),
];

/// Variables that begin with `FLAGPOST_` and are no keys of the configuration.
const OTHER_VARIABLES: &[&str] = &["FLAGPOST_CONFIG", "FLAGPOST_PG_BINDIR"];

/// What was written, in the file and the environment.
pub(super) struct Written {
    pub(super) raw: Raw,
    /// Variables that mean nothing.
    pub(super) unknown_variables: Vec<String>,
    pub(super) digests: Digests,
}

/// Reads `text`, lets the environment's variables win, and names the variables that mean nothing.
pub(super) fn parse(text: &str, path: &Path, environment: &BTreeMap<String, String>) -> Result<Written> {
    let wrong = |what: &str, error: &toml::de::Error| {
        // The message and the place only: the line itself may hold a password.
        let line = error.span().map(|span| text.get(..span.start).unwrap_or_default().lines().count().max(1));
        let place = line.map(|line| format!(" line {line}")).unwrap_or_default();
        let message = error.message().replace('\n', ", ");
        Error::config(format!("the configuration {}{place} {what}: {message}", path.display()))
    };
    let mut table: toml::Table = text.parse().map_err(|e| wrong("is no valid TOML", &e))?;
    // Once as it is in the file, so that an unknown key is told with its line.
    toml::from_str::<Raw>(text).map_err(|e| wrong("cannot be used", &e))?;
    let mut unknown: Vec<String> = environment
        .keys()
        .filter(|key| key.starts_with("FLAGPOST_") && !OTHER_VARIABLES.contains(&key.as_str()))
        .cloned()
        .collect();
    for (section, key) in KEYS {
        let variable = format!("FLAGPOST_{}_{}", section.to_uppercase(), key.to_uppercase());
        let Some(value) = environment.get(&variable) else { continue };
        unknown.retain(|name| *name != variable);
        let section = table.entry(*section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        if let Some(section) = section.as_table_mut() {
            section.insert((*key).to_owned(), toml::Value::String(value.clone()));
        }
    }
    let digests = digests(&table);
    let raw = Raw::deserialize(table).map_err(|e| {
        Error::config(format!(
            "an environment variable FLAGPOST_… cannot be used: {}",
            e.message().replace('\n', ", ")
        ))
    })?;
    Ok(Written { raw, unknown_variables: unknown, digests })
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOr<T> {
    Value(T),
    Text(String),
}

/// A list, or (in the environment) its items separated by commas.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(match TextOr::<Vec<String>>::deserialize(deserializer)? {
        TextOr::Value(items) => items,
        TextOr::Text(text) => {
            text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
        }
    })
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    match TextOr::<usize>::deserialize(deserializer)? {
        TextOr::Value(number) => Ok(Some(number)),
        TextOr::Text(text) => text
            .trim()
            .parse()
            .map(Some)
            .map_err(|_| serde::de::Error::custom(format!("{text:?} is no number"))),
    }
}

fn boolean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    match TextOr::<bool>::deserialize(deserializer)? {
        TextOr::Value(value) => Ok(Some(value)),
        TextOr::Text(text) => text
            .trim()
            .parse()
            .map(Some)
            .map_err(|_| serde::de::Error::custom(format!("{text:?} is neither true nor false"))),
    }
}
