//! `flagpost check`: what stands in the way, with the SQL or the command that mends it. It changes nothing unless it is told to
//! (`--fix`).
//!
//! A check that cannot run because an earlier one failed is left out: one obstacle, one line.

mod certificates;
mod clock;
mod code;
mod configuration;
mod cost;
mod database;
mod disk;
mod endpoints;
mod fix;
mod flagsmith;
mod ledger;
mod mode;
mod outbox;
mod replication;
mod report;
mod role;
mod session;
mod tables;
mod unit;
mod upkeep;

use std::time::Duration;

use clap::Args;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::ledger::Ledger;
use code::Code;
use ledger::Found;
use report::Report;

/// A service manager waits for `--quick`; whoever does not answer within this is not asked any further.
const QUICK_WITHIN: Duration = Duration::from_secs(5);

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Look only at what decides whether the daemon can start, for 5 s at most; a database that is not reachable now is no failure
    #[arg(long, conflicts_with_all = ["full", "fix"])]
    quick: bool,
    /// Compare every index of the ledger with its table too, and read through a ledger of any size
    #[arg(long)]
    full: bool,
    /// Mend what can be mended without risk (file modes, a publication that sends too much), then check
    #[arg(long)]
    fix: bool,
    /// Let warnings count as failures: exit code 1 where there is nothing graver
    #[arg(long)]
    strict: bool,
    /// Print every code with what it looks at, and check nothing
    #[arg(long)]
    list: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `--list` needs no configuration: prints the list and tells that it did.
pub(super) fn has_listed(options: &Options) -> bool {
    if options.list {
        code::print(options.json);
    }
    options.list
}

pub(super) async fn check(config: &Config, options: &Options) -> Result<u8> {
    let mut report = if options.quick { quick(config).await } else { whole(config, options.full).await };
    if options.fix {
        let fixed = mend(config, &mut report).await;
        report = whole(config, options.full).await;
        report.set_fixed(fixed);
    }
    if options.json {
        let text = serde_json::to_string_pretty(&report.to_json())
            .map_err(|e| Error::internal(format!("the report cannot be written as JSON: {e}")))?;
        say!("{text}");
    } else {
        report.print_text(options.quick);
    }
    Ok(if options.strict { report.strict_exit_code() } else { report.exit_code() })
}

/// Everything. `full` reads through a ledger of any size.
pub(super) async fn whole(config: &Config, full: bool) -> Report {
    let mut report = Report::default();
    configuration::check(config, &mut report).await;
    let ledger = ledger::check_files(config, &mut report);
    disk::check(config, &mut report);
    upkeep::check_room(&config.state_dir, &mut report);
    // Also of a ledger that cannot be used: it may be damaged.
    if Ledger::exists(&config.state_dir) {
        upkeep::check(config, full, &mut report);
    }
    let listeners = essentials(config, ledger.as_ref(), Depth::Whole, &mut report).await;
    if let Some(listeners) = listeners {
        endpoints::check(config, &listeners, &mut report).await;
    }
    clock::check_synchronised(&mut report).await;
    unit::check(&mut report).await;
    report.sort();
    report
}

/// What decides whether `run` can start. A database that cannot be reached is a warning: `run` finds that out too, and whoever
/// started it tries again.
async fn quick(config: &Config) -> Report {
    let mut report = Report::patient();
    let ledger = ledger::check_files(config, &mut report);
    let looking = essentials(config, ledger.as_ref(), Depth::Quick, &mut report);
    if tokio::time::timeout(QUICK_WITHIN, looking).await.is_err() {
        report.warn(
            Code::Connect,
            format!(
                "{} has not answered everything within {} s: the rest was not looked at",
                config.database.shown(),
                QUICK_WITHIN.as_secs()
            ),
            "flagpost check  -- waits longer",
        );
    }
    report.sort();
    report
}

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// What decides whether the daemon can start.
    Quick,
    /// That, what it costs, and what may become of it.
    Whole,
}

/// The database, and whether the ledger fits it. Returns the endpoints, where they can be read.
async fn essentials(
    config: &Config,
    ledger: Option<&Found>,
    depth: Depth,
    report: &mut Report,
) -> Option<Vec<crate::source::Listener>> {
    let view = database::check(config, ledger, report).await?;
    if depth == Depth::Whole {
        session::check(config, &view, report).await;
        role::check(config, &view.client, report).await;
        cost::check(config, &view, report).await;
        clock::check_skew(config, &view.client, report).await;
    }
    let found = tables::check(config, &view.client, ledger, depth, report).await;
    ledger::check_fit(config, ledger, &view, report);
    found
}

/// Does what is safe, and says what was done.
async fn mend(config: &Config, report: &mut Report) -> Vec<String> {
    let mut done = Vec::new();
    for (code, fix) in report.take_fixes() {
        done.push(match fix::apply(config, code, fix).await {
            Ok(did) => did,
            Err(error) => format!("not fixed {}: {error}", code.name()),
        });
    }
    done
}
