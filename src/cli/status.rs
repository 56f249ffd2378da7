//! `flagpost status`: lag, queues and endpoints.

use crate::config::Config;
use crate::error::{Error, Result};

pub(super) async fn status(_config: &Config, _json: bool) -> Result<u8> {
    Err(Error::internal("status is not built yet"))
}
