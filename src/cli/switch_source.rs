//! `flagpost switch-source`: from replication to the outbox or back on a running installation, without a lost or doubled event.
//!
//! The new source is made first. Then one moment is chosen that both know exactly: the consistent point of a new slot is a
//! position of the server's log, and its exported snapshot says which transactions lie before it. The old source is read up to
//! there; the ledger takes the new one from there, in one transaction; then the old one is removed. Whatever interrupts it, the
//! ledger goes on in the one source or in the other, and the same command does the rest.
//!
//! Source: PostgreSQL manual, "Logical Decoding Concepts", "Exported Snapshots".

use clap::Args;
use tokio_postgres::Client;

use super::setup::{ModeName, require_identities, run_step};
use super::uninstall::{drop_outbox, drop_publication, drop_slot};
use crate::change::Lsn;
use crate::config::{Config, Mode};
use crate::daemon::catch_up;
use crate::error::{Error, Kind, Result};
use crate::fact::{SlotMaking, SlotOfAnEarlierTry};
use crate::ledger::Ledger;
use crate::prepare::{Until, identity_of, ledger_mode};
use crate::source::{
    Catalog, Place, Publication, Replication, claim_outbox, connect, current_place, exported_view,
    forget_failures, has_outbox, outbox_reader, publication_steps, reader_name, reader_of, server_facts,
};

/// The name of the slot that lives only while the moment is chosen.
const TEMPORARY_SUFFIX: &str = "_switch";

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Where changes are to be read from
    to: ModeName,
    /// Let this role, which the daemon logs in as, read the outbox
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
}

pub(super) async fn switch(config: &Config, options: &Options) -> Result<u8> {
    let to = Mode::from(options.to);
    let from = current_mode(config)?;
    let client = connect(&config.database).await?;
    let catalog = Catalog::read(&client, &config.database, &config.names.schema).await?;
    catalog.require(&config.database)?;
    if from == to {
        say!("the ledger in {} goes on by {:?} already", config.state_dir.display(), to.name());
    } else {
        match to {
            Mode::Outbox => to_outbox(config, options, &client, &catalog).await?,
            Mode::Replication => to_replication(config, &client, &catalog).await?,
        }
    }
    remove_left(config, &client).await?;
    if config.mode == to {
        say!("done: start it with \"flagpost run\"");
    } else {
        say!(
            "done: set source.mode = {:?} in the configuration, then start it with \"flagpost run\"",
            to.name()
        );
    }
    Ok(0)
}

/// The source that the ledger goes on in. `Err` while a daemon is running, and where there is nothing to change.
fn current_mode(config: &Config) -> Result<Mode> {
    let Some(mode) = ledger_mode(config)? else {
        return Err(Error::new(
            Kind::LedgerMismatch,
            format!(
                "the ledger in {} has not been filled, so there is nothing to change: run \"flagpost setup --mode …\"",
                config.state_dir.display()
            ),
        ));
    };
    Ledger::open(&config.state_dir)?.require_unbroken()?;
    Ok(mode)
}

async fn to_outbox(config: &Config, options: &Options, client: &Client, catalog: &Catalog) -> Result<()> {
    let info = &config.database;
    // From the moment that a table has its triggers, they see every change that was not committed before: making them waits
    // for whoever writes to the table.
    run_step(config, client, &config.outbox.install_step(catalog)).await?;
    if let Some(role) = &options.role {
        run_step(config, client, &config.outbox.grant_step(role)).await?;
    }
    let ledger_name = claim_outbox(client, info).await?;
    forget_failures(client, info).await?;
    let mut replication = Replication::connect(info).await?;
    let moment = choose_moment(config, &mut replication, &temporary(config), true).await?;
    drop(replication);
    say!("the change takes place at {}", moment.position);
    catch_up(&as_mode(config, Mode::Replication), Until::Position(moment.position)).await?;
    let mut ledger = Ledger::open(&config.state_dir)?;
    require_reached(ledger.checkpoint()?.unwrap_or_default(), moment.position)?;
    let identity = identity_of(config, client, reader_name(&ledger_name)).await?;
    ledger.change_source(&identity, moment.position, Some(&moment.place.to_string()))
}

async fn to_replication(config: &Config, client: &Client, catalog: &Catalog) -> Result<()> {
    let (info, name) = (&config.database, &config.names.slot);
    server_facts(client, info).await?.require_logical()?;
    require_identities(config, client, catalog).await?;
    let mut replication = Replication::connect(info).await?;
    let existing = Publication::read(client, info, catalog, &config.names.publication).await?;
    for step in publication_steps(catalog, &config.names, existing.as_ref()) {
        run_step(config, client, &step).await?;
    }
    if let Some(slot) = replication.slot(name).await? {
        slot.require(name, &info.database)?;
        SlotOfAnEarlierTry { slot: name.to_owned() }.tell();
        replication.drop_slot(name).await?;
    }
    say!("{};  -- over the replication connection", replication.slot_statement(name, false).await?);
    let moment = choose_moment(config, &mut replication, name, false).await?;
    drop(replication);
    say!("the change takes place at {}", moment.position);
    catch_up(&as_mode(config, Mode::Outbox), Until::Snapshot(moment.place.batch)).await?;
    let mut ledger = Ledger::open(&config.state_dir)?;
    let identity = identity_of(config, client, name.clone()).await?;
    ledger.change_source(&identity, moment.position, None)
}

/// Nobody reads the source before any more: unread, it would fill the server's disk. Only what this ledger has read is removed.
async fn remove_left(config: &Config, client: &Client) -> Result<()> {
    let left = Ledger::open(&config.state_dir)?.left()?;
    match left.as_deref().map(|name| (name, reader_of(name))) {
        Some((name, None)) if *name == config.names.slot => {
            drop_slot(config, client).await?;
            drop_publication(config, client).await?;
        }
        Some((_, Some(ledger))) => {
            let info = &config.database;
            if has_outbox(client, info).await?
                && outbox_reader(client, info).await?.as_deref() == Some(ledger)
            {
                drop_outbox(config, client, true).await?;
            }
        }
        Some((name, None)) => {
            say!("replication slot {name:?} stays: source.slot has another name now; drop it by hand")
        }
        None => {}
    }
    Ledger::open(&config.state_dir)?.forget_left()
}

/// A moment that both sources know.
struct Moment {
    /// Every transaction that was committed before has its end before this.
    position: Lsn,
    /// Behind those transactions in the outbox.
    place: Place,
}

async fn choose_moment(
    config: &Config,
    replication: &mut Replication,
    slot: &str,
    is_temporary: bool,
) -> Result<Moment> {
    SlotMaking { slot: slot.to_owned() }.tell();
    let exported = replication.create_slot(slot, is_temporary).await?;
    let view = exported_view(&config.database, &exported).await?;
    let place = current_place(&view.client, &config.database).await?;
    Ok(Moment { position: exported.position, place })
}

fn temporary(config: &Config) -> String {
    // A name has 63 bytes at the most.
    let name: String = config.names.slot.chars().take(63 - TEMPORARY_SUFFIX.len()).collect();
    format!("{name}{TEMPORARY_SUFFIX}")
}

fn as_mode(config: &Config, mode: Mode) -> Config {
    Config { mode, ..config.clone() }
}

fn require_reached(reached: Lsn, position: Lsn) -> Result<()> {
    if reached == position {
        return Ok(());
    }
    Err(Error::internal(format!(
        "the stream ended at {reached} instead of {position}: nothing is lost, the ledger goes on by replication; run it again"
    )))
}
