//! The event of `flagpost test`: made up, in the form of a real one, and plainly none. Its ids are 0, which no row of Flagsmith's
//! has, its names say what it is, and its id is new each time.

use super::{
    Action, AuditPayload, Author, Commit, EndpointKey, Event, EventId, FlagPayload, Kind, Payload, Scope,
    Verb,
};
use crate::change::{Field, Lsn, Micros, Row};
use crate::mirror::StateView;
use crate::schema::{Table, audit_log, environment, feature, feature_state, project, state_value, user};

/// The feature's name, and the log of an audit event: whoever receives it knows that it is no change.
const FEATURE: &str = "flagpost_test";
const LOG: &str = "This is a test of flagpost: nothing was changed";

/// What an endpoint of this kind gets: a flag event, or an audit event if it is an organisation's.
pub fn sample(endpoint: EndpointKey, at: Micros) -> Event {
    let commit = Commit { end_lsn: Lsn(0), xid: 0, time: at };
    let time = jiff::Timestamp::from_microsecond(at.0).unwrap_or_default().to_string();
    let event = |kind: Kind, action: Action, payload: Payload| Event {
        id: EventId::new("flagpost test", kind, &endpoint.to_string(), &at.0.to_string()),
        kind,
        action,
        organisation: Some(0),
        project: Some(0),
        environment: Some(0),
        feature: matches!(payload, Payload::Flag(_)).then_some(0),
        feature_name: matches!(payload, Payload::Flag(_)).then(|| FEATURE.to_owned()),
        change_request: None,
        commit,
        reconstructed: false,
        payload,
    };
    match endpoint {
        EndpointKey::Organisation(_) => event(
            Kind::AuditLogCreated,
            Action { verb: Verb::Created, scope: None },
            Payload::Audit(Box::new(audit(&time))),
        ),
        EndpointKey::Environment(_) | EndpointKey::Configured(_) => event(
            Kind::FlagUpdated,
            Action { verb: Verb::Updated, scope: Some(Scope::Default) },
            Payload::Flag(Box::new(FlagPayload {
                new: Some(state(&time, true)),
                previous: Some(state(&time, false)),
                author: Author::User(author()),
                at,
            })),
        ),
    }
}

fn state(time: &str, enabled: bool) -> StateView {
    StateView {
        state: row(
            Table::FeatureState,
            &[
                (feature_state::ID, "0"),
                (feature_state::ENABLED, if enabled { "t" } else { "f" }),
                (feature_state::ENVIRONMENT_ID, "0"),
                (feature_state::FEATURE_ID, "0"),
            ],
        ),
        value: Some(row(
            Table::StateValue,
            &[(state_value::TYPE, "unicode"), (state_value::STRING_VALUE, "a test of flagpost")],
        )),
        feature: row(
            Table::Feature,
            &[
                (feature::ID, "0"),
                (feature::NAME, FEATURE),
                (feature::CREATED_DATE, time),
                (feature::DEFAULT_ENABLED, "f"),
                (feature::DESCRIPTION, LOG),
                (feature::PROJECT_ID, "0"),
                (feature::TYPE, "STANDARD"),
            ],
        ),
        project: test_project(),
        environment: test_environment(),
        identity: None,
        feature_segment: None,
        segment: None,
        version: None,
        variants: Vec::new(),
    }
}

fn audit(time: &str) -> AuditPayload {
    AuditPayload {
        audit: row(
            Table::AuditLog,
            &[
                (audit_log::ID, "0"),
                (audit_log::CREATED_DATE, time),
                (audit_log::LOG, LOG),
                (audit_log::RELATED_OBJECT_ID, "0"),
                (audit_log::RELATED_OBJECT_TYPE, "FEATURE"),
                (audit_log::IS_SYSTEM_EVENT, "f"),
            ],
        ),
        author: Some(author()),
        project: Some(test_project()),
        environment: Some(test_environment()),
    }
}

fn author() -> Row {
    row(
        Table::User,
        &[
            (user::ID, "0"),
            (user::EMAIL, "flagpost@example.com"),
            (user::FIRST_NAME, "flagpost"),
            (user::LAST_NAME, "test"),
        ],
    )
}

fn test_project() -> Row {
    row(
        Table::Project,
        &[(project::ID, "0"), (project::NAME, "flagpost test"), (project::ORGANISATION_ID, "0")],
    )
}

fn test_environment() -> Row {
    row(
        Table::Environment,
        &[(environment::ID, "0"), (environment::NAME, "flagpost test"), (environment::PROJECT_ID, "0")],
    )
}

/// A row of a table with these columns, NULL in the others.
fn row(table: Table, columns: &[(usize, &str)]) -> Row {
    let fields: Vec<Field<'_>> = (0..table.columns().len())
        .map(|index| {
            let given = columns.iter().find(|(column, _)| *column == index);
            given.map_or(Field::Null, |(_, text)| Field::Text(text))
        })
        .collect();
    Row::pack(&fields)
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;
    use crate::event::Format;

    #[test]
    fn it_has_the_form_of_a_real_one_in_every_format_and_says_that_it_is_a_test() {
        let at = Micros(1_795_478_400_123_456);
        let body = |key: EndpointKey, format: Format| -> Json {
            serde_json::from_str(&format.body(&sample(key, at))).unwrap()
        };
        let (environment, organisation) = (EndpointKey::Environment(1), EndpointKey::Organisation(1));
        let classic = body(environment, Format::Classic);
        assert_eq!(classic["event_type"], "FLAG_UPDATED");
        assert_eq!(classic["data"]["new_state"]["feature"]["name"], FEATURE);
        assert_eq!(classic["data"]["new_state"]["environment"], 0);
        assert_eq!(classic["data"]["timestamp"], "2026-11-24T00:00:00.123Z");
        let current = body(environment, Format::Current);
        assert_eq!(current["data"]["previous_state"]["environment"]["name"], "flagpost test");
        assert_eq!(current["data"]["new_state"]["feature"]["created_date"], "2026-11-24T00:00:00.123456Z");
        assert_eq!(body(organisation, Format::Classic)["log"], LOG);
        assert_eq!(body(organisation, Format::Current)["data"]["log"], LOG);
    }

    #[test]
    fn every_test_is_an_event_of_its_own() {
        let id = |at| sample(EndpointKey::Environment(1), Micros(at)).id;
        assert_ne!(id(1), id(2));
    }
}
