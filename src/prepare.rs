//! Before the daemon runs: is there what the source needs, is the ledger of this database, is its mirror filled?

use tokio_postgres::Client;

use crate::baseline;
use crate::change::Lsn;
use crate::config::{Config, Mode};
use crate::error::{Error, Kind, RECOVER, Result};
use crate::fact::{BaselineSkipped, SlotMaking};
use crate::ledger::{Identity, Ledger};
use crate::schema::Table;
use crate::source::{
    Catalog, Covering, Exported, Follow, Origin, Publication, Reading, Replication, Snapshot, View,
    claim_outbox, connect, exported_view, forget_failures, outbox_reader, outbox_view, reader_name,
    reader_of, server_facts, system_id,
};

/// The name of the slot that lives only while a mirror is filled for a slot that was made before.
const TEMPORARY_SUFFIX: &str = "_baseline";

/// A ledger with a complete mirror, for a database that has what is needed.
pub struct Prepared {
    /// The ledger.
    pub ledger: Ledger,
    /// What it belongs to.
    pub identity: Identity,
    /// The tables and columns that there are.
    pub catalog: Catalog,
}

/// Checks everything, and fills the mirror if it is not filled.
pub async fn prepare(config: &Config) -> Result<Prepared> {
    require_mode(config, config.mode)?;
    let client = connect(&config.database).await?;
    let catalog = Catalog::read(&client, &config.database, &config.names.schema).await?;
    catalog.require(&config.database)?;
    require_tags(config, &catalog)?;
    match config.mode {
        Mode::Replication => prepare_replication(config, client, catalog).await,
        Mode::Outbox => prepare_outbox(config, client, catalog).await,
    }
}

async fn prepare_replication(config: &Config, client: Client, catalog: Catalog) -> Result<Prepared> {
    server_facts(&client, &config.database).await?.require_logical()?;
    require_publication(config, &client, &catalog).await?;
    drop(client);
    // Before the slot: it tells at once whether another daemon runs here.
    let ledger = Ledger::open(&config.state_dir)?;
    ledger.require_unbroken()?;
    let mut replication = Replication::connect(&config.database).await?;
    let slot = replication.slot_unread(&config.names.slot).await?;
    if let Some(slot) = &slot {
        slot.require(&config.names.slot, &config.database.database)?;
    }
    if ledger.checkpoint()?.is_some() {
        let identity = slot_identity(config, &replication);
        require_identity(config, ledger.identity()?, &identity)?;
        return Ok(Prepared { ledger, identity, catalog });
    }
    let name = &config.names.slot;
    let exported = if slot.is_none() {
        SlotMaking { slot: name.clone() }.tell();
        replication.create_slot(name, false).await?
    } else {
        // The slot was made without us: a second one, for a moment, gives the snapshot. What changed before it is the
        // baseline and not sent.
        BaselineSkipped { slot: name.clone() }.tell();
        replication.create_slot(&format!("{name}{TEMPORARY_SUFFIX}"), true).await?
    };
    let (ledger, identity) = fill_from_slot(config, replication, &exported, ledger, &catalog).await?;
    Ok(Prepared { ledger, identity, catalog })
}

/// Fills the mirror from the snapshot that was exported on `replication` when the slot was made.
pub async fn fill_from_slot(
    config: &Config,
    replication: Replication,
    exported: &Exported,
    ledger: Ledger,
    catalog: &Catalog,
) -> Result<(Ledger, Identity)> {
    let identity = slot_identity(config, &replication);
    let view = exported_view(&config.database, exported).await?;
    // The snapshot is ours now: the session that exported it may end.
    drop(replication);
    let ledger = baseline::fill(config, ledger, catalog, &identity, view).await?;
    Ok((ledger, identity))
}

/// What a ledger belongs to that reads the configured slot.
pub fn slot_identity(config: &Config, replication: &Replication) -> Identity {
    let system_id = replication.server().system_id.clone();
    Identity { system_id, database: config.database.database.clone(), slot: config.names.slot.clone() }
}

/// What a ledger belongs to that goes on in this source: a slot, or the outbox by its reader's name.
pub async fn identity_of(config: &Config, client: &Client, source: String) -> Result<Identity> {
    let system_id = system_id(client, &config.database).await?;
    Ok(Identity { system_id, database: config.database.database.clone(), slot: source })
}

async fn prepare_outbox(config: &Config, client: Client, catalog: Catalog) -> Result<Prepared> {
    let ledger = Ledger::open(&config.state_dir)?;
    ledger.require_unbroken()?;
    let losses = config.outbox.losses(&client, &config.database, &catalog).await?;
    if !losses.is_empty() {
        let losses = losses.join(", ");
        return Err(if ledger.checkpoint()?.is_some() {
            Error::new(
                Kind::SlotLost,
                format!("the outbox lacks {losses}, so changes have been missed: {RECOVER}"),
            )
        } else {
            Error::new(
                Kind::DatabaseRefuses,
                format!(
                    "the outbox lacks {losses}: run \"flagpost setup --mode outbox\" to bring it up to date"
                ),
            )
        });
    }
    let reader = outbox_reader(&client, &config.database).await?;
    if ledger.checkpoint()?.is_some() {
        let identity = identity_of(config, &client, reader_name(&reader.unwrap_or_default())).await?;
        require_identity(config, ledger.identity()?, &identity)?;
        return Ok(Prepared { ledger, identity, catalog });
    }
    if reader.is_some() {
        return Err(Error::new(
            Kind::LedgerMismatch,
            format!(
                "the outbox belongs to another ledger than the one in {}: correct state.dir, or take it over with \"flagpost \
                 setup --resnapshot\" (the other one stops then)",
                config.state_dir.display()
            ),
        ));
    }
    let (ledger, identity) = fill_from_outbox(config, &client, ledger, &catalog).await?;
    Ok(Prepared { ledger, identity, catalog })
}

/// Takes the outbox over and fills the mirror from a snapshot.
pub async fn fill_from_outbox(
    config: &Config,
    client: &Client,
    ledger: Ledger,
    catalog: &Catalog,
) -> Result<(Ledger, Identity)> {
    let (identity, view) = take_outbox(config, client).await?;
    let ledger = baseline::fill(config, ledger, catalog, &identity, view).await?;
    Ok((ledger, identity))
}

/// Takes the outbox over: from now on it belongs to the ledger of this identity, which begins with what the view shows.
pub async fn take_outbox(config: &Config, client: &Client) -> Result<(Identity, View)> {
    let info = &config.database;
    let identity = identity_of(config, client, reader_name(&claim_outbox(client, info).await?)).await?;
    forget_failures(client, info).await?;
    Ok((identity, outbox_view(info).await?))
}

/// Where reading ends, for a source that is changed for the other one.
#[derive(Debug, Clone)]
pub enum Until {
    /// A position of the stream.
    Position(Lsn),
    /// What a snapshot sees of the outbox.
    Snapshot(Snapshot),
}

/// Where the ledger says that reading goes on.
pub fn origin(
    config: &Config,
    ledger: &Ledger,
    identity: &Identity,
    catalog: &Catalog,
    until: Option<Until>,
) -> Result<Origin> {
    let from = ledger.checkpoint()?.unwrap_or_default();
    let (info, system_id) = (config.database.clone(), identity.system_id.clone());
    let Some(reader) = reader_of(&identity.slot) else {
        let until = match until {
            Some(Until::Position(position)) => Some(position),
            Some(Until::Snapshot(_)) | None => None,
        };
        let messages = config.heartbeat.is_some();
        let follow = Follow::new(info, config.names.clone(), catalog.clone(), system_id, from);
        return Ok(Origin::Replication(Follow { until, messages, ..follow }));
    };
    let cursor = ledger.cursor()?.unwrap_or_default();
    let place = cursor.parse().map_err(|e: String| {
        Error::new(
            Kind::LedgerMismatch,
            format!("the ledger's place in the outbox cannot be read ({e}): {RECOVER}"),
        )
    })?;
    let (ledger, poll) = (reader.to_owned(), config.poll);
    let until = match until {
        Some(Until::Snapshot(snapshot)) => Some(snapshot),
        Some(Until::Position(_)) | None => None,
    };
    Ok(Origin::Outbox(Reading { info, system_id, ledger, from, place, poll, until }))
}

/// What must cover the tables.
pub fn covering(config: &Config) -> Covering {
    match config.mode {
        Mode::Replication => Covering::Publication(config.names.publication.clone()),
        Mode::Outbox => Covering::Outbox(config.outbox.clone()),
    }
}

/// Endpoints that ask for tags would never be sent anything by a Flagsmith that has none.
pub fn require_tags(config: &Config, catalog: &Catalog) -> Result<()> {
    let lacking = catalog.lacking(&[Table::Tag, Table::FeatureTag]);
    let asking = config.subscriptions.iter().find(|subscription| subscription.asks_for_tags());
    let Some(asking) = asking.filter(|_| !lacking.is_empty()) else { return Ok(()) };
    Err(Error::new(
        Kind::DatabaseRefuses,
        format!(
            "webhooks.endpoint {:?} asks for tags, and this Flagsmith has none (the database lacks {}): nothing would be sent; \
             remove tags from the entry, or update Flagsmith",
            asking.name.as_str(),
            lacking.join(", ")
        ),
    ))
}

async fn require_publication(config: &Config, client: &Client, catalog: &Catalog) -> Result<()> {
    let name = &config.names.publication;
    let Some(publication) = Publication::read(client, &config.database, catalog, name).await? else {
        return Err(Error::new(
            Kind::DatabaseRefuses,
            format!("publication {name:?} does not exist: run \"flagpost setup\""),
        ));
    };
    let missing = publication.missing(catalog);
    if missing.is_empty() && publication.all_operations {
        return Ok(());
    }
    let what = if missing.is_empty() { "some operations".to_owned() } else { missing.join(", ") };
    Err(Error::new(
        Kind::DatabaseRefuses,
        format!(
            "publication {name:?} does not publish {what}: run \"flagpost setup\" to bring it up to date"
        ),
    ))
}

fn require_identity(config: &Config, found: Option<Identity>, expected: &Identity) -> Result<()> {
    if found.as_ref() == Some(expected) {
        return Ok(());
    }
    let found = found.map_or_else(
        || "an unknown database".to_owned(),
        |id| format!("cluster {}, database {:?}, slot {:?}", id.system_id, id.database, id.slot),
    );
    Err(Error::new(
        Kind::LedgerMismatch,
        format!(
            "the ledger in {} belongs to {found}, not to cluster {}, database {:?}, slot {:?}: correct database.url, \
             source.slot or state.dir; if that is where the database is now, run \"flagpost recover\", or begin anew with \"flagpost \
             setup --resnapshot\"",
            config.state_dir.display(),
            expected.system_id,
            expected.database,
            expected.slot
        ),
    ))
}

/// The source that the ledger goes on in; `None` where none has been filled. `Err` while a daemon is running.
pub fn ledger_mode(config: &Config) -> Result<Option<Mode>> {
    if !Ledger::exists(&config.state_dir) {
        return Ok(None);
    }
    let ledger = Ledger::open(&config.state_dir)?;
    let identity = if ledger.checkpoint()?.is_some() { ledger.identity()? } else { None };
    Ok(identity.map(|identity| mode_of(&identity)))
}

/// The source that a ledger of this identity goes on in.
pub fn mode_of(identity: &Identity) -> Mode {
    if reader_of(&identity.slot).is_some() { Mode::Outbox } else { Mode::Replication }
}

/// `Err` if there is a ledger that goes on in another source than `mode`.
pub fn require_mode(config: &Config, mode: Mode) -> Result<()> {
    let Some(found) = ledger_mode(config)?.filter(|found| *found != mode) else { return Ok(()) };
    let (found, mode) = (found.name(), mode.name());
    Err(Error::new(
        Kind::LedgerMismatch,
        format!(
            "the ledger in {} goes on by source.mode \"{found}\", not \"{mode}\": set source.mode = \"{found}\", or change over \
             with \"flagpost switch-source {mode}\"",
            config.state_dir.display()
        ),
    ))
}
