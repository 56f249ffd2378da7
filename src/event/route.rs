//! Who gets an event: the endpoints that are enabled at its commit, each with its format.

use std::fmt;
use std::str::FromStr;

use super::{Event, Format, Payload};
use crate::change::Row;
use crate::mirror::Mirror;
use crate::schema::{Table, environment_webhook, organisation_webhook};

/// An endpoint: a row of one of Flagsmith's two webhook tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointKey {
    /// `environments_webhook.id`
    Environment(i64),
    /// `organisations_organisationwebhook.id`
    Organisation(i64),
}

impl EndpointKey {
    /// The table of the endpoint's row, and its id.
    pub fn row(self) -> (Table, i64) {
        match self {
            EndpointKey::Environment(id) => (Table::EnvironmentWebhook, id),
            EndpointKey::Organisation(id) => (Table::OrganisationWebhook, id),
        }
    }

    /// The endpoint of a row of a webhook table.
    pub fn of(table: Table, id: i64) -> Option<EndpointKey> {
        match table {
            Table::EnvironmentWebhook => Some(EndpointKey::Environment(id)),
            Table::OrganisationWebhook => Some(EndpointKey::Organisation(id)),
            _ => None,
        }
    }
}

impl fmt::Display for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndpointKey::Environment(id) => write!(f, "environment:{id}"),
            EndpointKey::Organisation(id) => write!(f, "organisation:{id}"),
        }
    }
}

impl FromStr for EndpointKey {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || format!("{s:?} is no endpoint: use environment:ID or organisation:ID");
        let (scope, id) = s.split_once(':').ok_or_else(bad)?;
        let id = id.parse().map_err(|_| bad())?;
        match scope {
            "environment" => Ok(EndpointKey::Environment(id)),
            "organisation" => Ok(EndpointKey::Organisation(id)),
            _ => Err(bad()),
        }
    }
}

/// Which format each endpoint gets.
#[derive(Debug, Clone)]
pub struct Formats {
    /// For every endpoint that is not named below.
    pub default: Format,
    /// By the endpoint's exact URL.
    pub by_url: Vec<(String, Format)>,
}

impl Formats {
    /// The format of the endpoint with this URL.
    pub fn of(&self, url: &str) -> Format {
        self.by_url.iter().find(|(known, _)| known == url).map_or(self.default, |(_, format)| *format)
    }
}

/// One delivery to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipient {
    /// To whom.
    pub endpoint: EndpointKey,
    /// Which body.
    pub format: Format,
}

/// The endpoints that get `event`, as they are at this point of the stream.
///
/// Flag events go to the environment's endpoints; in `current` to the organisation's as well, as Flagsmith does. Version
/// events go to the environment's endpoints and exist in `current` only: the documented bodies of 2020 know none. Audit events
/// go to the organisation's.
pub fn recipients(event: &Event, mirror: &Mirror, formats: &Formats) -> Vec<Recipient> {
    let is_flag = matches!(event.payload, Payload::Flag(_));
    let is_version = matches!(event.payload, Payload::Version(_));
    let mut all = Vec::new();
    if let Some(environment) = event.environment.filter(|_| is_flag || is_version) {
        for id in mirror.environment_endpoints(environment) {
            let row = mirror.row_by_id(Table::EnvironmentWebhook, id);
            if let Some(row) = row.filter(|row| row.flag(environment_webhook::ENABLED)) {
                let format = formats.of(url(row, environment_webhook::URL));
                if !is_version || format == Format::Current {
                    all.push(Recipient { endpoint: EndpointKey::Environment(id), format });
                }
            }
        }
    }
    if let Some(organisation) = event.organisation.filter(|_| !is_version) {
        for id in mirror.organisation_endpoints(organisation) {
            let row = mirror.row_by_id(Table::OrganisationWebhook, id);
            if let Some(row) = row.filter(|row| row.flag(organisation_webhook::ENABLED)) {
                let format = formats.of(url(row, organisation_webhook::URL));
                if !is_flag || format == Format::Current {
                    all.push(Recipient { endpoint: EndpointKey::Organisation(id), format });
                }
            }
        }
    }
    all
}

fn url(row: &Row, column: usize) -> &str {
    row.text(column).unwrap_or_default()
}
