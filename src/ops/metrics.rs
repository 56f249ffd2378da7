//! Metrics for Prometheus, in OpenMetrics text: what the ledger and the server say at the moment of the scrape, what the facts have
//! counted since the start ([`meters`]), and the process.
//!
//! What tells how things stand is read where it is durable, so it is right after a restart, and also while the daemon waits for
//! room on its disk. URLs and secrets are in no label.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::process;
use crate::error::{Error, Result};
use crate::event::EndpointKey;
use crate::fact::meters;
use crate::ledger::{Counts, LaneState};
use crate::source::{OutboxFacts, SlotFacts};

/// The content type of what [`render`] gives.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the server says of the source that is configured; `None` where it could not be asked.
pub(super) enum SourceFacts {
    Slot(Option<SlotFacts>),
    Outbox(Option<OutboxFacts>),
}

/// What a scrape has found out; `None` for what could not be read.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) source: Option<SourceFacts>,
    pub(super) events: Option<u64>,
    pub(super) ledger_bytes: Option<u64>,
    pub(super) free_bytes: Option<u64>,
    /// By endpoint.
    pub(super) counts: Vec<(String, Counts)>,
    pub(super) lanes: Vec<(EndpointKey, LaneState)>,
}

/// `pg_replication_slots.wal_status`
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WalStatus {
    status: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Endpoint {
    endpoint: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Delivery {
    endpoint: String,
    state: &'static str,
}

/// The facts as OpenMetrics text.
pub(super) fn render(facts: &Facts) -> Result<String> {
    let mut whole = Registry::default();
    let registry = whole.sub_registry_with_prefix("flagpost");
    match &facts.source {
        Some(SourceFacts::Slot(facts)) => slot(registry, facts.as_ref()),
        Some(SourceFacts::Outbox(facts)) => outbox(registry, facts.as_ref()),
        None => {}
    }
    gauge(registry, "ledger_events", "Events on record", number(facts.events));
    gauge(
        registry,
        "ledger_used_bytes",
        "Bytes of the ledger that hold something",
        number(facts.ledger_bytes),
    );
    let free = number(facts.free_bytes);
    gauge(registry, "ledger_disk_free_bytes", "Bytes that are free on the disk of the ledger", free);
    deliveries(registry, &facts.counts);
    lanes(registry, &facts.lanes);
    build(registry);
    meters().register(registry);
    process::register(&mut whole);
    let mut text = String::new();
    encode(&mut text, &whole).map_err(|e| Error::internal(format!("metrics cannot be written: {e}")))?;
    Ok(text)
}

/// Which flagpost this is.
fn build(registry: &mut Registry) {
    let info = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "Which flagpost this is", info);
}

fn slot(registry: &mut Registry, slot: Option<&SlotFacts>) {
    let up = i64::from(slot.is_some());
    gauge(registry, "slot_known", "Whether the server was reached and has the slot", Some(up));
    let active = slot.map(|slot| i64::from(slot.active_pid.is_some()));
    gauge(registry, "slot_active", "Whether somebody reads the slot", active);
    let held = slot.and_then(|slot| slot.retained_bytes);
    gauge(registry, "wal_held_bytes", "Bytes of its log that the server keeps for the slot", held);
    let lag = slot.and_then(|slot| slot.lag_bytes);
    gauge(registry, "lag_bytes", "Bytes of log that were written and are not confirmed", lag);
    let Some(slot) = slot else { return };
    if let Some(seconds) = slot.lag_seconds() {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(seconds);
        registry.register("lag_seconds", "For how long they have been written", gauge);
    }
    let family = Family::<WalStatus, Gauge>::default();
    family.get_or_create(&WalStatus { status: slot.wal_status.clone() }).set(1);
    registry.register(
        "slot_wal_status",
        "1 for what the server says of the log that the slot needs: reserved, extended, unreserved or lost",
        family,
    );
}

fn outbox(registry: &mut Registry, outbox: Option<&OutboxFacts>) {
    let up = i64::from(outbox.is_some());
    gauge(registry, "outbox_known", "Whether the server was reached and the outbox could be read", Some(up));
    gauge(
        registry,
        "outbox_rows",
        "Row changes that wait in the outbox",
        outbox.map(|outbox| outbox.changes),
    );
    let oldest = outbox.map(|outbox| outbox.oldest_seconds.unwrap_or_default());
    if let Some(oldest) = oldest {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(oldest);
        registry.register(
            "outbox_oldest_seconds",
            "How long the oldest of them has waited; 0 if there is none",
            gauge,
        );
    }
    gauge(registry, "outbox_bytes", "Bytes of the outbox on disk", outbox.map(|outbox| outbox.bytes));
    let failures = outbox.map(|outbox| outbox.failures);
    gauge(registry, "outbox_failures", "Statements of Flagsmith's that could not be captured", failures);
}

fn deliveries(registry: &mut Registry, counts: &[(String, Counts)]) {
    let family = Family::<Delivery, Gauge>::default();
    let oldest = Family::<Endpoint, Gauge>::default();
    for (endpoint, counts) in counts {
        for (state, count) in [
            ("pending", counts.pending),
            ("retrying", counts.retrying),
            ("delivered", counts.delivered),
            ("dead", counts.dead),
            ("dropped", counts.dropped),
            ("shadowed", counts.shadowed),
        ] {
            let labels = Delivery { endpoint: endpoint.clone(), state };
            family.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        if let Some(at) = counts.oldest_pending {
            oldest.get_or_create(&Endpoint { endpoint: endpoint.clone() }).set(at.0 / 1_000_000);
        }
    }
    registry.register(
        "deliveries",
        "Deliveries on record by endpoint and state; pending counts the retrying ones",
        family,
    );
    registry.register(
        "oldest_pending_commit_timestamp_seconds",
        "When the change was committed that waits longest for an endpoint",
        oldest,
    );
}

fn lanes(registry: &mut Registry, lanes: &[(EndpointKey, LaneState)]) {
    let paused = Family::<Endpoint, Gauge>::default();
    let open = Family::<Endpoint, Gauge>::default();
    for (endpoint, lane) in lanes {
        let labels = Endpoint { endpoint: endpoint.to_string() };
        paused.get_or_create(&labels).set(i64::from(lane.pause.is_some()));
        open.get_or_create(&labels).set(i64::from(lane.breaker.opened_at.is_some()));
    }
    registry.register("endpoint_paused", "Whether the endpoint is paused", paused);
    registry.register("endpoint_breaker_open", "Whether the breaker of the endpoint is open", open);
}

/// A gauge, where there is something to show.
fn gauge(registry: &mut Registry, name: &str, help: &str, value: Option<i64>) {
    if let Some(value) = value {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
}

fn number(count: Option<u64>) -> Option<i64> {
    count.map(|count| i64::try_from(count).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_left_out() {
        for (source, name) in [(SourceFacts::Slot(None), "slot"), (SourceFacts::Outbox(None), "outbox")] {
            let text = render(&Facts { source: Some(source), ..Facts::default() }).unwrap();
            assert!(text.contains(&format!("flagpost_{name}_known 0\n")), "{text}");
            assert!(!text.contains("wal_held") && !text.contains("outbox_rows"), "{text}");
            assert!(text.ends_with("# EOF\n"));
        }
    }

    #[test]
    fn of_the_outbox_its_own_figures_are_shown_and_none_of_a_slot() {
        let facts = OutboxFacts {
            changes: 3,
            oldest_seconds: Some(2.5),
            bytes: 8192,
            cap: None,
            failures: 1,
            reader: None,
            consumed: 0,
            given: 7,
        };
        let source = Some(SourceFacts::Outbox(Some(facts)));
        let text = render(&Facts { source, ..Facts::default() }).unwrap();
        for line in ["known 1", "rows 3", "oldest_seconds 2.5", "bytes 8192", "failures 1"] {
            assert!(text.contains(&format!("flagpost_outbox_{line}\n")), "{line}: {text}");
        }
        assert!(!text.contains("slot") && !text.contains("flagpost_lag"), "{text}");
    }

    #[test]
    fn a_queue_is_shown_by_endpoint_and_state() {
        let counts = Counts { pending: 3, dead: 1, ..Counts::default() };
        let facts =
            Facts { counts: vec![("environment:2".into(), counts)], free_bytes: Some(7), ..Facts::default() };
        let text = render(&facts).unwrap();
        assert!(
            text.contains(r#"flagpost_deliveries{endpoint="environment:2",state="pending"} 3"#),
            "{text}"
        );
        assert!(text.contains("flagpost_ledger_disk_free_bytes 7"), "{text}");
    }
}
