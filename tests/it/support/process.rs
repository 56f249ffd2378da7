//! The real binary: commands that end, and the daemon, each with a clean environment and a state directory of its own.
//!
//! Nothing of the caller's environment reaches it but `PATH`, so no `FLAGPOST_` variable of a developer's shell does. What it
//! writes is read by threads, bounded, so a full pipe never stops it whatever the test does meanwhile. A process that a
//! test has left is killed.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a command, a start or a stop may take on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(30);
/// Between two looks at a process.
const POLL: Duration = Duration::from_millis(5);
/// Lines that are kept of what a process writes: the last ones.
const LINES: usize = 2_000;

/// What a process came to.
#[derive(Debug)]
pub(crate) struct Output {
    /// Its exit code; -1 if a signal ended it.
    pub(crate) code: i32,
    /// What it wrote to standard output.
    pub(crate) stdout: String,
    /// What it wrote to standard error.
    pub(crate) stderr: String,
}

impl Output {
    /// The standard output of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn success(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// flagpost as somebody installed it: a configuration and a state directory. It outlives the processes that are run on it.
pub(crate) struct Installation {
    variables: Vec<(String, String)>,
    state: TempDir,
    /// MiB of the file system that the daemon has its state directory on.
    small_disk: Option<u32>,
    /// Where standard error goes as well as to the test, whole.
    log: Option<PathBuf>,
}

impl Installation {
    /// On the database at this URL, with an empty state directory and without the ops listener.
    pub(crate) fn new(url: &str) -> Installation {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("state");
        Installation { variables: Vec::new(), state, small_disk: None, log: None }
            .with("FLAGPOST_DATABASE_URL", url)
            .with("FLAGPOST_STATE_DIR", dir.to_str().unwrap())
            .with("FLAGPOST_OPS_LISTEN", "off")
    }

    /// With an environment variable; a later one replaces an earlier one of the same name.
    pub(crate) fn with(mut self, key: &str, value: &str) -> Installation {
        self.variables.retain(|(k, _)| k != key);
        self.variables.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Everything that a process writes to standard error goes into this file.
    pub(crate) fn log_into(mut self, file: PathBuf) -> Installation {
        self.log = Some(file);
        self
    }

    /// Every process gets its state directory on a file system of its own with so many MiB, which nobody else sees but through
    /// `/proc/PID/root`.
    pub(crate) fn on_small_disk(mut self, mebibytes: u32) -> Installation {
        self.small_disk = Some(mebibytes);
        self
    }

    /// Every process from now on gets its state directory where everybody sees it.
    pub(crate) fn on_any_disk(mut self) -> Installation {
        self.small_disk = None;
        self
    }

    /// With the ops listener at a free port.
    pub(crate) fn with_ops(self) -> Installation {
        let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        self.with("FLAGPOST_OPS_LISTEN", &addr.to_string())
    }

    /// What an environment variable is set to.
    pub(crate) fn variable(&self, key: &str) -> String {
        self.variables.iter().find(|(k, _)| k == key).unwrap().1.clone()
    }

    /// What the daemon's metrics say.
    pub(crate) async fn metrics(&self) -> String {
        let (code, text) = self.ops("/metrics").await;
        assert_eq!(code, 200, "{text}");
        text
    }

    /// What the ops listener answers.
    pub(crate) async fn ops(&self, path: &str) -> (u16, String) {
        let addr = self.variable("FLAGPOST_OPS_LISTEN");
        let mut answer = reqwest::get(format!("http://{addr}{path}")).await.unwrap();
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.unwrap() {
            text.extend_from_slice(&chunk);
        }
        (answer.status().as_u16(), String::from_utf8(text).unwrap())
    }

    /// Another database from now on.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.variables.retain(|(k, _)| k != key);
        self.variables.push((key.to_owned(), value.to_owned()));
    }

    /// The state directory; not there until something makes it.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.state.path().join("state")
    }

    /// A folder for whatever else a test needs, configuration files say.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.state.path()
    }

    fn command(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_flagpost");
        let Some(mebibytes) = self.small_disk else { return Command::new(binary) };
        let state = self.state_dir();
        std::fs::create_dir_all(&state).unwrap();
        let mount = format!("mount -t tmpfs -o size={mebibytes}m tmpfs '{}' && exec \"$@\"", state.display());
        let mut command = Command::new("unshare");
        // Who is not root may mount in a user namespace of their own.
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--mount", "sh", "-c", &mount, "sh", binary]);
        command
    }

    fn spawn(&self, arguments: &[&str]) -> Process {
        let mut command = self.command();
        command.args(arguments).env_clear().current_dir(self.state.path());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.variables.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = Written::collect(child.stdout.take().unwrap());
        let file = self
            .log
            .as_ref()
            .map(|path| std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap());
        let stderr = Written::collect_into(child.stderr.take().unwrap(), file);
        Process { child, stdout, stderr }
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Output {
        self.spawn(arguments).ended(LONG).await
    }
}

/// `flagpost run`. Killed when it is dropped.
pub(crate) struct Daemon(Process);

impl Daemon {
    /// Starts it and waits until it says that it is ready.
    pub(crate) async fn start(installation: &Installation) -> Daemon {
        Daemon::try_start(installation).await.unwrap_or_else(|output| panic!("it ended: {output:?}"))
    }

    /// Starts it and waits until it says that it is ready, or ends.
    pub(crate) async fn try_start(installation: &Installation) -> Result<Daemon, Output> {
        Daemon::try_start_as(installation, &["run"]).await
    }

    /// The same of another command that stays, `shadow`.
    pub(crate) async fn start_as(installation: &Installation, arguments: &[&str]) -> Daemon {
        let started = Daemon::try_start_as(installation, arguments).await;
        started.unwrap_or_else(|output| panic!("it ended: {output:?}"))
    }

    async fn try_start_as(installation: &Installation, arguments: &[&str]) -> Result<Daemon, Output> {
        let mut process = installation.spawn(arguments);
        let deadline = Instant::now() + LONG;
        loop {
            // The order matters: what a process wrote before its end is there after its end has been seen.
            let has_ended = process.has_ended();
            if process
                .stdout
                .text()
                .lines()
                .any(|line| line.split([' ', ':', '"']).any(|word| word == "ready"))
            {
                return Ok(Daemon(process));
            }
            if has_ended {
                return Err(process.ended(LONG).await);
            }
            assert!(Instant::now() < deadline, "not ready: {}", process.stderr.text());
            tokio::time::sleep(POLL).await;
        }
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.0.child.id()
    }

    /// Another command that stays, at once: `log --follow`.
    pub(crate) fn at_once(installation: &Installation, arguments: &[&str]) -> Daemon {
        Daemon(installation.spawn(arguments))
    }

    /// The last lines that it wrote to standard output.
    pub(crate) fn stdout(&self) -> String {
        self.0.stdout.text()
    }

    /// The last lines that it wrote to standard error.
    pub(crate) fn stderr(&self) -> String {
        self.0.stderr.text()
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(mut self) {
        self.0.kill();
    }

    /// Tells it to stop and waits for its end.
    pub(crate) async fn terminate(self) -> Output {
        self.signal(Signal::TERM).await
    }

    /// The same as Ctrl-C does it.
    pub(crate) async fn interrupt(self) -> Output {
        self.signal(Signal::INT).await
    }

    /// Tells it to read its configuration again.
    pub(crate) fn hang_up(&self) {
        kill_process(Pid::from_raw(self.pid().cast_signed()).unwrap(), Signal::HUP).unwrap();
    }

    async fn signal(self, signal: Signal) -> Output {
        let pid = Pid::from_raw(self.pid().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
        self.0.ended(LONG).await
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(self, within: Duration) -> Output {
        self.0.ended(within).await
    }
}

struct Process {
    child: Child,
    stdout: Written,
    stderr: Written,
}

impl Process {
    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    async fn ended(mut self, within: Duration) -> Output {
        let deadline = Instant::now() + within;
        while !self.has_ended() {
            assert!(Instant::now() < deadline, "it has not ended: {}", self.stderr.text());
            tokio::time::sleep(POLL).await;
        }
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        Output { code, stdout: self.stdout.all(), stderr: self.stderr.all() }
    }

    fn kill(&mut self) {
        // Both fail only for a process that has ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a process has written to a pipe so far, read by a thread.
struct Written {
    lines: Arc<Mutex<VecDeque<String>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Written {
    fn collect(pipe: impl Read + Send + 'static) -> Written {
        Written::collect_into(pipe, None)
    }

    fn collect_into(pipe: impl Read + Send + 'static, mut file: Option<std::fs::File>) -> Written {
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                if let Some(file) = &mut file {
                    file.write_all(&line).and_then(|()| file.write_all(b"\n")).unwrap();
                }
                let mut kept = lock(&kept);
                if kept.len() == LINES {
                    kept.pop_front();
                }
                kept.push_back(String::from_utf8_lossy(&line).into_owned());
            }
        });
        Written { lines, reader: Some(reader) }
    }

    fn text(&self) -> String {
        lock(&self.lines).iter().map(|line| format!("{line}\n")).collect()
    }

    /// Everything, after the process has ended.
    fn all(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.text()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits so long at the most until it is so.
pub(crate) async fn until(within: Duration, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}: not within {within:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
