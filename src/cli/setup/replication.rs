//! Setting up replication: the publication, the slot, and the mirror from the slot's snapshot.

use tokio_postgres::Client;

use super::{Options, run_step, show};
use crate::config::Config;
use crate::error::{Error, Kind, RECOVER, Result};
use crate::ledger::Ledger;
use crate::prepare::fill_from_slot;
use crate::source::{
    Catalog, Exported, Publication, Replication, grant_steps, publication_steps, server_facts, slot_step,
    unusable_identities,
};

pub(super) async fn setup(
    config: &Config,
    options: &Options,
    client: Client,
    catalog: &Catalog,
) -> Result<()> {
    require_identities(config, &client, catalog).await?;
    let existing = Publication::read(&client, &config.database, catalog, &config.names.publication).await?;
    let mut steps = publication_steps(catalog, &config.names, existing.as_ref());
    if options.print {
        let slot = Replication::connect(&config.database).await.ok();
        let has_slot = match slot {
            Some(mut replication) => replication.slot(&config.names.slot).await?.is_some(),
            None => false,
        };
        if !has_slot || options.resnapshot {
            steps.push(slot_step(&config.names, catalog));
        }
        if let Some(role) = &options.role {
            steps.push(grant_steps(catalog, &config.database, role));
        }
        if steps.is_empty() {
            say!("-- publication and slot are as they must be: nothing to do");
        }
        steps.iter().for_each(show);
        return Ok(());
    }
    require_resnapshot_for_missed(config, options, existing.as_ref(), catalog)?;
    // Before anything is changed: can we stream at all?
    server_facts(&client, &config.database).await?.require_logical()?;
    let replication = Replication::connect(&config.database).await?;
    for step in &steps {
        run_step(config, &client, step).await?;
    }
    if steps.is_empty() {
        say!("publication {:?} is as it must be", config.names.publication);
    }
    drop(client);
    prepare_slot(config, options, catalog, replication).await
}

/// A publication of tables without a usable replica identity would make the server refuse Flagsmith's own changes.
pub(in crate::cli) async fn require_identities(
    config: &Config,
    client: &Client,
    catalog: &Catalog,
) -> Result<()> {
    let unusable = unusable_identities(client, &config.database, catalog).await?;
    let Some(first) = unusable.first() else { return Ok(()) };
    let mends: Vec<&str> = unusable.iter().map(|identity| identity.mend.as_str()).collect();
    Err(Error::new(
        Kind::DatabaseRefuses,
        format!(
            "table {} cannot be published ({}): its changes would be refused by the server; run {}",
            first.table.name(),
            first.why,
            mends.join(" ")
        ),
    ))
}

/// What was not published was not streamed: a filled mirror has missed it, and only a new one is right.
fn require_resnapshot_for_missed(
    config: &Config,
    options: &Options,
    existing: Option<&Publication>,
    catalog: &Catalog,
) -> Result<()> {
    let missing = match existing {
        Some(publication) => publication.missing(catalog),
        // Made again, it publishes what comes from then on. Of what came before PostgreSQL 18 leaves the changes out without
        // a word; older ones refuse to stream it.
        None => vec!["anything (it is gone)".into()],
    };
    if options.resnapshot || missing.is_empty() || !Ledger::exists(&config.state_dir) {
        return Ok(());
    }
    if Ledger::open(&config.state_dir)?.checkpoint()?.is_none() {
        return Ok(());
    }
    Err(Error::new(
        Kind::SlotLost,
        format!(
            "publication {:?} does not publish {}, so the stream has missed what changed there: {RECOVER} \
             (both mend the publication)",
            config.names.publication,
            missing.join(", ")
        ),
    ))
}

async fn prepare_slot(
    config: &Config,
    options: &Options,
    catalog: &Catalog,
    mut replication: Replication,
) -> Result<()> {
    let name = &config.names.slot;
    let existing = replication.slot(name).await?;
    if let Some(slot) = &existing {
        if !options.resnapshot {
            slot.require(name, &config.database.database)?;
            say!("replication slot {name:?} is there");
            return Ok(());
        }
        slot.require_ours(name, &config.database.database)?;
    }
    // The ledger is opened first: it tells whether a daemon is running, and no slot is made that could not be used.
    let ledger = if options.no_mirror { None } else { Some(Ledger::open(&config.state_dir)?) };
    if let (Some(ledger), None) = (&ledger, &existing)
        && ledger.checkpoint()?.is_some()
        && !options.resnapshot
    {
        return Err(Error::new(
            Kind::SlotLost,
            format!(
                "the ledger in {} has been filled before, and its slot {name:?} is gone: {RECOVER}",
                config.state_dir.display()
            ),
        ));
    }
    let exported = make_slot(config, &mut replication, existing.is_some()).await?;
    let Some(ledger) = ledger else { return Ok(()) };
    if let Err(error) = fill_from_slot(config, replication, &exported, ledger, catalog).await {
        drop_unused_slot(config).await;
        return Err(error);
    }
    say!("the mirror is in {}, at {}", config.state_dir.display(), exported.position);
    Ok(())
}

/// Makes the slot, in the place of the one that is there.
async fn make_slot(config: &Config, replication: &mut Replication, is_there: bool) -> Result<Exported> {
    let name = &config.names.slot;
    if is_there {
        say!("DROP_REPLICATION_SLOT \"{name}\";  -- over the replication connection");
        replication.drop_slot(name).await?;
    }
    say!("{};  -- over the replication connection", replication.slot_statement(name, false).await?);
    replication.create_slot(name, false).await
}

/// A slot without a mirror would only hold the server's log back.
pub(in crate::cli) async fn drop_unused_slot(config: &Config) {
    if let Ok(mut replication) = Replication::connect(&config.database).await {
        replication.drop_slot(&config.names.slot).await.ok();
    }
}

/// What a slot that is made anew begins with.
pub(in crate::cli) struct Renewed {
    /// The connection that exports the snapshot, until its next command.
    pub(in crate::cli) replication: Replication,
    /// The slot's position and snapshot.
    pub(in crate::cli) exported: Exported,
}

/// Brings the publication up to date and makes the slot anew, whatever became of the one before. `before_it_goes` is called when
/// all has been checked and nothing has been changed.
pub(in crate::cli) async fn renew_slot(
    config: &Config,
    client: Client,
    catalog: &Catalog,
    before_it_goes: impl FnOnce() -> Result<()>,
) -> Result<Renewed> {
    let name = &config.names.slot;
    require_identities(config, &client, catalog).await?;
    let existing = Publication::read(&client, &config.database, catalog, &config.names.publication).await?;
    server_facts(&client, &config.database).await?.require_logical()?;
    let mut replication = Replication::connect(&config.database).await?;
    let slot = replication.slot_unread(name).await?;
    if let Some(slot) = &slot {
        slot.require_ours(name, &config.database.database)?;
    }
    before_it_goes()?;
    for step in &publication_steps(catalog, &config.names, existing.as_ref()) {
        run_step(config, &client, step).await?;
    }
    drop(client);
    let exported = make_slot(config, &mut replication, slot.is_some()).await?;
    Ok(Renewed { replication, exported })
}
