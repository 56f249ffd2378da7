//! Log lines: on standard error, for people or as JSON, with the same field names in both.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};
use crate::error::{Error, Result};

/// Starts logging as configured. Libraries speak only when something is wrong, unless `log.level` names them.
pub fn start(config: &Config) -> Result<()> {
    let level = &config.log_level;
    let directives =
        if level.contains(['=', ',']) { level.clone() } else { format!("warn,flagpost={level}") };
    let filter = EnvFilter::try_new(&directives).map_err(|e| {
        Error::config(format!("log.level is {level:?}: {e}: use error, warn, info, debug or trace"))
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_target(false);
    let started = match config.log_format {
        LogFormat::Text => builder.with_ansi(stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    started.map_err(|e| Error::internal(format!("logging cannot be started: {e}")))
}
