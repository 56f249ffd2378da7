//! `flagpost run`: the daemon.

use std::io::Write;

use crate::config::Config;
use crate::daemon;
use crate::error::Result;

pub(super) async fn run(config: &Config) -> Result<u8> {
    let ready = |summary: &str| {
        let mut out = std::io::stdout();
        // Nobody may be listening; that is no reason to stop.
        writeln!(out, "{summary}").and_then(|()| out.flush()).ok();
    };
    daemon::run(config, ready).await.map(|()| 0)
}
