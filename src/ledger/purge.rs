//! Removing a ledger for good: the files that this program made in the state directory and nothing else, and only while
//! no daemon works with them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{FILE, KEY_FILE, LOCK_FILE, lock};
use crate::error::{Error, Kind, Result};

/// The right to remove a ledger: as long as it is held, no daemon can start on the state directory.
pub struct Purge {
    directory: PathBuf,
    _lock: File,
}

impl Purge {
    /// Takes the lock; `None` where there is no state directory. `Err` while a daemon has it.
    pub fn begin(directory: &Path) -> Result<Option<Purge>> {
        if !directory.exists() {
            return Ok(None);
        }
        Ok(Some(Purge { directory: directory.to_owned(), _lock: lock(directory)? }))
    }

    /// Removes the files, and the directory if nothing else is in it. Returns what was removed.
    pub fn run(self) -> Result<Vec<PathBuf>> {
        // The lock's file goes last: until then nobody else comes in.
        let names = [
            FILE.to_owned(),
            format!("{FILE}-wal"),
            format!("{FILE}-shm"),
            KEY_FILE.into(),
            LOCK_FILE.into(),
        ];
        let mut removed = Vec::new();
        for path in names.map(|name| self.directory.join(name)) {
            match fs::remove_file(&path) {
                Ok(()) => removed.push(path),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => {
                    return Err(Error::new(
                        Kind::LedgerIo,
                        format!("{} cannot be removed: {e}: remove it by hand", path.display()),
                    ));
                }
            }
        }
        // It may hold files of others, or be a mount point: then it stays.
        fs::remove_dir(&self.directory).ok();
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    #[test]
    fn only_what_flagpost_made_goes_and_only_without_a_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        assert!(Purge::begin(&state).unwrap().is_none());
        let ledger = Ledger::open(&state).unwrap();
        assert!(Purge::begin(&state).is_err());
        drop(ledger);
        fs::write(state.join("notes"), "mine").unwrap();
        let removed = Purge::begin(&state).unwrap().unwrap().run().unwrap();
        assert!(removed.iter().any(|path| path.ends_with(FILE)));
        let left: Vec<_> = fs::read_dir(&state).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["notes"]);
    }
}
