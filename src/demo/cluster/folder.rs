//! The folder of a scratch cluster, and the removal of folders whose owner died.
//!
//! The owner holds a lock on the file `lock` for as long as it lives; the kernel lets go of it however the owner ends.
//! So a lock that can be had means a dead owner: surer than the process id in the name, which another process can have
//! by now. The file gets its name only when it is locked, so a folder in the making is not taken for a dead one.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::account::Account;
use crate::error::{Error, Result};

const PREFIX: &str = "flagpost-pg-";
/// How long an orphaned server may take to end before it is killed.
const ORPHAN_DEADLINE: Duration = Duration::from_secs(5);
/// The names that one process tries before it gives up: each taken one is a folder somebody else made.
const NAMES: u32 = 10_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A folder under the temporary directory, removed when this is dropped.
pub(super) struct Folder {
    path: PathBuf,
    lock: File,
}

impl Folder {
    pub(super) fn create(account: Account) -> Result<Folder> {
        let temp = std::env::temp_dir();
        let temp = temp.canonicalize().map_err(|e| failed("find", &temp, e))?;
        for _ in 0..NAMES {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = temp.join(format!("{PREFIX}{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    let lock = lock_new(&path).map_err(|e| failed("lock", &path, e))?;
                    let folder = Folder { path, lock };
                    account.own(&folder.path).map_err(|e| failed("give away", &folder.path, e))?;
                    return Ok(folder);
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(failed("create", &path, e)),
            }
        }
        Err(Error::internal(format!("no free folder name in {}: remove {PREFIX}* there", temp.display())))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.path.join("data")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// What the owner's death does.
    #[cfg(test)]
    pub(super) fn unlock(&self) {
        self.lock.unlock().unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        remove(&self.path);
        // Only now may somebody else take the folder for a dead one. It goes with the file anyway.
        self.lock.unlock().ok();
    }
}

fn lock_new(folder: &Path) -> std::io::Result<File> {
    let unnamed = folder.join("lock.new");
    let file = File::create_new(&unnamed)?;
    file.lock()?;
    std::fs::rename(&unnamed, folder.join("lock"))?;
    Ok(file)
}

/// Children of a killed postmaster can still make a file while the folder goes: so more than one attempt.
fn remove(path: &Path) {
    for _ in 0..20 {
        match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                std::thread::sleep(Duration::from_millis(10));
            }
            // Gone, or not ours to remove; the next start tries again.
            _ => return,
        }
    }
}

/// Ends the servers and removes the folders of owners that died. Folders of other accounts are left alone, and so is
/// every process that does not run on such a folder.
pub(super) fn sweep(account: Account) {
    let Ok(entries) = std::env::temp_dir().canonicalize().and_then(std::fs::read_dir) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|m| m.is_dir() && m.uid() == account.uid);
        let path = entry.path();
        let lock = if ours { File::open(path.join("lock")).ok() } else { None };
        if let Some(lock) = lock.filter(|lock| lock.try_lock().is_ok()) {
            end_orphan(&path.join("data"));
            remove(&path);
            drop(lock);
        }
    }
}

fn end_orphan(data: &Path) {
    let pid_file = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let Some(pid) = pid_file.lines().next().and_then(|line| line.parse::<u32>().ok()) else { return };
    let data = data.display().to_string();
    let runs = || command_line(pid).contains(&data);
    let signal = |signal| {
        if let Some(pid) = Pid::from_raw(pid.cast_signed()).filter(|_| runs()) {
            kill_process(pid, signal).ok();
        }
    };
    signal(Signal::QUIT);
    let deadline = Instant::now() + ORPHAN_DEADLINE;
    while runs() {
        if Instant::now() > deadline {
            return signal(Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The command line of a process; empty for one that is gone, and where there is no `/proc`: then an orphan ends by
/// itself, within a minute of missing its files.
pub(super) fn command_line(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

pub(super) fn failed(what: &str, path: &Path, error: std::io::Error) -> Error {
    let message = format!("cannot {what} {}: {error}; free space there or set TMPDIR", path.display());
    Error::internal(message).caused_by(error)
}
