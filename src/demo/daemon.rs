//! The daemon as a child process: this very binary with `setup`, then `run`, as an operator would start it.
//!
//! It sees nothing of the configuration of the machine that the demo runs on: its file and its variables are made here.
//! It is the leader of a process group of its own, so that Ctrl-C reaches the demo alone, which then ends it.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::daemon::STOP_WITHIN;
use crate::error::{Error, Result};

/// How long the daemon may take until it says that it is ready; a machine under load needs seconds.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at a killed process that is about to be gone.
const END_POLL: Duration = Duration::from_millis(2);
/// How long a killed process may take to be gone.
const END_DEADLINE: Duration = Duration::from_secs(2);
/// Variables that a service manager gives to a service, which must not be taken for the child's own.
const FOREIGN: &[&str] = &["STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET"];

/// How the daemon is started.
pub(super) struct Binary {
    program: PathBuf,
    database: String,
    folder: PathBuf,
}

impl Binary {
    /// This binary, for a database, with all that it keeps in `folder`. The endpoint of URL `current` gets the format
    /// of that name.
    pub(super) fn new(folder: &Path, database: String, current: &str) -> Result<Binary> {
        let program = std::env::current_exe().map_err(|e| {
            Error::internal(format!("this program cannot find itself: {e}; start it by its path"))
        })?;
        let binary = Binary { program, database, folder: folder.to_owned() };
        let text = format!("[[webhooks.endpoint]]\nurl = {current:?}\nformat = \"current\"\n");
        let written = private(&binary.config()).and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|e| cannot("write", &binary.config(), &e))?;
        Ok(binary)
    }

    /// The directory of the ledger.
    pub(super) fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    fn config(&self) -> PathBuf {
        self.folder.join("flagpost.toml")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("flagpost.log")
    }

    fn command(&self, what: &str) -> Result<Command> {
        let log = private(&self.log()).map_err(|e| cannot("open", &self.log(), &e))?;
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_foreign(name)) {
            command.env_remove(name);
        }
        command
            .arg("--config")
            .arg(self.config())
            .arg(what)
            .env("FLAGPOST_DATABASE_URL", &self.database)
            .env("FLAGPOST_STATE_DIR", self.state_dir())
            .env("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8")
            .env("FLAGPOST_OPS_LISTEN", "off")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true);
        Ok(command)
    }

    /// `flagpost setup`.
    pub(super) async fn setup(&self) -> Result<()> {
        let output = self.command("setup")?.output().await.map_err(|e| cannot("run", &self.program, &e))?;
        if output.status.success() { Ok(()) } else { Err(self.failed("setup", &output.status.to_string())) }
    }

    /// `flagpost run`, until it says that it is ready. `settle` in the place of the default.
    pub(super) async fn start(&self, settle: Option<&str>) -> Result<Daemon> {
        let mut command = self.command("run")?;
        if let Some(settle) = settle {
            command.env("FLAGPOST_SOURCE_SETTLE", settle);
        }
        let mut child = command.spawn().map_err(|e| cannot("run", &self.program, &e))?;
        let Some(out) = child.stdout.take() else {
            return Err(self.failed("run", "its output cannot be read"));
        };
        let mut daemon = Daemon { child, out: BufReader::new(out).lines(), log: self.log() };
        match tokio::time::timeout(START_DEADLINE, daemon.ready()).await {
            Ok(true) => Ok(daemon),
            Ok(false) => Err(self.failed("run", "it ended before it was ready")),
            Err(_) => Err(self.failed("run", &format!("not ready within {} s", START_DEADLINE.as_secs()))),
        }
    }

    fn failed(&self, what: &str, why: &str) -> Error {
        failed(what, why, &self.log())
    }
}

fn failed(what: &str, why: &str, log: &Path) -> Error {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n");
    Error::internal(format!("flagpost {what} failed ({why}); mend what the end of its log tells:\n{tail}"))
}

fn is_foreign(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with("FLAGPOST_") || FOREIGN.iter().any(|foreign| name == *foreign)
}

/// A file that only its owner reads, written to at its end.
fn private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::internal(format!("cannot {what} {}: {error}; free space there or set TMPDIR", path.display()))
}

/// A running daemon. Dropping it kills it.
pub(super) struct Daemon {
    child: Child,
    // Kept open: what the daemon prints must have somewhere to go.
    out: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Daemon {
    async fn ready(&mut self) -> bool {
        while let Ok(Some(line)) = self.out.next_line().await {
            if line.split_whitespace().any(|word| word.trim_matches(':') == "ready") {
                return true;
            }
        }
        false
    }

    /// The process id while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// SIGKILL: nothing is written, finished or said. Returns when the process is gone.
    pub(super) async fn kill(mut self) -> Result<()> {
        self.child
            .kill()
            .await
            .map_err(|e| Error::internal(format!("the daemon cannot be killed: {e}; try again")))
    }

    /// SIGTERM, as an operator stops it: must end by itself, in time, with exit code 0.
    pub(super) async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // It may have ended by itself; the exit code tells.
            kill_process(pid, Signal::TERM).ok();
        }
        let why = match tokio::time::timeout(STOP_WITHIN, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => return Ok(()),
            Ok(Ok(status)) => format!("told to stop, it ended with {status}"),
            Ok(Err(e)) => format!("it cannot be waited for: {e}"),
            Err(_) => format!("it did not stop within {} s of SIGTERM", STOP_WITHIN.as_secs()),
        };
        Err(failed("run", &why, &self.log))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Gone before the folder goes that it writes to. Both fail only for a process that has ended.
        self.child.start_kill().ok();
        let deadline = Instant::now() + END_DEADLINE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(END_POLL);
        }
    }
}
