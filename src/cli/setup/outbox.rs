//! Setting up the outbox: the tables, the triggers, and the mirror from a snapshot that fits them.

use tokio_postgres::Client;

use super::{Options, run_step, show};
use crate::config::Config;
use crate::error::{Error, Kind, RECOVER, Result};
use crate::ledger::Ledger;
use crate::prepare::fill_from_outbox;
use crate::source::{Catalog, has_outbox, outbox_reader, read_role_steps, reader_name};

pub(super) async fn setup(
    config: &Config,
    options: &Options,
    client: &Client,
    catalog: &Catalog,
) -> Result<()> {
    if options.print {
        show(&config.outbox.install_step(catalog));
        if let Some(role) = &options.role {
            show(&read_role_steps(catalog, &config.database, role));
            show(&config.outbox.grant_step(role));
        }
        return Ok(());
    }
    // The ledger is opened first: it tells whether a daemon is running.
    let ledger = if options.no_mirror { None } else { Some(Ledger::open(&config.state_dir)?) };
    let is_there = has_outbox(client, &config.database).await?;
    let reader = if is_there { outbox_reader(client, &config.database).await.ok().flatten() } else { None };
    let is_ours = match &ledger {
        Some(ledger) => continues(config, options, client, catalog, ledger, reader.as_deref()).await?,
        None => false,
    };
    bring_up_to_date(config, client, catalog).await?;
    if let Some(ledger) = ledger.filter(|_| !is_ours) {
        fill_from_outbox(config, client, ledger, catalog).await?;
        say!("the mirror is in {}", config.state_dir.display());
    }
    Ok(())
}

/// Installs the outbox, or mends it.
pub(in crate::cli) async fn bring_up_to_date(
    config: &Config,
    client: &Client,
    catalog: &Catalog,
) -> Result<()> {
    if config.outbox.is_current(client, &config.database, catalog).await? {
        say!("the outbox is as it must be");
        return Ok(());
    }
    run_step(config, client, &config.outbox.install_step(catalog)).await
}

/// Whether the ledger goes on where it is. `Err` if it could not without missing something.
async fn continues(
    config: &Config,
    options: &Options,
    client: &Client,
    catalog: &Catalog,
    ledger: &Ledger,
    reader: Option<&str>,
) -> Result<bool> {
    if options.resnapshot {
        return Ok(false);
    }
    let lost = |why: String| Err(Error::new(Kind::SlotLost, format!("{why}: {RECOVER}")));
    if ledger.checkpoint()?.is_none() {
        return match reader {
            None => Ok(false),
            Some(_) => {
                lost("the outbox belongs to a ledger in another state.dir, which would lose it".into())
            }
        };
    }
    let known = ledger.identity()?.map(|identity| identity.slot).unwrap_or_default();
    if reader.map(reader_name).as_deref() != Some(known.as_str()) {
        return lost(
            "the ledger has been filled before, and its outbox is gone or belongs to another".into(),
        );
    }
    ledger.require_unbroken()?;
    let losses = config.outbox.losses(client, &config.database, catalog).await?;
    if !losses.is_empty() {
        return lost(format!("the outbox lacks {}, so changes have been missed", losses.join(", ")));
    }
    Ok(true)
}
