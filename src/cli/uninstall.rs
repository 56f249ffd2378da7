//! `flagpost uninstall`: drops slot, publication and outbox, so that nothing of flagpost is left in the database; with
//! `--purge` the ledger's files too.
//!
//! With `--list` it tells what is there, which is what a package's removal asks before the binary is gone.
//!
//! It never drops a slot that is not flagpost's, never one that somebody reads, never the outbox of a daemon that runs on this
//! ledger, and says so when nothing is there.

use std::time::Duration;

use clap::Args;
use tokio_postgres::Client;

use super::leftovers;
use crate::config::{Config, Mode};
use crate::error::{Error, Kind, Result};
use crate::ledger::{Ledger, Purge};
use crate::source::{
    Catalog, connect, has_outbox, has_publication, quoted, slot_facts, sql_error, uninstall_step,
};

/// A daemon that has just been stopped leaves its slot only when the server has noticed.
const PATIENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Only print the SQL
    #[arg(long)]
    print: bool,
    /// Only list what of flagpost is in the database; nothing where nothing is
    #[arg(long, conflicts_with_all = ["print", "purge"])]
    list: bool,
    /// Also remove the ledger's files from the state directory: events, queues, dead letters
    #[arg(long, conflicts_with = "print")]
    purge: bool,
}

pub(super) async fn uninstall(config: &Config, options: &Options) -> Result<u8> {
    if options.list {
        for line in leftovers::read(config).await? {
            say!("{line}");
        }
        return Ok(0);
    }
    if options.print {
        say!("{}", uninstall_step(&config.names).sql.trim_end());
        // Where the database cannot be asked, the triggers go with the schema.
        let (has_outbox, catalog) = outbox(config).await.unwrap_or_default();
        if has_outbox || config.mode == Mode::Outbox {
            say!("{}", config.outbox.uninstall_step(&catalog).sql.trim_end());
        }
        return Ok(0);
    }
    // Before anything is dropped: is a daemon running on this ledger?
    let purge = if options.purge { Purge::begin(&config.state_dir)? } else { None };
    let client = connect(&config.database).await?;
    drop_slot(config, &client).await?;
    drop_publication(config, &client).await?;
    drop_outbox(config, &client, purge.is_some()).await?;
    match purge {
        Some(purge) => remove_ledger(purge)?,
        None => tell_of_ledger(config),
    }
    Ok(0)
}

pub(super) async fn drop_slot(config: &Config, client: &Client) -> Result<()> {
    let name = &config.names.slot;
    let patience = tokio::time::Instant::now() + PATIENCE;
    loop {
        let Some(slot) = slot_facts(client, &config.database, name).await? else {
            say!("there is no replication slot {name:?}: nothing to drop");
            return Ok(());
        };
        if !slot.is_ours(&config.database) {
            return Err(Error::new(
                Kind::DatabaseRefuses,
                format!(
                    "replication slot {name:?} is somebody else's (plugin {:?}, database {:?}) and stays: name flagpost's own \
                     with source.slot",
                    slot.plugin, slot.database
                ),
            ));
        }
        match slot.active_pid {
            None => break,
            Some(_) if tokio::time::Instant::now() < patience => tokio::time::sleep(POLL).await,
            Some(pid) => {
                return Err(Error::new(
                    Kind::SlotInUse,
                    format!(
                        "replication slot {name:?} is being read (by the server's process {pid}): stop the daemon first, then run \
                         \"flagpost uninstall\" again"
                    ),
                ));
            }
        }
    }
    // A slot's name needs no escape: the configuration lets only letters, digits and underscores through.
    run(
        config,
        client,
        "dropping the replication slot",
        &format!("SELECT pg_drop_replication_slot('{name}');"),
    )
    .await
}

pub(super) async fn drop_publication(config: &Config, client: &Client) -> Result<()> {
    let name = &config.names.publication;
    if !has_publication(client, &config.database, name).await? {
        say!("there is no publication {name:?}: nothing to drop");
        return Ok(());
    }
    run(config, client, "dropping the publication", &format!("DROP PUBLICATION {};", quoted(name))).await
}

/// Whether there is an outbox, and the tables that have triggers then.
async fn outbox(config: &Config) -> Result<(bool, Catalog)> {
    let client = connect(&config.database).await?;
    let catalog = Catalog::read(&client, &config.database, &config.names.schema).await?;
    Ok((has_outbox(&client, &config.database).await?, catalog))
}

pub(super) async fn drop_outbox(config: &Config, client: &Client, holds_ledger: bool) -> Result<()> {
    if !has_outbox(client, &config.database).await? {
        say!("there is no outbox: nothing to drop");
        return Ok(());
    }
    if config.mode == Mode::Outbox && !holds_ledger && Ledger::is_in_use(&config.state_dir) {
        return Err(Error::new(
            Kind::SlotInUse,
            "a daemon reads the outbox: stop it first, then run \"flagpost uninstall\" again",
        ));
    }
    let catalog = Catalog::read(client, &config.database, &config.names.schema).await?;
    let step = config.outbox.uninstall_step(&catalog);
    run(config, client, &step.what, step.sql.trim_end()).await
}

async fn run(config: &Config, client: &Client, doing: &str, statement: &str) -> Result<()> {
    say!("{statement}");
    client.batch_execute(statement).await.map_err(|e| {
        if e.code().is_some_and(|code| code.code() == "42501") {
            let message = e.as_db_error().map(|db| db.message().replace('\n', " ")).unwrap_or_default();
            return Error::new(
                Kind::DatabaseRefuses,
                format!(
                    "{doing}: {message}: let the one who ran \"flagpost setup\" run it, or a superuser the output of \"flagpost \
                     uninstall --print\""
                ),
            );
        }
        sql_error(&config.database, doing, &e)
    })
}

fn remove_ledger(purge: Purge) -> Result<()> {
    let removed = purge.run()?;
    for path in &removed {
        say!("removed {}", path.display());
    }
    if removed.is_empty() {
        say!("there is no ledger: nothing to remove");
    }
    Ok(())
}

fn tell_of_ledger(config: &Config) {
    let place = config.state_dir.display();
    if Ledger::exists(&config.state_dir) {
        say!(
            "the ledger stays in {place} (events, queues, dead letters): remove it with \"flagpost uninstall --purge\""
        );
    } else {
        say!("there is no ledger in {place}");
    }
}
