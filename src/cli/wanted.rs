//! Which events a command is about, as it is typed.

use clap::Args;

use super::{endpoint, moment};
use crate::change::Micros;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::event::Kind;
use crate::ledger::{Filter, Reader, Recorded};
use crate::schema::{Table, environment, organisation};

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Wanted {
    /// For this endpoint: environment:ID, organisation:ID, configured:NAME or its exact URL
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Option<String>,
    /// Of this organisation: its id or its exact name
    #[arg(long, value_name = "ID|NAME")]
    organisation: Option<String>,
    /// Of this environment: its id or its exact name
    #[arg(long, value_name = "ID|NAME")]
    environment: Option<String>,
    /// Of this feature: its id or its exact name
    #[arg(long, value_name = "ID|NAME")]
    feature: Option<String>,
    /// Of this kind: FLAG_UPDATED, FLAG_DELETED, NEW_VERSION_PUBLISHED or AUDIT_LOG_CREATED
    #[arg(long, value_parser = kind)]
    kind: Option<Kind>,
    /// Committed since then: 2026-11-24T10:00:00Z, or how long ago: 2h
    #[arg(long, value_name = "TIME", value_parser = moment::parse)]
    since: Option<Micros>,
    /// Committed before then
    #[arg(long, value_name = "TIME", value_parser = moment::parse)]
    until: Option<Micros>,
}

/// The arguments of [`Wanted`] that make no sense beside an event's id.
pub(super) const BESIDE_IDS: [&str; 6] = ["organisation", "environment", "feature", "kind", "since", "until"];

impl Wanted {
    /// Whether nothing was asked for in particular.
    pub(super) fn is_everything(&self) -> bool {
        let Wanted { endpoint, organisation, environment, feature, kind, since, until } = self;
        let has_text = [endpoint, organisation, environment, feature].iter().any(|text| text.is_some());
        !has_text && kind.is_none() && since.is_none() && until.is_none()
    }

    /// What was asked for elsewhere in the same words.
    pub(super) fn asked(
        endpoint: Option<String>,
        environment: Option<String>,
        feature: Option<String>,
        kind_text: Option<String>,
    ) -> Result<Wanted> {
        let kind = kind_text.map(|text| kind(&text)).transpose().map_err(Error::config)?;
        Ok(Wanted { endpoint, organisation: None, environment, feature, kind, since: None, until: None })
    }

    /// What it means in this ledger. `Err` for what is not in it: a misspelt name must not look like silence.
    pub(super) fn filter(&self, config: &Config, reader: &Reader) -> Result<Filter> {
        Ok(Filter {
            endpoint: self
                .endpoint
                .as_deref()
                .map(|text| endpoint::on_record(config, reader, text))
                .transpose()?,
            state: None,
            organisations: ids(reader, "organisation", self.organisation.as_deref())?,
            environments: ids(reader, "environment", self.environment.as_deref())?,
            feature: self.feature.clone(),
            kind: self.kind.map(Kind::name),
            since: self.since,
            until: self.until,
            before: None,
        })
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    let known = Kind::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(text));
    known.ok_or_else(|| format!("use one of {}", Kind::ALL.map(Kind::name).join(", ")))
}

/// The ids that a name means; a number means the row with this id too.
fn ids(reader: &Reader, what: &str, text: Option<&str>) -> Result<Option<Vec<i64>>> {
    let Some(text) = text else { return Ok(None) };
    let names = match what {
        "organisation" => reader.names(Table::Organisation, organisation::NAME)?,
        _ => reader.names(Table::Environment, environment::NAME)?,
    };
    let mut ids: Vec<i64> = names.iter().filter(|(_, name)| *name == text).map(|(id, _)| *id).collect();
    // One that was deleted has no name here any more, and events all the same.
    ids.extend(text.parse::<i64>());
    if ids.is_empty() {
        return Err(Error::config(format!(
            "there is no {what} {text:?} in the ledger: give its exact name, or its id if it was deleted"
        )));
    }
    Ok(Some(ids))
}

/// The one event whose id begins so.
pub(super) fn event(reader: &Reader, prefix: &str) -> Result<Recorded> {
    let text = prefix.to_ascii_lowercase();
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return Err(Error::config(format!(
            "{prefix:?} is no event id: \"flagpost log\" shows them, receivers get them as X-Flagpost-Event-Id"
        )));
    }
    let mut found = reader.by_id(&text, 2)?.into_iter();
    match (found.next(), found.next()) {
        (Some(event), None) => Ok(event),
        (Some(first), Some(second)) => Err(Error::config(format!(
            "more than one event begins with {text}, {} and {} among them: give more of the id",
            first.id, second.id
        ))),
        (None, _) => Err(Error::config(format!(
            "no event begins with {text}: \"flagpost log\" shows what is on record (older ones are forgotten, see state.retention)"
        ))),
    }
}
