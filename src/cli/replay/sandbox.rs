//! `flagpost replay --to`: events go to another place, from this process, through the same network guard.
//!
//! The place learns nothing that it could use against a real endpoint: no secret of one signs what goes there, and no header that
//! is configured for another URL goes along. Nothing is written to the ledger.

use std::path::Path;

use super::Selection;
use crate::cli::endpoint;
use crate::cli::printable::one_line;
use crate::config::Config;
use crate::delivery::{Client, redacted};
use crate::error::{Error, Result};
use crate::event::EndpointKey;
use crate::ledger::{Due, Endpoint, Reader, Recorded};

/// After so many failures without a success between them it is no use to go on.
const ENOUGH_FAILURES: u32 = 5;
/// No endpoint of anybody: what belongs to a real one must not be used.
const NOBODY: EndpointKey = EndpointKey::Environment(0);

/// Where to send, and how to sign.
pub(super) struct Place(Endpoint);

impl Place {
    /// A place at `url`, which gets signatures made with the secret in `secret_file`, or none.
    pub(super) fn new(url: &str, secret_file: Option<&Path>) -> Result<Place> {
        let secret = secret_file.map(read_secret).transpose()?.unwrap_or_default();
        let url = url::Url::parse(url)
            .map_err(|e| Error::config(format!("--to is no URL ({e}): write it as https://host/path")))?;
        Ok(Place(Endpoint { url: url.into(), secret, old_secrets: Vec::new(), enabled: true }))
    }
}

fn read_secret(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::config(format!("the secret in {} cannot be read: {e}: correct --secret-file", path.display()))
    })?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(Error::config(format!("{} is empty: put the secret into it", path.display())));
    }
    Ok(secret.to_owned())
}

/// Sends the events that were asked for, each body once, oldest first. Returns the exit code.
pub(super) async fn send(
    config: &Config,
    reader: &Reader,
    selection: &Selection,
    place: &Place,
    dry_run: bool,
) -> Result<u8> {
    let events = match &selection.events {
        Some(events) => events.clone(),
        None => reader.search(&selection.filter, 0, usize::MAX)?,
    };
    let shown = redacted(&place.0.url);
    let signed =
        if place.0.secret.is_empty() { "unsigned" } else { "signed with the secret of --secret-file" };
    let mut sender =
        Sender { client: endpoint::client(config)?, place, sent: 0, failed: 0, failed_in_a_row: 0 };
    let mut count = 0;
    for seq in events {
        let Some(event) = reader.recorded(seq)? else { continue };
        for body in bodies(reader, selection, seq)? {
            count += 1;
            if !dry_run && !sender.one(&event, body).await {
                return Err(Error::internal(format!(
                    "{ENOUGH_FAILURES} failures one after the other: stopped after {} of the events were sent to {shown}; mend it \
                     and begin again from event {}",
                    sender.sent, event.id
                )));
            }
        }
    }
    if dry_run {
        say!("{count} would be sent to {shown}, {signed}");
        return Ok(0);
    }
    say!("{} sent to {shown}, {signed}; {} failed", sender.sent, sender.failed);
    Ok(u8::from(sender.failed > 0))
}

/// The bodies of an event that were for the endpoints asked for, each format once. Of one that was for nobody: the body on
/// record.
fn bodies(reader: &Reader, selection: &Selection, seq: i64) -> Result<Vec<String>> {
    let filter = &selection.filter;
    let deliveries = reader.deliveries(seq)?;
    let formats: Vec<&str> = deliveries
        .iter()
        .filter(|delivery| filter.endpoint.is_none_or(|endpoint| endpoint == delivery.endpoint))
        .filter(|delivery| filter.state.is_none_or(|state| state == delivery.state))
        .map(|delivery| delivery.format.as_str())
        .collect();
    let was_for_nobody = deliveries.is_empty() && filter.endpoint.is_none() && filter.state.is_none();
    let bodies = reader.bodies(seq)?;
    let wanted =
        bodies.into_iter().filter(|(format, _)| was_for_nobody || formats.contains(&format.as_str()));
    Ok(wanted.map(|(_, body)| body).collect())
}

struct Sender<'a> {
    client: Client,
    place: &'a Place,
    sent: u64,
    failed: u64,
    failed_in_a_row: u32,
}

impl Sender<'_> {
    /// Sends one body. False when it is no use to go on.
    async fn one(&mut self, event: &Recorded, body: String) -> bool {
        let answer = self.client.send(&self.place.0, due(event, body)).await;
        let Some(error) = answer.error else {
            self.sent += 1;
            self.failed_in_a_row = 0;
            return true;
        };
        say!("failed: {}  {}", event.id, one_line(&error));
        self.failed += 1;
        self.failed_in_a_row += 1;
        self.failed_in_a_row < ENOUGH_FAILURES
    }
}

fn due(event: &Recorded, body: String) -> Due {
    Due {
        environment: None,
        endpoint: NOBODY,
        event: event.seq,
        event_id: event.id.clone(),
        action: event.action.clone(),
        feature: event.feature.clone(),
        sequence: event.sequence,
        change_request: event.change_request.clone(),
        lane: String::new(),
        body,
        attempts: 0,
        attempts_before: 0,
        reconstructed: event.reconstructed,
        replay: true,
        queued_at: event.recorded_at,
        commit_time: event.commit_time,
        recorded_at: event.recorded_at,
    }
}
