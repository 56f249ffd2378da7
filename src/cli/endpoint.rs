//! An endpoint as it is typed: by its key, or by its exact URL.

use crate::config::Config;
use crate::delivery::{Client, Guard};
use crate::error::{Error, Kind, Result};
use crate::event::EndpointKey;
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
    Client::new(Guard::new(config.allow.clone()), config.timeouts)
}

/// The endpoint that was typed, with its URL: it must be there now.
pub(super) fn existing(reader: &Reader, text: &str) -> Result<(EndpointKey, Endpoint)> {
    let key = key(reader, text)?;
    let endpoint = reader.endpoint(key)?.ok_or_else(|| unknown(key))?;
    Ok((key, endpoint))
}

/// The endpoint that was typed: it must be there, or have been there when something was sent to it.
pub(super) fn on_record(reader: &Reader, text: &str) -> Result<EndpointKey> {
    let key = key(reader, text)?;
    if reader.endpoint(key)?.is_some() || reader.endpoints_with_deliveries()?.contains(&key) {
        return Ok(key);
    }
    Err(unknown(key))
}

fn unknown(key: EndpointKey) -> Error {
    Error::config(format!("there is no endpoint {key}: \"flagpost status\" lists them"))
}

fn key(reader: &Reader, text: &str) -> Result<EndpointKey> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let all = reader.endpoints()?;
    let mut with_url = all.iter().filter(|(_, endpoint)| endpoint.url == text).map(|(key, _)| *key);
    match (with_url.next(), with_url.next()) {
        (Some(key), None) => Ok(key),
        (Some(first), Some(second)) => Err(Error::config(format!(
            "this is the URL of {first} and of {second}: give one of these names instead"
        ))),
        // What was typed is not repeated: a URL can hold credentials.
        (None, _) => Err(Error::config(
            "there is no such endpoint: give environment:ID, organisation:ID or an exact URL; \"flagpost status\" lists them",
        )),
    }
}
