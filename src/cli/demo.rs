//! `flagpost demo`: the daemon at work on a scratch cluster.

use clap::Args;

use crate::error::{Error, Result};

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {}

pub(super) async fn demo(_options: &Options) -> Result<u8> {
    Err(Error::internal("demo is not built yet"))
}
