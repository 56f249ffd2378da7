//! `flagpost pause` and `flagpost resume`: nothing more is sent to an endpoint, and what comes for it waits.

use clap::Args;

use super::endpoint;
use crate::config::Config;
use crate::delivery::redacted;
use crate::error::Result;
use crate::ledger::{Operator, Resumed};

/// Why, where nobody said.
pub(super) const NO_REASON: &str = "no reason was given";

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct PauseOptions {
    /// environment:ID, organisation:ID, configured:NAME or its exact URL
    endpoint: String,
    /// Why, for whoever looks at `status`
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
}

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct ResumeOptions {
    /// environment:ID, organisation:ID, configured:NAME or its exact URL
    endpoint: String,
}

pub(super) fn pause(config: &Config, options: &PauseOptions) -> Result<u8> {
    let reader = endpoint::reader(config)?;
    let (key, target) = endpoint::existing(config, &reader, &options.endpoint)?;
    Operator::open(&config.state_dir)?.pause(key, options.why.as_deref().unwrap_or(NO_REASON))?;
    say!("paused {key} {}", redacted(&target.url));
    say!(
        "what comes for it waits ({} now) and is not given up, until \"flagpost resume {key}\"",
        reader.pending(key)?
    );
    Ok(0)
}

pub(super) fn resume(config: &Config, options: &ResumeOptions) -> Result<u8> {
    let reader = endpoint::reader(config)?;
    let (key, target) = endpoint::existing(config, &reader, &options.endpoint)?;
    let Resumed { was_paused, was_open } = Operator::open(&config.state_dir)?.resume(key)?;
    let what = match (was_paused, was_open) {
        (true, _) => "resumed",
        (false, true) => "closed the breaker of",
        (false, false) => "not paused:",
    };
    say!("{what} {key} {}", redacted(&target.url));
    say!("what waits for it ({} now) goes out at once, if the daemon runs", reader.pending(key)?);
    Ok(0)
}
