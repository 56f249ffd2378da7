//! `flagpost check`: what stands in the way, with the SQL that mends it.

use crate::config::Config;
use crate::error::{Error, Result};

pub(super) async fn check(_config: &Config, _json: bool) -> Result<u8> {
    Err(Error::internal("check is not built yet"))
}
