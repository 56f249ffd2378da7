//! `flagpost demo`: the daemon at work on a scratch cluster. Ends cleanly on Ctrl-C too: what it made goes with it.

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::demo::play::play;
use crate::error::{Error, Result};

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Leave the database and the ledger for a look, and say where
    #[arg(long)]
    keep: bool,
}

pub(super) async fn demo(options: &Options) -> Result<u8> {
    tokio::select! {
        // Boxed: it is large, and made once.
        played = Box::pin(play(options.keep)) => played.map(|is_well| u8::from(!is_well)),
        stopped = told_to_stop() => stopped,
    }
}

async fn told_to_stop() -> Result<u8> {
    let listen = |kind| {
        signal(kind).map_err(|e| Error::internal(format!("signals cannot be listened to: {e}; try again")))
    };
    let (mut interrupt, mut terminate, mut hangup) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Err(Error::internal("stopped in the middle, nothing is left behind: run \"flagpost demo\" again"))
}
