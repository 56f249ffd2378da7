//! A scratch PostgreSQL cluster: `initdb`, then `postgres` as a child of this process, in a folder that goes when the
//! [`Cluster`] goes.
//!
//! Owns the server process, its folder and its log; refuses to touch a cluster that it did not make. It is built to be
//! thrown away: `fsync` is off, so what it says about durability holds for a crash of the server, not of the machine.
//!
//! ```text
//! $TMPDIR/flagpost-pg-<pid>-<n>/      0700, owned by the account that the server runs under
//!     lock                            locked while the owner lives; see `folder`
//!     log                             what the server wrote to its standard error
//!     .s.PGSQL.<port>                 Unix socket
//!     data/                           the data directory
//! ```
//!
//! The server listens on 127.0.0.1 and on the socket. The superuser's own connections take the socket: only this
//! cluster can answer there, whoever else got hold of a port.
//! Source: PostgreSQL manual, "Server Setup and Operation" (signals: "Shutting Down the Server").

mod account;
mod binaries;
mod folder;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::{Client, NoTls};

use crate::error::{Error, Kind, Result};
use account::Account;
pub use binaries::find_bindir;
use binaries::missing;
use folder::Folder;

/// The superuser of every scratch cluster.
pub const SUPERUSER: &str = "postgres";

/// How long a server may take until it answers; a slow disk under a full machine needs seconds, not minutes.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long [`Cluster::stop`] waits before it kills: a fast shutdown waits for replication clients to catch up.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How long `Drop` waits before it kills.
const DROP_DEADLINE: Duration = Duration::from_secs(5);
/// Between two attempts to connect to a starting server.
const START_POLL: Duration = Duration::from_millis(20);
/// Between two looks at a process that ends.
const STOP_POLL: Duration = Duration::from_millis(5);
/// The part of the log that an error shows.
const LOG_TAIL: u64 = 4 * 1024;

/// Settings of every scratch cluster; [`Options::settings`] come after them and win.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("wal_level", "logical"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    ("max_connections", "50"),
    ("shared_buffers", "16MB"),
    // The cluster does not outlive this process, so it need not outlive the machine.
    ("fsync", "off"),
    // The same everywhere, whatever the machine's zone.
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
];

/// How clients prove who they are, on the socket and on 127.0.0.1.
#[derive(Clone, Default)]
pub enum Auth {
    /// Not at all.
    #[default]
    Trust,
    /// `scram-sha-256`; this is the superuser's password.
    Scram {
        /// Password of [`SUPERUSER`].
        password: String,
    },
}

/// A server certificate and its key, as PEM text.
#[derive(Clone)]
pub struct Tls {
    /// Contents of `server.crt`: the server's certificate, then any intermediate ones.
    pub certificate: String,
    /// Contents of `server.key`.
    pub key: String,
}

/// What a scratch cluster shall be like; the default suits logical replication.
#[derive(Clone, Default)]
pub struct Options {
    /// Lines for `postgresql.conf`, after the defaults.
    pub settings: Vec<(String, String)>,
    /// How clients prove who they are.
    pub auth: Auth,
    /// Turns `ssl` on.
    pub tls: Option<Tls>,
    /// Where `initdb` and `postgres` are; otherwise [`find_bindir`] looks.
    pub bindir: Option<PathBuf>,
}

impl Options {
    /// Adds a setting to `postgresql.conf`.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// How [`Cluster::stop`] asks the server to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Ends sessions, lets replication clients catch up, writes a checkpoint.
    Fast,
    /// Ends at once without a checkpoint: the next start recovers from the WAL.
    Immediate,
}

/// A running (or stopped, or killed) scratch cluster. Dropping it ends the server and removes the folder.
pub struct Cluster {
    // Before `folder`: fields are dropped in this order, and a running server would write into a removed folder.
    server: Server,
    folder: Folder,
    account: Account,
    bindir: PathBuf,
    auth: Auth,
    port: u16,
}

impl Cluster {
    /// Makes a cluster, starts its server on a free port and waits until it answers.
    ///
    /// Clusters whose owner died without dropping them are removed first.
    ///
    /// # Errors
    /// If the server binaries are missing, or `initdb` or the server fails; the error then shows the end of the log.
    pub async fn start(options: Options) -> Result<Cluster> {
        let bindir = match &options.bindir {
            Some(dir) => dir.clone(),
            None => find_bindir()?,
        };
        let account = Account::for_server()?;
        // Waits for the servers that it ends.
        tokio::task::spawn_blocking(move || folder::sweep(account))
            .await
            .map_err(|e| Error::internal(format!("the search for dead scratch clusters failed: {e}")))?;
        let folder = Folder::create(account)?;
        let mut cluster = Cluster {
            server: Server(None),
            folder,
            account,
            bindir,
            auth: options.auth.clone(),
            port: free_port()?,
        };
        cluster.initdb().await?;
        cluster.configure(&options)?;
        cluster.boot(true).await?;
        Ok(cluster)
    }

    /// The URL under which `user` reaches `database` over TCP; it carries the superuser's password where there is one.
    pub fn url(&self, user: &str, database: &str) -> String {
        match &self.auth {
            Auth::Scram { password } if user == SUPERUSER => self.url_with_password(user, password, database),
            _ => format!("postgresql://{}@127.0.0.1:{}/{}", encoded(user), self.port, encoded(database)),
        }
    }

    /// Like [`Cluster::url`], for a role with a password of its own.
    pub fn url_with_password(&self, user: &str, password: &str, database: &str) -> String {
        let (user, password, database) = (encoded(user), encoded(password), encoded(database));
        format!("postgresql://{user}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// The TCP port on 127.0.0.1; it stays the same over [`Cluster::restart`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder that holds everything, the Unix socket too.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.data_dir()
    }

    /// The postmaster's process id while the server runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.0.as_ref().map(Child::id)
    }

    /// Stops the server and waits until it is gone. A stopped server is left alone.
    ///
    /// # Errors
    /// If it had to be killed, or cannot be signalled.
    pub async fn stop(&mut self, mode: StopMode) -> Result<()> {
        self.server.signal(match mode {
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        });
        let deadline = Instant::now() + STOP_DEADLINE;
        while !self.server.has_ended() {
            if Instant::now() > deadline {
                self.server.kill();
                return Err(Error::internal(format!(
                    "postgres did not stop within {} s and was killed; its log ends in:\n{}",
                    STOP_DEADLINE.as_secs(),
                    self.log_tail()
                )));
            }
            tokio::time::sleep(STOP_POLL).await;
        }
        Ok(())
    }

    /// Starts the server again on the same port, after a fast shutdown if it runs.
    ///
    /// # Errors
    /// As [`Cluster::stop`] and [`Cluster::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.stop(StopMode::Fast).await?;
        self.boot(false).await
    }

    /// Kills the postmaster, as an out-of-memory killer would; its children end when they notice.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// The end of the server's log.
    pub fn log_tail(&self) -> String {
        tail(&self.folder.log(), 0)
    }

    /// A connection of the superuser to `database`; a task of its own drives it until the client is dropped.
    ///
    /// # Errors
    /// If the server does not answer or refuses.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        self.try_connect(database).await.map_err(|e| {
            let kind =
                if e.as_db_error().is_some() { Kind::DatabaseRefuses } else { Kind::DatabaseUnreachable };
            let message =
                format!("cannot connect to database \"{database}\" of the scratch cluster: {e}; see its log");
            Error::new(kind, message).caused_by(e)
        })
    }

    /// Makes an empty database.
    ///
    /// # Errors
    /// If it exists, or the server does not answer.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        let client = self.connect("postgres").await?;
        let statement = format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""));
        client.batch_execute(&statement).await.map_err(|e| {
            let message =
                format!("cannot create database \"{name}\" in the scratch cluster: {e}; see its log");
            Error::new(Kind::DatabaseRefuses, message).caused_by(e)
        })
    }

    async fn try_connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.folder.path()).port(self.port).user(SUPERUSER).dbname(database);
        if let Auth::Scram { password } = &self.auth {
            config.password(password);
        }
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(async move {
            // The client sees the same error on its next call.
            connection.await.ok();
        });
        Ok(client)
    }

    async fn initdb(&self) -> Result<()> {
        let program = self.bindir.join("initdb");
        let mut command = tokio::process::Command::new(&program);
        command.args(["--no-sync", "-E", "UTF8", "--locale=C", "-U", SUPERUSER]);
        command
            .arg("-D")
            .arg(self.folder.data_dir())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command.current_dir(self.folder.path());
        let password_file = self.folder.path().join("password");
        match &self.auth {
            Auth::Trust => command.args(["--auth", "trust"]),
            Auth::Scram { password } => {
                write_private(&password_file, password, self.account)?;
                command.args(["--auth", "scram-sha-256"]).arg("--pwfile").arg(&password_file)
            }
        };
        self.account.apply(command.as_std_mut());
        let output = command.output().await.map_err(|e| missing(&program, e))?;
        std::fs::remove_file(&password_file).ok();
        if output.status.success() {
            return Ok(());
        }
        Err(Error::internal(format!(
            "initdb failed ({}): {}; the temporary directory must be open to user id {}: set TMPDIR to one that is",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            self.account.uid
        )))
    }

    fn configure(&self, options: &Options) -> Result<()> {
        let mut lines = String::new();
        let mut set = |key: &str, value: &str| {
            lines.push_str(&format!("{key} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''")));
        };
        for (key, value) in SETTINGS {
            set(key, value);
        }
        set("unix_socket_directories", &self.folder.path().display().to_string());
        if let Some(tls) = &options.tls {
            let data = self.folder.data_dir();
            write_private(&data.join("server.crt"), &tls.certificate, self.account)?;
            write_private(&data.join("server.key"), &tls.key, self.account)?;
            set("ssl", "on");
        }
        for (key, value) in &options.settings {
            set(key, value);
        }
        let path = self.folder.data_dir().join("postgresql.conf");
        let written =
            OpenOptions::new().append(true).open(&path).and_then(|mut f| f.write_all(lines.as_bytes()));
        written.map_err(|e| folder::failed("write", &path, e))
    }

    /// Starts the server and waits until it answers. Between the choice of a port and its use somebody else can take
    /// it: then another is taken, where nobody knows the first one yet.
    async fn boot(&mut self, may_change_port: bool) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let log_start = std::fs::metadata(self.folder.log()).map_or(0, |m| m.len());
            self.spawn()?;
            let Err(why) = self.answers(deadline).await else { return Ok(()) };
            let log = tail(&self.folder.log(), log_start);
            let port_taken = log.contains("Address already in use");
            // Children of a killed postmaster hold its shared memory until they notice.
            let passing = port_taken || log.contains("is still in use");
            if self.pid().is_some() || !passing || Instant::now() > deadline {
                return Err(Error::internal(format!(
                    "postgres did not start: {why}; its log ends in:\n{log}"
                )));
            }
            if port_taken && may_change_port {
                self.port = free_port()?;
            } else {
                tokio::time::sleep(START_POLL).await;
            }
        }
    }

    fn spawn(&mut self) -> Result<()> {
        let path = self.folder.log();
        let open = || {
            let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            Ok((log.try_clone()?, log))
        };
        let (out, err) = open().map_err(|e| folder::failed("open", &path, e))?;
        let program = self.bindir.join("postgres");
        let mut command = Command::new(&program);
        command.arg("-D").arg(self.folder.data_dir()).arg("-p").arg(self.port.to_string());
        command
            .current_dir(self.folder.path())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        // Ctrl-C in a terminal goes to the whole group: the owner decides when the server ends, not the terminal.
        command.process_group(0);
        self.account.apply(&mut command);
        self.server = Server(Some(command.spawn().map_err(|e| missing(&program, e))?));
        Ok(())
    }

    /// Waits until the server lets the superuser in; otherwise says why not. An exited server has no [`Cluster::pid`].
    async fn answers(&mut self, deadline: Instant) -> Result<(), String> {
        loop {
            if self.server.has_ended() {
                return Err("the process ended".to_owned());
            }
            let Err(error) = self.try_connect("postgres").await else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(format!("no answer within {} s ({error})", START_DEADLINE.as_secs()));
            }
            tokio::time::sleep(START_POLL).await;
        }
    }
}

/// The server process while it runs. Dropping it ends the process.
struct Server(Option<Child>);

impl Server {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.0.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed())) {
            // It can have ended by itself, which is what the caller wants.
            kill_process(pid, signal).ok();
        }
    }

    /// Whether the process is gone (and its exit status taken, so that its id can be used again).
    fn has_ended(&mut self) -> bool {
        let ended = match &mut self.0 {
            None => true,
            Some(child) => !matches!(child.try_wait(), Ok(None)),
        };
        if ended {
            self.0 = None;
        }
        ended
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.0.take() {
            // Both fail only for a process that has ended.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An immediate shutdown: the folder goes next, so there is nothing to save, and a fast one would wait for
        // replication clients, which may run in the very thread that waits here.
        self.signal(Signal::QUIT);
        let deadline = Instant::now() + DROP_DEADLINE;
        while !self.has_ended() {
            if Instant::now() > deadline {
                return self.kill();
            }
            std::thread::sleep(STOP_POLL);
        }
    }
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    let bound = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    bound.map(|addr| addr.port()).map_err(|e| {
        Error::internal(format!("no free port on 127.0.0.1: {e}; free one and try again")).caused_by(e)
    })
}

/// Writes a file that only the server's account can read: PostgreSQL refuses a key that others can.
fn write_private(path: &Path, text: &str, account: Account) -> Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        account.own(path)
    };
    write().map_err(|e| folder::failed("write", path, e))
}

/// The last lines of the log from byte `start` on.
fn tail(path: &Path, start: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(length.saturating_sub(LOG_TAIL))))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    };
    read().unwrap_or_else(|e| format!("(no log: {e})"))
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_carries_any_password() {
        assert_eq!(encoded("p@ss/wörd:%"), "p%40ss%2Fw%C3%B6rd%3A%25");
        let url = format!("postgresql://{}:{}@127.0.0.1:1/db", encoded("a b"), encoded("p@ss/wörd:%"));
        let config: tokio_postgres::Config = url.parse().unwrap();
        assert_eq!((config.get_user(), config.get_password()), (Some("a b"), Some("p@ss/wörd:%".as_bytes())));
    }

    #[tokio::test]
    async fn a_cluster_whose_owner_died_is_removed_by_the_next_start() {
        let orphan = Cluster::start(Options::default()).await.unwrap();
        let (folder, pid) = (orphan.folder().to_owned(), orphan.pid().unwrap());
        // What a killed owner leaves: the folder, a running server, and no lock.
        orphan.folder.unlock();
        std::mem::forget(orphan);
        assert!(folder::command_line(pid).contains("flagpost-pg-"));

        let next = Cluster::start(Options::default()).await.unwrap();
        assert!(!folder.exists());
        assert_eq!(folder::command_line(pid), "");
        assert!(next.folder().exists());
    }

    #[tokio::test]
    async fn a_port_that_somebody_took_is_given_up_at_first_and_waited_for_later() {
        let mut cluster = Cluster::start(Options::default()).await.unwrap();
        cluster.stop(StopMode::Fast).await.unwrap();
        let first = cluster.port();
        let taken = TcpListener::bind(("127.0.0.1", first)).unwrap();
        cluster.boot(true).await.unwrap();
        assert_ne!(cluster.port(), first);

        cluster.stop(StopMode::Fast).await.unwrap();
        cluster.port = first;
        let log = cluster.folder.log();
        let seen = std::fs::read_to_string(&log).unwrap().matches("Address already in use").count();
        let release = std::thread::spawn(move || {
            while std::fs::read_to_string(&log).unwrap().matches("Address already in use").count() == seen {
                std::thread::sleep(STOP_POLL);
            }
            drop(taken);
        });
        cluster.boot(false).await.unwrap();
        release.join().unwrap();
        assert_eq!(cluster.port(), first);
        cluster.connect("postgres").await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_cannot_start_shows_the_end_of_its_log() {
        let error = Cluster::start(Options::default().set("wal_level", "nonsense")).await.err().unwrap();
        assert!(error.to_string().contains("invalid value for parameter \"wal_level\""), "{error}");
    }

    #[tokio::test]
    async fn a_bindir_without_binaries_says_what_to_install() {
        let options = Options { bindir: Some("/nonexistent".into()), ..Options::default() };
        let error = Cluster::start(options).await.err().unwrap();
        assert!(error.to_string().contains("apt-get install postgresql"), "{error}");
    }
}
