//! `check --fix`: what may be mended without asking. Only what can be done twice, loses no change, locks nobody out and drops
//! nothing: modes of flagpost's own files are tightened, and a publication that sends too much is narrowed. Everything else is
//! told with its mend, and left to whoever reads it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::code::Code;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::source::{connect, sql_error};

/// The publication's tables are locked against other changes of their definition for a moment; nobody waits longer than this.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '2s'";

/// A mend that is safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fix {
    /// Gives these files or folders of flagpost's own this mode.
    Mode(Vec<PathBuf>, u32),
    /// Runs a statement that takes columns out of the publication which nobody reads.
    Narrow(String),
}

/// Does it, and says what was done.
pub(super) async fn apply(config: &Config, code: Code, fix: Fix) -> Result<String> {
    let did = match fix {
        Fix::Mode(paths, mode) => {
            for path in &paths {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|e| {
                    Error::new(
                        Kind::LedgerIo,
                        format!(
                            "the mode of {} cannot be changed: {e}: run this as its owner",
                            path.display()
                        ),
                    )
                })?;
            }
            let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            format!("chmod {mode:o} {}", names.join(" "))
        }
        Fix::Narrow(sql) => {
            let client = connect(&config.database).await?;
            let failed = |e| sql_error(&config.database, "narrowing the publication", &e);
            client.batch_execute(LOCK_TIMEOUT).await.map_err(failed)?;
            client.batch_execute(&sql).await.map_err(failed)?;
            format!("publication {:?} sends only what is read now", config.names.publication)
        }
    };
    Ok(format!("fixed {}: {did}", code.name()))
}
