//! Log lines: for people, as JSON, or as entries of systemd's journal, with the same field names in all three.
//!
//! In the journal a field's name is in capitals, as the journal wants it: `journalctl -u flagpost FEATURE=dark_mode`.

use std::env;
use std::io::{IsTerminal, stderr};
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{Config, LogFormat};
use crate::error::{Error, Result};

/// How the level is changed while we run.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging as configured. Libraries speak only when something is wrong, unless `log.level` names them.
pub fn start(config: &Config) -> Result<()> {
    let (filter, handle) = reload::Layer::new(filter(&config.log_level)?);
    let text = || fmt::layer().with_writer(stderr).with_target(false);
    let lines = match config.log_format {
        LogFormat::Auto if is_journal() => journal()?,
        LogFormat::Journald => journal()?,
        LogFormat::Auto | LogFormat::Text => text().with_ansi(stderr().is_terminal()).boxed(),
        LogFormat::Json => text().json().flatten_event(true).with_current_span(false).boxed(),
    };
    FILTER.set(handle).ok();
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|e| Error::internal(format!("logging cannot be started: {e}")))
}

/// Logs at another level from now on.
pub fn set_level(level: &str) -> Result<()> {
    let filter = filter(level)?;
    match FILTER.get() {
        Some(handle) => handle
            .reload(filter)
            .map_err(|e| Error::internal(format!("the log level cannot be changed: {e}"))),
        None => Ok(()),
    }
}

fn filter(level: &str) -> Result<EnvFilter> {
    let directives =
        if level.contains(['=', ',']) { level.to_owned() } else { format!("warn,flagpost={level}") };
    EnvFilter::try_new(&directives).map_err(|e| {
        Error::config(format!("log.level is {level:?}: {e}: use error, warn, info, debug or trace"))
    })
}

fn journal<S>() -> Result<Box<dyn Layer<S> + Send + Sync>>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let layer = tracing_journald::layer().map_err(|e| {
        Error::config(format!(
            "log.format is \"journald\", and systemd's journal cannot be reached: {e}; use \"text\" or \"json\""
        ))
    })?;
    // Without a prefix, so that fields are called what they are called elsewhere.
    Ok(layer.with_field_prefix(None).with_syslog_identifier("flagpost".into()).boxed())
}

/// Whether standard error is the journal. Source: systemd's manual, systemd.exec(5), `$JOURNAL_STREAM`.
fn is_journal() -> bool {
    let Some(stream) = env::var("JOURNAL_STREAM").ok() else { return false };
    rustix::fs::fstat(stderr()).is_ok_and(|file| stream == format!("{}:{}", file.st_dev, file.st_ino))
}
