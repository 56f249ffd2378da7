//! `flagpost run`: the daemon.

use std::sync::Arc;

use super::desk::PageDesk;
use crate::config::Config;
use crate::daemon;
use crate::error::Result;
use crate::ops::service;

/// `load` reads the configuration again when the daemon is told to (SIGHUP).
pub(super) async fn run(
    config: &Config,
    load: impl Fn() -> Result<Config> + Send + Sync + 'static,
) -> Result<u8> {
    let ready = |summary: &str| {
        say!("{summary}");
        service::ready(summary);
    };
    daemon::run(config, load, |current| Arc::new(PageDesk::new(current)), ready).await.map(|()| 0)
}
