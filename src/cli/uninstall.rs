//! `flagpost uninstall`: drops slot and publication, so that nothing of flagpost is left in the database.

use clap::Args;

use crate::config::Config;
use crate::error::{Error, Result};

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Only print the SQL
    #[arg(long)]
    print: bool,
}

pub(super) async fn uninstall(_config: &Config, _options: &Options) -> Result<u8> {
    Err(Error::internal("uninstall is not built yet"))
}
