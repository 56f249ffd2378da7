//! Who gets an event: the endpoints that are enabled at its commit, each with its format.

use std::fmt;
use std::str::FromStr;

use super::{Event, Format, Kind, Payload};
use crate::change::Row;
use crate::mirror::Mirror;
use crate::schema::{
    Table, environment, environment_webhook, organisation, organisation_webhook, project, tag,
};

/// The name of an endpoint of the configuration: 1 to 32 lower-case letters, digits, underscores and hyphens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointName([u8; 32]);

impl EndpointName {
    /// The name.
    pub fn as_str(&self) -> &str {
        // The rest is NUL, which no name has.
        std::str::from_utf8(&self.0).unwrap_or_default().trim_end_matches('\0')
    }
}

impl FromStr for EndpointName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let is_good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        let mut name = [0; 32];
        match name.get_mut(..s.len()) {
            Some(place) if !s.is_empty() && s.bytes().all(is_good) => place.copy_from_slice(s.as_bytes()),
            _ => {
                return Err(format!(
                    "{s:?} is no name of an endpoint: use 1 to 32 lower-case letters, digits, \"_\" and \"-\""
                ));
            }
        }
        Ok(EndpointName(name))
    }
}

impl fmt::Display for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// An endpoint: a row of one of Flagsmith's two webhook tables, or one of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointKey {
    /// `environments_webhook.id`
    Environment(i64),
    /// `organisations_organisationwebhook.id`
    Organisation(i64),
    /// `[[webhooks.endpoint]]` with this name.
    Configured(EndpointName),
}

impl EndpointKey {
    /// The table of the endpoint's row, and its id; `None` for one of the configuration.
    pub fn row(self) -> Option<(Table, i64)> {
        match self {
            EndpointKey::Environment(id) => Some((Table::EnvironmentWebhook, id)),
            EndpointKey::Organisation(id) => Some((Table::OrganisationWebhook, id)),
            EndpointKey::Configured(_) => None,
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
            EndpointKey::Configured(name) => write!(f, "configured:{name}"),
        }
    }
}

impl FromStr for EndpointKey {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || format!("{s:?} is no endpoint: use environment:ID, organisation:ID or configured:NAME");
        let (scope, rest) = s.split_once(':').ok_or_else(bad)?;
        let id = || rest.parse().map_err(|_| bad());
        match scope {
            "environment" => Ok(EndpointKey::Environment(id()?)),
            "organisation" => Ok(EndpointKey::Organisation(id()?)),
            "configured" => Ok(EndpointKey::Configured(rest.parse().map_err(|_| bad())?)),
            _ => Err(bad()),
        }
    }
}

/// Which format each endpoint gets.
#[derive(Clone)]
pub struct Formats {
    /// For every endpoint that is not named below.
    pub default: Format,
    /// By the endpoint's exact URL.
    pub by_url: Vec<(String, Format)>,
}

impl fmt::Debug for Formats {
    /// Without the URLs, which can carry credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by_url: Vec<Format> = self.by_url.iter().map(|(_, format)| *format).collect();
        f.debug_struct("Formats").field("default", &self.default).field("by_url", &by_url).finish()
    }
}

impl Formats {
    /// The format of the endpoint with this URL.
    pub fn of(&self, url: &str) -> Format {
        self.by_url.iter().find(|(known, _)| known == url).map_or(self.default, |(_, format)| *format)
    }
}

/// One of the things that an endpoint of the configuration wants to hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// By its id.
    Id(i64),
    /// By its exact name.
    Name(String),
}

/// What an endpoint of the configuration gets. An empty list asks for nothing in particular: all pass.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// The endpoint's name.
    pub name: EndpointName,
    /// Which body it gets.
    pub format: Format,
    /// Kinds of events; where there are none, all that the format has.
    pub kinds: Vec<Kind>,
    /// Rows of `organisations_organisation`.
    pub organisations: Vec<Wanted>,
    /// Rows of `projects_project`.
    pub projects: Vec<Wanted>,
    /// Rows of `environments_environment`.
    pub environments: Vec<Wanted>,
    /// Rows of `features_feature`. An audit event is about none.
    pub features: Vec<Wanted>,
    /// Rows of `tags_tag`: the event's feature has one of them when the event is told.
    pub tags: Vec<Wanted>,
}

impl Subscription {
    /// Whether `event` is for this endpoint. What a list asks for and an event does not have, does not pass: an audit event of
    /// an organisation is of no project.
    fn wants(&self, event: &Event, mirror: &Mirror) -> bool {
        self.wants_kind(event.kind)
            && [
                (&self.organisations, Table::Organisation, organisation::NAME, event.organisation),
                (&self.projects, Table::Project, project::NAME, event.project),
                (&self.environments, Table::Environment, environment::NAME, event.environment),
            ]
            .into_iter()
            .all(|(wanted, table, column, id)| {
                let name = id.and_then(|id| mirror.row_by_id(table, id)?.text(column));
                is_among(wanted, id, name)
            })
            && is_among(&self.features, event.feature, event.feature_name.as_deref())
            && self.wants_tags_of(event.feature, mirror)
    }

    /// Whether what is sent depends on the features' tags.
    pub fn asks_for_tags(&self) -> bool {
        !self.tags.is_empty()
    }

    fn wants_tags_of(&self, feature: Option<i64>, mirror: &Mirror) -> bool {
        let is_wanted = |tag: i64| {
            let label = mirror.row_by_id(Table::Tag, tag).and_then(|row| row.text(tag::LABEL));
            is_among(&self.tags, Some(tag), label)
        };
        !self.asks_for_tags() || feature.is_some_and(|feature| mirror.tags_of(feature).any(is_wanted))
    }

    fn wants_kind(&self, kind: Kind) -> bool {
        if self.kinds.is_empty() { self.format.has(kind) } else { self.kinds.contains(&kind) }
    }
}

fn is_among(wanted: &[Wanted], id: Option<i64>, name: Option<&str>) -> bool {
    let is_it = |wanted: &Wanted| match wanted {
        Wanted::Id(wanted) => id == Some(*wanted),
        Wanted::Name(wanted) => name == Some(wanted),
    };
    wanted.is_empty() || wanted.iter().any(is_it)
}

/// Who gets what: the database's endpoints in their formats, and the configuration's.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Of the database's endpoints.
    pub formats: Formats,
    /// The configuration's endpoints.
    pub subscriptions: Vec<Subscription>,
}

impl From<Formats> for Routing {
    /// Without endpoints of the configuration.
    fn from(formats: Formats) -> Routing {
        Routing { formats, subscriptions: Vec::new() }
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
///
/// The configuration's endpoints get what they subscribe to, whatever the database's do.
pub fn recipients(event: &Event, mirror: &Mirror, routing: &Routing) -> Vec<Recipient> {
    let formats = &routing.formats;
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
    let subscribed = routing.subscriptions.iter().filter(|subscription| subscription.wants(event, mirror));
    all.extend(subscribed.map(|subscription| Recipient {
        endpoint: EndpointKey::Configured(subscription.name),
        format: subscription.format,
    }));
    all
}

fn url(row: &Row, column: usize) -> &str {
    row.text(column).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Field, Key, Op, RowChange};

    #[test]
    fn keys_are_read_as_they_are_written() {
        for text in ["environment:7", "organisation:10", "configured:a", "configured:audit-log_2"] {
            assert_eq!(text.parse::<EndpointKey>().unwrap().to_string(), text);
        }
        let longest = format!("configured:{}", "x".repeat(32));
        assert_eq!(longest.parse::<EndpointKey>().unwrap().to_string(), longest);
        let too_long = format!("configured:{}", "x".repeat(33));
        for bad in [
            "configured:",
            "configured:A",
            "configured:é",
            "configured:a b",
            &too_long,
            "other:1",
            "environment:x",
            "x",
        ] {
            assert!(bad.parse::<EndpointKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_lets_through_what_it_names_and_an_empty_one_everything() {
        let wanted = [Wanted::Id(7), Wanted::Name("dark_mode".into())];
        assert!(is_among(&wanted, Some(7), Some("other")));
        assert!(is_among(&wanted, Some(8), Some("dark_mode")));
        assert!(!is_among(&wanted, Some(8), Some("Dark_mode")));
        assert!(!is_among(&wanted, None, None));
        assert!(is_among(&[], None, None));
    }

    fn row(fields: &[&str]) -> Row {
        Row::pack(&fields.iter().map(|text| Field::Text(text)).collect::<Vec<_>>())
    }

    fn apply(mirror: &mut Mirror, table: Table, op: Op) {
        mirror.apply(RowChange { table, op }, &mut |_| {});
    }

    fn tagged(tags: &[Wanted]) -> Subscription {
        Subscription {
            name: "tagged".parse().unwrap(),
            format: Format::Current,
            kinds: Vec::new(),
            organisations: Vec::new(),
            projects: Vec::new(),
            environments: Vec::new(),
            features: Vec::new(),
            tags: tags.to_vec(),
        }
    }

    #[test]
    fn tags_are_those_that_the_feature_has_in_the_mirror() {
        let billing = tagged(&[Wanted::Name("billing".into())]);
        let fifth = tagged(&[Wanted::Name("other".into()), Wanted::Id(5)]);
        let mut mirror = Mirror::default();
        let wanted = |mirror: &Mirror| [&billing, &fifth].map(|s| s.wants_tags_of(Some(1), mirror));
        mirror.load(Table::Tag, row(&["4", "billing"]));
        mirror.load(Table::Tag, row(&["5", "growth"]));
        mirror.load(Table::FeatureTag, row(&["70", "2", "4"]));
        assert_eq!(wanted(&mirror), [false, false], "another feature has it");
        apply(&mut mirror, Table::FeatureTag, Op::Insert { new: row(&["71", "1", "4"]) });
        apply(&mut mirror, Table::FeatureTag, Op::Insert { new: row(&["72", "1", "5"]) });
        assert_eq!(wanted(&mirror), [true, true]);
        apply(&mut mirror, Table::Tag, Op::Update { old_key: None, new: row(&["4", "Billing"]) });
        assert_eq!(wanted(&mirror), [false, true], "labels are exact");
        // Moved to another feature, by hand.
        apply(&mut mirror, Table::FeatureTag, Op::Update { old_key: None, new: row(&["72", "3", "5"]) });
        assert_eq!(wanted(&mirror), [false, false]);
        assert!(fifth.wants_tags_of(Some(3), &mirror));
        apply(&mut mirror, Table::FeatureTag, Op::Delete { key: Key::Int(72) });
        assert!(!fifth.wants_tags_of(Some(3), &mirror));
    }

    #[test]
    fn a_tag_whose_row_is_not_there_is_known_by_its_id_only() {
        let mut mirror = Mirror::default();
        mirror.load(Table::FeatureTag, row(&["70", "1", "4"]));
        assert!(tagged(&[Wanted::Id(4)]).wants_tags_of(Some(1), &mirror));
        assert!(!tagged(&[Wanted::Name(String::new())]).wants_tags_of(Some(1), &mirror));
    }

    #[test]
    fn what_is_about_no_feature_has_no_tag() {
        let mirror = Mirror::default();
        assert!(!tagged(&[Wanted::Id(4)]).wants_tags_of(None, &mirror));
        assert!(tagged(&[]).wants_tags_of(None, &mirror));
    }
}
