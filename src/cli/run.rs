//! `flagpost run`: the daemon.

use crate::config::Config;
use crate::daemon;
use crate::error::Result;

pub(super) async fn run(config: &Config) -> Result<u8> {
    let ready = |summary: &str| {
        say!("{summary}");
    };
    daemon::run(config, ready).await.map(|()| 0)
}
