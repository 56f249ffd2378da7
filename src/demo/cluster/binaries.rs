//! Where PostgreSQL's server binaries are. Debian keeps them off `PATH`, one directory per version.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};

/// Where the server binaries are: `FLAGPOST_PG_BINDIR`, else what `pg_config --bindir` says, else the highest version
/// under `/usr/lib/postgresql`.
///
/// # Errors
/// If there are none; the message says how to install them.
pub fn find_bindir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("FLAGPOST_PG_BINDIR").map(PathBuf::from) {
        return if is_bindir(&dir) {
            Ok(dir)
        } else {
            let message = format!(
                "FLAGPOST_PG_BINDIR is {}, which lacks initdb or postgres: correct it",
                dir.display()
            );
            Err(Error::config(message))
        };
    }
    let configured = Command::new("pg_config").arg("--bindir").output().ok();
    let configured = configured.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let packaged = || {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
        let numbered =
            versions.filter_map(|e| Some((e.file_name().to_str()?.parse::<u32>().ok()?, e.path())));
        numbered
            .map(|(n, path)| (n, path.join("bin")))
            .filter(|(_, dir)| is_bindir(dir))
            .max()
            .map(|(_, dir)| dir)
    };
    configured.filter(|dir| is_bindir(dir)).or_else(packaged).ok_or_else(|| {
        Error::config(
            "no PostgreSQL server binaries (initdb, postgres) found: install them (apt-get install postgresql) or \
             set FLAGPOST_PG_BINDIR to their directory",
        )
    })
}

fn is_bindir(dir: &Path) -> bool {
    dir.join("initdb").is_file() && dir.join("postgres").is_file()
}

/// The error for a program that cannot be started.
pub(super) fn missing(program: &Path, error: std::io::Error) -> Error {
    let message =
        format!("cannot run {}: {error}; install it: apt-get install postgresql", program.display());
    Error::config(message).caused_by(error)
}
