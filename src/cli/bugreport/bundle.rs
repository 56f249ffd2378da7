//! The file of a bug report: a plain tar of texts. Everything that goes in passes the redactor here, so that nobody can forget it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tar::{Builder, Header};

use super::redactor::Redactor;
use crate::change::Micros;
use crate::error::{Error, Kind, Result};

/// The folder in the bundle.
const FOLDER: &str = "flagpost-bugreport";

/// A bundle that is being written.
pub(super) struct Bundle {
    builder: Builder<File>,
    redactor: Redactor,
    path: PathBuf,
    names: Vec<&'static str>,
}

impl Bundle {
    /// Makes the file, for its owner only.
    pub(super) fn create(path: &Path, redactor: Redactor) -> Result<Bundle> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|e| failed(path, &e))?;
        Ok(Bundle { builder: Builder::new(file), redactor, path: path.to_owned(), names: Vec::new() })
    }

    pub(super) fn add(&mut self, name: &'static str, text: &str) -> Result<()> {
        let text = self.redactor.clean(text);
        let mut header = Header::new_gnu();
        header.set_size(u64::try_from(text.len()).unwrap_or(u64::MAX));
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(Micros::now().0 / 1_000_000).unwrap_or(0));
        let added = self.builder.append_data(&mut header, format!("{FOLDER}/{name}"), text.as_bytes());
        self.names.push(name);
        added.map_err(|e| failed(&self.path, &e))
    }

    /// Ends the file; returns what is in it.
    pub(super) fn finish(self) -> Result<Vec<&'static str>> {
        let path = self.path;
        self.builder.into_inner().and_then(|file| file.sync_all()).map_err(|e| failed(&path, &e))?;
        Ok(self.names)
    }
}

fn failed(path: &Path, error: &io::Error) -> Error {
    Error::new(
        Kind::LedgerIo,
        format!(
            "the bug report {} cannot be written: {error}: give another place with --out",
            path.display()
        ),
    )
}

/// The end of a file, as text.
pub(super) fn tail(path: &Path, bytes: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut text = Vec::new();
    file.take(bytes).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
