//! `flagpost recover`: after the source was lost, receivers are brought to what the database shows now.
//!
//! The source is made anew as `setup --resnapshot` does it; what the new snapshot shows otherwise than the mirror is recorded as
//! events, marked as reconstructed. From the first change of the source on the ledger is marked as broken, until all of it is
//! recorded in one ledger transaction: whatever interrupts it, nobody goes on in between, and the same command does it again.

use clap::Args;

use super::moment;
use super::printable::one_line;
use super::setup::{bring_up_to_date, drop_unused_slot, renew_slot};
use super::view::spoken;
use crate::config::{Config, Mode};
use crate::error::{Error, Kind, Result};
use crate::event::Event;
use crate::ledger::{Identity, Ledger};
use crate::mirror::Mirror;
use crate::prepare::{identity_of, slot_identity, take_outbox};
use crate::recover::{Comparison, compare, record, require_recoverable};
use crate::schema::{Table, environment};
use crate::source::{Catalog, connect, exported_view, present_view};

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Only list what would be sent: nothing is changed, in the database or here
    #[arg(long)]
    dry_run: bool,
    /// The database was moved: it is the same Flagsmith in another cluster (`pg_upgrade`, a restore) or under another name
    #[arg(long)]
    moved: bool,
}

pub(super) async fn recover(config: &Config, options: &Options) -> Result<u8> {
    if !Ledger::exists(&config.state_dir) {
        return Err(Error::new(
            Kind::LedgerMismatch,
            format!(
                "there is no ledger in {}, and nobody knows what receivers were told: run \"flagpost setup\"",
                config.state_dir.display()
            ),
        ));
    }
    // It tells whether a daemon is running, before anything else is done.
    let ledger = Ledger::open(&config.state_dir)?;
    let known = require_recoverable(&ledger)?;
    let client = connect(&config.database).await?;
    let catalog = Catalog::read(&client, &config.database, &config.names.schema).await?;
    catalog.require(&config.database)?;
    let here = identity_of(config, &client, known.slot.clone()).await?;
    require_same_database(config, options, &known, &here)?;
    if options.dry_run {
        drop(client);
        let view = present_view(&config.database).await?;
        let found = compare(config, &ledger, &catalog, &here, view).await?;
        report(&found, "would be sent");
        say!("nothing was changed: \"flagpost recover\" does it");
        return Ok(0);
    }
    match config.mode {
        Mode::Replication => {
            let renewed = renew_slot(config, client, &catalog, || ledger.begin_recovery()).await?;
            let identity = slot_identity(config, &renewed.replication);
            let recovered = async {
                let view = exported_view(&config.database, &renewed.exported).await?;
                let found = compare(config, &ledger, &catalog, &identity, view).await?;
                finish(config, ledger, identity, found).await
            };
            let recovered = recovered.await;
            if recovered.is_err() {
                drop_unused_slot(config).await;
            }
            recovered?;
        }
        Mode::Outbox => {
            ledger.begin_recovery()?;
            bring_up_to_date(config, &client, &catalog).await?;
            let (identity, view) = take_outbox(config, &client).await?;
            let found = compare(config, &ledger, &catalog, &identity, view).await?;
            finish(config, ledger, identity, found).await?;
        }
    }
    say!("done: start it with \"flagpost run\"");
    Ok(0)
}

/// What another database shows would be told as the end of every flag.
fn require_same_database(
    config: &Config,
    options: &Options,
    known: &Identity,
    here: &Identity,
) -> Result<()> {
    if options.moved || (known.system_id == here.system_id && known.database == here.database) {
        return Ok(());
    }
    Err(Error::new(
        Kind::LedgerMismatch,
        format!(
            "the ledger in {} belongs to cluster {}, database {:?}, and this is cluster {}, database {:?}: correct database.url or \
             state.dir, or, if it is the same Flagsmith moved here (pg_upgrade, a restore), run \"flagpost recover --moved\"",
            config.state_dir.display(),
            known.system_id,
            known.database,
            here.system_id,
            here.database
        ),
    ))
}

async fn finish(config: &Config, ledger: Ledger, identity: Identity, found: Comparison) -> Result<()> {
    let said = Said::of(&found, "to be sent");
    record(config, ledger, identity, found).await?;
    said.print();
    Ok(())
}

fn report(found: &Comparison, what: &str) {
    Said::of(found, what).print();
}

/// What is told of a comparison.
struct Said(Vec<String>);

impl Said {
    fn of(found: &Comparison, what: &str) -> Said {
        let (since, until) = (moment::exact(found.since), moment::exact(found.until));
        let mut lines = vec![
            format!("compared what receivers were told last ({since}) with the database ({until})"),
            format!("rows of the mirror that differ: {}", found.rows()),
            format!("events {what}, marked as reconstructed: {}", found.events.len()),
        ];
        lines.extend(found.events.iter().map(|(event, to)| line(event, to.len(), found.mirror())));
        Said(lines)
    }

    fn print(&self) {
        self.0.iter().for_each(|line| say!("{line}"));
    }
}

/// `FLAG_UPDATED updated segment  Production/dark_mode  2 endpoints`
fn line(event: &Event, endpoints: usize, mirror: &Mirror) -> String {
    let environment = event.environment.map(|id| {
        let row = mirror.row_by_id(Table::Environment, id);
        let name = row.and_then(|row| row.text(environment::NAME)).map(str::to_owned);
        name.unwrap_or_else(|| format!("#{id}"))
    });
    let subject: Vec<String> = environment.into_iter().chain(event.feature_name.clone()).collect();
    let whom = if endpoints == 1 { "endpoint" } else { "endpoints" };
    format!(
        "  {} {}  {}  {endpoints} {whom}",
        event.kind.name(),
        spoken(&event.action.to_string()),
        one_line(&subject.join("/"))
    )
}
