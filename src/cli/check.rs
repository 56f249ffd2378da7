//! `flagpost check`: what stands in the way, with the SQL or the command that mends it. It changes nothing.
//!
//! A check that cannot run because an earlier one failed is left out: one obstacle, one line.

mod database;
mod endpoints;
mod ledger;
mod mode;
mod outbox;
mod replication;
mod report;
mod tables;
mod upkeep;

use clap::Args;

use crate::config::Config;
use crate::error::Result;
use crate::ledger::Ledger;
use report::Report;

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Compare every index of the ledger with its table too, and read through a ledger of any size
    #[arg(long)]
    full: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn check(config: &Config, options: &Options) -> Result<u8> {
    let mut report = Report::default();
    let ledger = ledger::check_files(config, &mut report);
    // Also of a ledger that cannot be used: it may be damaged.
    if Ledger::exists(&config.state_dir) {
        upkeep::check(config, options.full, &mut report);
    }
    let view = database::check(config, ledger.as_ref(), &mut report).await;
    let mut listeners = None;
    if let Some(view) = &view {
        listeners = tables::check(config, &view.client, ledger.as_ref(), &mut report).await;
        ledger::check_fit(config, ledger.as_ref(), view, &mut report);
    }
    if let Some(listeners) = listeners {
        endpoints::check(config, &listeners, &mut report).await;
    }
    report.sort();
    if options.json {
        report.print_json()?;
    } else {
        report.print_text();
    }
    Ok(report.exit_code())
}
