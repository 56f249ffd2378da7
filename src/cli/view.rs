//! Events and deliveries as `log` and `show` print them, for people and as JSON. Names of JSON fields are stable: tools rely on
//! them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::moment;
use super::printable::one_line;
use crate::error::Result;
use crate::ledger::{Delivery, DeliveryState, Reader, Recorded};
use crate::schema::{Table, environment};

/// So much of an id is shown in a list: enough to tell events apart, and to ask for one.
const SHORT_ID: usize = 8;

/// An event with its deliveries.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct EventView {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) action: String,
    pub(super) feature: Option<String>,
    pub(super) feature_id: Option<i64>,
    pub(super) environment: Option<String>,
    pub(super) environment_id: Option<i64>,
    pub(super) project_id: Option<i64>,
    pub(super) organisation_id: Option<i64>,
    pub(super) sequence: i64,
    pub(super) change_request: Option<ChangeRequestView>,
    pub(super) lsn: String,
    pub(super) xid: i64,
    pub(super) commit_time: String,
    pub(super) recorded_at: String,
    pub(super) reconstructed: bool,
    pub(super) deliveries: Vec<DeliveryView>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct ChangeRequestView {
    pub(super) id: i64,
    pub(super) title: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct DeliveryView {
    pub(super) endpoint: String,
    pub(super) status: &'static str,
    pub(super) format: String,
    pub(super) attempts: u32,
    pub(super) replay: bool,
    /// Of one that is pending.
    pub(super) next_attempt: Option<String>,
    #[serde(skip)]
    pub(super) state: DeliveryState,
}

/// The names of environments, as the mirror has them.
#[derive(Default)]
pub(super) struct Names(BTreeMap<i64, String>);

impl Names {
    /// The name of an environment; `None` for one that was deleted. Reads the ledger again for one that is new.
    pub(super) fn environment(&mut self, reader: &Reader, id: i64) -> Result<Option<&str>> {
        if !self.0.contains_key(&id) {
            self.0 = reader.names(Table::Environment, environment::NAME)?;
            // One that is not there is not looked for again.
            self.0.entry(id).or_default();
        }
        Ok(self.0.get(&id).map(String::as_str).filter(|name| !name.is_empty()))
    }
}

impl EventView {
    pub(super) fn new(
        reader: &Reader,
        names: &mut Names,
        event: Recorded,
        deliveries: &[Delivery],
    ) -> Result<EventView> {
        let environment = match event.environment {
            Some(id) => names.environment(reader, id)?.map(str::to_owned),
            None => None,
        };
        Ok(EventView {
            id: event.id,
            kind: event.kind,
            action: event.action,
            feature: event.feature,
            feature_id: event.feature_id,
            environment,
            environment_id: event.environment,
            project_id: event.project,
            organisation_id: event.organisation,
            sequence: event.sequence,
            change_request: event.change_request.map(|(id, title)| ChangeRequestView { id, title }),
            lsn: event.lsn.to_string(),
            xid: event.xid,
            commit_time: moment::exact(event.commit_time),
            recorded_at: moment::exact(event.recorded_at),
            reconstructed: event.reconstructed,
            deliveries: deliveries.iter().map(delivery).collect(),
        })
    }

    pub(super) fn short_id(&self) -> &str {
        self.id.get(..SHORT_ID).unwrap_or(&self.id)
    }

    /// `Development/dark_mode`
    pub(super) fn subject(&self) -> String {
        let number = |id: Option<i64>| id.map(|id| format!("#{id}"));
        let environment = self.environment.clone().or_else(|| number(self.environment_id));
        let feature = self.feature.clone().or_else(|| number(self.feature_id));
        let parts: Vec<String> = environment.into_iter().chain(feature).collect();
        one_line(&parts.join("/"))
    }

    /// `updated`, `updated segment`, `updated (reconstructed)`
    pub(super) fn happened(&self) -> String {
        let mark = if self.reconstructed { " (reconstructed)" } else { "" };
        format!("{}{mark}", spoken(&self.action))
    }

    /// `2 delivered, dead organisation:2`
    pub(super) fn fate(&self) -> String {
        let of = |state: DeliveryState| -> Option<String> {
            let some: Vec<&DeliveryView> = self.deliveries.iter().filter(|d| d.state == state).collect();
            match some.as_slice() {
                [] => None,
                [one] => Some(format!("{} {}", state.name(), one.endpoint)),
                more => Some(format!("{} {}", more.len(), state.name())),
            }
        };
        let parts: Vec<String> = DeliveryState::ALL.into_iter().filter_map(of).collect();
        if parts.is_empty() { "for nobody".into() } else { parts.join(", ") }
    }
}

/// An action for people: `updated`, `updated segment`.
pub(super) fn spoken(action: &str) -> String {
    action.replace(";scope=default", "").replace(";scope=", " ")
}

fn delivery(delivery: &Delivery) -> DeliveryView {
    let is_pending = matches!(delivery.state, DeliveryState::Pending | DeliveryState::Retrying);
    DeliveryView {
        endpoint: delivery.endpoint.to_string(),
        status: delivery.state.name(),
        format: delivery.format.clone(),
        attempts: delivery.attempts,
        replay: delivery.replay,
        next_attempt: is_pending.then(|| moment::exact(delivery.next_at)),
        state: delivery.state,
    }
}
