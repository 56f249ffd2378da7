//! An endpoint as it is typed: by its key, or by its exact URL.

use crate::config::Config;
use crate::delivery::Client;
use crate::error::{Error, Kind, Result};
use crate::event::{EndpointKey, Format};
use crate::ledger::{Endpoint, Ledger, Reader};

/// The ledger of this configuration, which must be there.
pub(super) fn reader(config: &Config) -> Result<Reader> {
    if Ledger::exists(&config.state_dir) {
        return Reader::open(&config.state_dir);
    }
    Err(Error::new(
        Kind::LedgerIo,
        format!(
            "there is no ledger in {}: \"flagpost run\" makes it; if it runs elsewhere, correct state.dir (FLAGPOST_STATE_DIR)",
            config.state_dir.display()
        ),
    ))
}

/// Who sends what a command sends: as the daemon does, through the network guard.
pub(super) fn client(config: &Config) -> Result<Client> {
    Client::new(config.client_settings())
}

/// All endpoints: the database's and the configuration's.
pub(super) fn all(config: &Config, reader: &Reader) -> Result<Vec<(EndpointKey, Endpoint)>> {
    let configured = config.targets.configured().iter();
    let configured = configured.map(|c| (EndpointKey::Configured(c.name), c.endpoint.clone()));
    Ok(reader.endpoints()?.into_iter().chain(configured).collect())
}

/// URL and secret of an endpoint; `None` when it is no more.
pub(super) fn find(config: &Config, reader: &Reader, key: EndpointKey) -> Result<Option<Endpoint>> {
    match config.targets.endpoint(key) {
        None => reader.endpoint(key),
        configured => Ok(configured),
    }
}

/// Which body the endpoint gets.
pub(super) fn format(config: &Config, key: EndpointKey, endpoint: &Endpoint) -> Format {
    let subscription = match key {
        EndpointKey::Configured(name) => config.subscriptions.iter().find(|s| s.name == name),
        EndpointKey::Environment(_) | EndpointKey::Organisation(_) => None,
    };
    subscription.map_or_else(|| config.formats.of(&endpoint.url), |subscription| subscription.format)
}

/// The endpoint that was typed, with its URL: it must be there now.
pub(super) fn existing(config: &Config, reader: &Reader, text: &str) -> Result<(EndpointKey, Endpoint)> {
    let key = key(config, reader, text)?;
    let endpoint = find(config, reader, key)?.ok_or_else(|| unknown(key))?;
    Ok((key, endpoint))
}

/// The endpoint that was typed: it must be there, or have been there when something was sent to it.
pub(super) fn on_record(config: &Config, reader: &Reader, text: &str) -> Result<EndpointKey> {
    let key = key(config, reader, text)?;
    if find(config, reader, key)?.is_some() || reader.endpoints_with_deliveries()?.contains(&key) {
        return Ok(key);
    }
    Err(unknown(key))
}

fn unknown(key: EndpointKey) -> Error {
    Error::config(format!("there is no endpoint {key}: \"flagpost status\" lists them"))
}

fn key(config: &Config, reader: &Reader, text: &str) -> Result<EndpointKey> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let all = all(config, reader)?;
    let mut with_url = all.iter().filter(|(_, endpoint)| endpoint.url == text).map(|(key, _)| *key);
    match (with_url.next(), with_url.next()) {
        (Some(key), None) => Ok(key),
        (Some(first), Some(second)) => Err(Error::config(format!(
            "this is the URL of {first} and of {second}: give one of these names instead"
        ))),
        // What was typed is not repeated: a URL can hold credentials.
        (None, _) => Err(Error::config(
            "there is no such endpoint: give environment:ID, organisation:ID, configured:NAME or an exact URL; \
             \"flagpost status\" lists them",
        )),
    }
}
