//! The ops listener: metrics, health and the status page over HTTP. It lives as long as the process, so it answers also while the daemon waits for
//! room on its disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::api::{self, Api};
use super::desk::Desk;
use super::door::Door;
use super::metrics::{self, Facts, SourceFacts};
use super::process;
use super::sample::{History, Sampler};
use super::{health, page};
use crate::config::{Config, Mode};
use crate::error::{Error, Result};
use crate::fact::{LedgerUnread, MetricsUngathered, OpsAddressTaken, OpsEnded, OpsListening, ServerUnasked};
use crate::ledger::{Ledger, Reader};
use crate::pulse::Pulse;
use crate::source::{connect, outbox_facts, slot_facts};

/// How long the server may take to tell of slot or outbox; a scrape waits no longer for it.
const SERVER_TELLS_WITHIN: Duration = Duration::from_secs(3);

/// Listens where `ops.listen` says, until `stop`. An address that is taken is told and costs the metrics only.
pub async fn serve(config: &Config, desk: Arc<dyn Desk>, pulse: Arc<Pulse>, stop: CancellationToken) {
    process::begin();
    let Some(addr) = config.ops_listen else { return };
    let listener = match TcpListener::bind(addr).await {
        Ok(listener) => listener,
        Err(error) => {
            OpsAddressTaken { addr: addr.to_string(), error: error.to_string() }.tell();
            return;
        }
    };
    OpsListening { addr: addr.to_string() }.tell();
    let router = metrics_router(config).merge(health::router(Arc::clone(&pulse))).merge(page_router(
        config,
        desk,
        pulse,
        stop.clone(),
    ));
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        OpsEnded { error: error.to_string() }.tell();
    }
}

fn metrics_router(config: &Config) -> Router {
    // One scrape at a time: each reads through the ledger.
    let config = Arc::new(Mutex::new(config.clone()));
    Router::new().route("/metrics", get(scrape)).with_state(config)
}

/// Page and API, and whoever gathers what they show of the last hour.
fn page_router(config: &Config, desk: Arc<dyn Desk>, pulse: Arc<Pulse>, stop: CancellationToken) -> Router {
    if !config.status_page.is_served {
        return page::closed();
    }
    let history = Arc::<History>::default();
    let sampler = Sampler::new(config.clone(), Arc::clone(&pulse)).run(Arc::clone(&history));
    tokio::spawn(stop.run_until_cancelled_owned(sampler));
    let door = Door::new(config.status_page.hosts.clone(), config.status_page.token.clone());
    let api = Arc::new(Api::new(door, desk, pulse, history));
    page::router(Arc::clone(&api)).merge(api::router(api))
}

async fn scrape(State(config): State<Arc<Mutex<Config>>>) -> Response {
    let config = config.lock().await;
    match gather(&config).await.and_then(|facts| metrics::render(&facts)) {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            MetricsUngathered { error: error.to_string() }.tell();
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn gather(config: &Config) -> Result<Facts> {
    let directory = config.state_dir.clone();
    let ledger = tokio::task::spawn_blocking(move || of_ledger(&directory));
    let source = Some(source(config).await);
    let facts = ledger.await.map_err(|e| Error::internal(format!("reading the ledger failed: {e}")))?;
    Ok(Facts { source, ..facts })
}

/// What can be read; the rest is left out.
fn of_ledger(directory: &Path) -> Facts {
    let free_bytes = Ledger::room(directory);
    let read = || -> Result<Facts> {
        let reader = Reader::open(directory)?;
        Ok(Facts {
            events: Some(reader.event_count()?),
            ledger_bytes: Some(reader.used_bytes()?),
            counts: reader.counts()?.into_iter().collect(),
            lanes: reader.lanes()?,
            ..Facts::default()
        })
    };
    let facts = read().unwrap_or_else(|error| {
        LedgerUnread { error: error.to_string() }.tell();
        Facts::default()
    });
    Facts { free_bytes, ..facts }
}

async fn source(config: &Config) -> SourceFacts {
    match config.mode {
        Mode::Replication => SourceFacts::Slot(
            in_time(async {
                let client = connect(&config.database).await?;
                slot_facts(&client, &config.database, &config.names.slot).await
            })
            .await
            .flatten(),
        ),
        Mode::Outbox => SourceFacts::Outbox(
            in_time(async {
                let client = connect(&config.database).await?;
                outbox_facts(&client, &config.database).await
            })
            .await,
        ),
    }
}

async fn in_time<T>(asking: impl Future<Output = Result<T>>) -> Option<T> {
    match tokio::time::timeout(SERVER_TELLS_WITHIN, asking).await {
        Ok(Ok(facts)) => Some(facts),
        Ok(Err(error)) => {
            ServerUnasked { error: error.to_string() }.tell();
            None
        }
        Err(_) => None,
    }
}
