//! `flagpost setup`: makes what the source needs, fills the mirror from a snapshot, and shows the SQL.

mod outbox;
mod replication;

pub(super) use outbox::bring_up_to_date;
pub(super) use replication::{drop_unused_slot, renew_slot, require_identities};

use clap::{Args, ValueEnum};
use tokio_postgres::Client;

use crate::config::{Config, Mode};
use crate::error::{Error, Kind, Result};
use crate::prepare::require_mode;
use crate::source::{Catalog, Step, connect, sql_error};

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Where changes are to be read from; as source.mode, which it overrides here
    #[arg(long)]
    mode: Option<ModeName>,
    /// Only print the SQL, for a DBA to read and run
    #[arg(long)]
    print: bool,
    /// With --print: also the SQL that makes a role for the daemon
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// Begin anew: take another snapshot, fill the mirror again. What was not captured until now is not sent
    #[arg(long)]
    resnapshot: bool,
    /// Do not fill the mirror: the first `run` does
    #[arg(long)]
    no_mirror: bool,
}

/// The values of source.mode.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ModeName {
    /// Logical replication
    Replication,
    /// Triggers that write to a table
    Outbox,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Mode {
        match name {
            ModeName::Replication => Mode::Replication,
            ModeName::Outbox => Mode::Outbox,
        }
    }
}

pub(super) async fn setup(config: &Config, options: &Options) -> Result<u8> {
    let mode = options.mode.map_or(config.mode, Mode::from);
    if !options.print && !options.resnapshot {
        require_mode(config, mode)?;
    }
    let client = connect(&config.database).await?;
    let catalog = Catalog::read(&client, &config.database, &config.names.schema).await?;
    catalog.require(&config.database)?;
    match mode {
        Mode::Replication => replication::setup(config, options, client, &catalog).await?,
        Mode::Outbox => outbox::setup(config, options, &client, &catalog).await?,
    }
    if !options.print {
        if mode != config.mode {
            say!("now set source.mode = \"{}\" in the configuration", mode.name());
        }
        say!(
            "done: start it with \"flagpost run\", and set DISABLE_WEBHOOKS=true in Flagsmith's environment"
        );
    }
    Ok(0)
}

fn show(step: &Step) {
    say!("-- {}\n{}", step.what, step.sql.trim_end());
    say!();
}

pub(super) async fn run_step(config: &Config, client: &Client, step: &Step) -> Result<()> {
    show(step);
    client.batch_execute(&step.sql).await.map_err(|e| {
        let error = sql_error(&config.database, &step.what, &e);
        if e.code().is_some_and(|code| code.code() == "42501") {
            return Error::new(
                Kind::DatabaseRefuses,
                format!("{error} (or let the tables' owner run the output of \"flagpost setup --print\")"),
            );
        }
        error
    })
}
