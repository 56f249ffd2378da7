//! What is counted while the daemon runs. A counter begins at 0 with the process, as Prometheus expects it; what has to be right after
//! a restart is read from the ledger at the scrape instead (`ops::metrics`).

use std::sync::LazyLock;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The kind of an event.
#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct EventKind {
    /// `event_type`
    pub kind: String,
}

/// How an attempt ended.
#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Attempt {
    /// The endpoint's key.
    pub endpoint: String,
    /// `delivered`, `retry`, `paused` or `dead`.
    pub outcome: &'static str,
}

/// What the facts move.
#[derive(Debug)]
pub struct Meters {
    /// Transactions that were captured.
    pub transactions: Counter,
    /// Events that were recorded, by kind.
    pub events: Family<EventKind, Counter>,
    /// Attempts, by endpoint and outcome.
    pub attempts: Family<Attempt, Counter>,
    /// Seconds that an attempt took.
    pub attempt_seconds: Histogram,
    /// Seconds from the commit to the delivery.
    pub delivery_seconds: Histogram,
    /// Seconds that a commit of the ledger took, its fsync with it.
    pub ledger_commit_seconds: Histogram,
    /// The stream broke.
    pub disconnects: Counter,
    /// Spans that no collector has got.
    pub spans_dropped: Counter,
}

impl Meters {
    fn new() -> Meters {
        Meters {
            transactions: Counter::default(),
            events: Family::default(),
            attempts: Family::default(),
            attempt_seconds: Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]),
            delivery_seconds: Histogram::new([
                0.01, 0.05, 0.1, 0.15, 0.2, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1_800.0, 10_800.0,
                86_400.0,
            ]),
            ledger_commit_seconds: Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5]),
            disconnects: Counter::default(),
            spans_dropped: Counter::default(),
        }
    }

    /// Adds them to what a scrape shows.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("transactions", "Transactions captured since the start", self.transactions.clone());
        registry.register("events", "Events recorded since the start, by kind", self.events.clone());
        registry.register(
            "attempts",
            "Calls to endpoints since the start, by outcome: delivered, retry, paused (HTTP 410), dead",
            self.attempts.clone(),
        );
        registry.register("attempt_seconds", "How long a call took", self.attempt_seconds.clone());
        registry.register(
            "commit_to_delivery_seconds",
            "From the commit in the database to the answer that made it delivered; replays are left out",
            self.delivery_seconds.clone(),
        );
        registry.register(
            "ledger_commit_seconds",
            "How long a commit of the ledger took, with its fsync",
            self.ledger_commit_seconds.clone(),
        );
        registry.register(
            "spans_dropped",
            "Spans that could not be sent to the collector of traces",
            self.spans_dropped.clone(),
        );
        registry.register(
            "source_disconnects",
            "How often the source was lost since the start",
            self.disconnects.clone(),
        );
    }
}

/// Those of this process.
pub fn meters() -> &'static Meters {
    static METERS: LazyLock<Meters> = LazyLock::new(Meters::new);
    &METERS
}
