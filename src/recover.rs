//! Recovering: a ledger that has missed changes is brought to what the database shows now, and receivers with it.
//!
//! The mirror in the ledger is what receivers were told last. What a snapshot of the database shows otherwise becomes events
//! ([`Engine::reconstruct`]), and the mirror becomes that snapshot.
//!
//! Invariant: mirror, events, identity and checkpoint are written in one ledger transaction, so a recovery has happened or it has
//! not, whenever the process dies. What was queued before stays, and goes first.

use tokio_postgres::Client;

use crate::baseline::Display;
use crate::change::{Lsn, Micros, Row};
use crate::config::Config;
use crate::daemon::load_engine;
use crate::error::{Error, Kind, Result};
use crate::event::{EndpointKey, Engine, Event, Recipient};
use crate::fact::LedgerRecovered;
use crate::ledger::{EventRecord, Identity, Ledger, Purpose, Write};
use crate::mirror::{Mirror, Persist};
use crate::schema::Table;
use crate::source::{Catalog, View, audits, copy_tables, histories, server_clock};

/// Audit rows are asked for from so long before the ledger's clock on: a row's date is Flagsmith's clock, and it is committed
/// later. Those that are on record are told apart by their events' ids. In microseconds.
const AUDIT_SLACK: i64 = 3_600_000_000;

/// What a ledger has missed, and what makes it whole. Nothing has been written yet.
pub struct Comparison {
    /// What is to be sent, in order, with the recipients.
    pub events: Vec<(Event, Vec<Recipient>)>,
    /// Since when changes may have been missed: the stream's clock when the ledger was last written.
    pub since: Micros,
    /// Until when.
    pub until: Micros,
    /// The mirror as it is now.
    engine: Engine,
    rows: Vec<Persist>,
    gone: Vec<EndpointKey>,
    position: Lsn,
    cursor: Option<String>,
}

impl Comparison {
    /// Rows of the mirror that are not as they were.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The database as it is now.
    pub fn mirror(&self) -> &Mirror {
        self.engine.mirror()
    }
}

/// The ledger's own identity, if something can be recovered. `Err` says why not.
pub fn require_recoverable(ledger: &Ledger) -> Result<Identity> {
    let identity = if ledger.checkpoint()?.is_some() { ledger.identity()? } else { None };
    let Some(identity) = identity else {
        return Err(Error::new(
            Kind::LedgerMismatch,
            "the ledger has not been filled, so receivers were told nothing that could differ: run \"flagpost setup\"",
        ));
    };
    if ledger.purpose()? == Purpose::Shadow {
        return Err(Error::new(
            Kind::LedgerMismatch,
            "the ledger was last written in shadow mode, and shadow mode sends nothing: begin anew with \"flagpost setup \
             --resnapshot\"",
        ));
    }
    Ok(identity)
}

/// Compares what receivers were told last with what `view` shows. `identity` is that of the database that is looked at.
pub async fn compare(
    config: &Config,
    ledger: &Ledger,
    catalog: &Catalog,
    identity: &Identity,
    view: View,
) -> Result<Comparison> {
    let View { client, position, cursor } = view;
    let known = require_recoverable(ledger)?;
    let told = load_engine(config, ledger, catalog, &known, config.routing())?;
    let until = server_clock(&client, &config.database).await?;
    let mirror = copied(config, catalog, &client).await?;
    let mut engine = Engine::new(
        mirror,
        identity.system_id.clone(),
        config.settle,
        config.routing(),
        config.metadata_events,
    );
    engine.resume(until, position);
    // Nothing of them is told, and the daemon would forget them at its start.
    engine.forget_all_superseded(&mut |_| {});
    let missed = engine.missed(&told);
    let states: Vec<i64> = missed.iter().flat_map(|missed| missed.states()).collect();
    let since = ledger.clock()?.unwrap_or(until);
    let history = histories(&client, &config.database, catalog, &states, since).await?;
    let audits = audits(&client, &config.database, catalog, audits_from(ledger, since)?).await?;
    let audits = without_recorded(&told, ledger, audits)?;
    let name = format!("recovered at {position} {}", until.0);
    let events = engine.reconstruct(&told, missed, &history, audits, &name);
    Ok(Comparison {
        events,
        since,
        until,
        rows: told.mirror().difference(engine.mirror()),
        gone: endpoints_gone(told.mirror(), engine.mirror()),
        engine,
        position,
        cursor,
    })
}

/// From when on rows of the audit log are asked for: never from before the ledger was there.
fn audits_from(ledger: &Ledger, since: Micros) -> Result<Micros> {
    let with_slack = Micros(since.0.saturating_sub(AUDIT_SLACK));
    Ok(ledger.filled_at()?.map_or(since, |filled| filled.max(with_slack)))
}

/// The rows of the audit log whose events are not on record.
fn without_recorded(told: &Engine, ledger: &Ledger, audits: Vec<Row>) -> Result<Vec<Row>> {
    let reader = ledger.reader()?;
    let mut unknown = Vec::new();
    for row in audits {
        if reader.by_id(&told.audit_event_id(&row).to_string(), 1)?.is_empty() {
            unknown.push(row);
        }
    }
    Ok(unknown)
}

async fn copied(config: &Config, catalog: &Catalog, client: &Client) -> Result<Mirror> {
    let mut mirror = Mirror::new(catalog.capabilities());
    let mut display = Display::new();
    let rows = copy_tables(
        client,
        &config.database,
        catalog,
        async |table, row| {
            mirror.load(table, row);
            Ok(())
        },
        |progress| display.show(progress),
    )
    .await;
    display.finish(None);
    rows?;
    Ok(mirror)
}

fn endpoints_gone(told: &Mirror, now: &Mirror) -> Vec<EndpointKey> {
    let gone = |table| {
        let keys = told.keys(table).into_iter().filter(move |key| now.row(table, key).is_none());
        keys.filter_map(move |key| EndpointKey::of(table, key.to_string().parse().ok()?))
    };
    [Table::EnvironmentWebhook, Table::OrganisationWebhook].into_iter().flat_map(gone).collect()
}

/// Writes what a comparison has found: from now on the ledger goes on in the source of this identity, behind the comparison's
/// view.
pub async fn record(config: &Config, ledger: Ledger, identity: Identity, found: Comparison) -> Result<()> {
    let Comparison { events, until, engine, rows, gone, position, cursor, .. } = found;
    drop(engine);
    let default_format = config.routing().formats.default;
    let writer = ledger.start_writer()?;
    let events = events.into_iter().map(|(event, recipients)| {
        Write::Event(Box::new(EventRecord::new(&event, recipients, default_format)))
    });
    let writes = std::iter::once(Write::Rebase(identity))
        .chain(rows.into_iter().map(Write::Mirror))
        .chain(gone.into_iter().map(Write::EndpointGone))
        .chain(events)
        .chain(cursor.map(Write::Cursor))
        .chain([Write::Checkpoint(position, until)]);
    for write in writes {
        if writer.writes.send(write).await.is_err() {
            break;
        }
    }
    drop(writer.writes);
    // The writer tells itself why it has ended.
    writer.ended.await.map_err(|_| Error::internal("the ledger's writer has stopped"))??;
    LedgerRecovered { lsn: position.to_string() }.tell();
    Ok(())
}
