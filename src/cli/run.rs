//! `flagpost run`: the daemon.

use std::sync::Arc;

use super::desk::PageDesk;
use crate::config::Config;
use crate::daemon;
use crate::error::Result;
use crate::ops::service;

pub(super) async fn run(config: &Config) -> Result<u8> {
    let ready = |summary: &str| {
        say!("{summary}");
        service::ready(summary);
    };
    daemon::run(config, Arc::new(PageDesk::new(config)), ready).await.map(|()| 0)
}
