//! Everything that the demo plays on: cluster, database, receiver, daemon. Dropping it takes all of it away again.
//!
//! All files are in the cluster's folder, so one removal is enough, and what a killed demo leaves is swept away by the
//! next one. The superuser has a random password: while the demo runs, nobody else on the machine gets in.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::cluster::{Auth, Cluster, Options, SUPERUSER, StopMode};
use super::daemon::{Binary, Daemon};
use super::flagsmith::{self, ENDPOINTS, Flagsmith};
use super::receiver::{Received, Receiver};
use super::show::{Screen, seconds};
use super::webhook::Webhook;
use crate::error::{Error, Result};

/// Far more than anything takes; only where something is lost, the demo waits so long.
const PATIENCE: Duration = Duration::from_secs(15);
/// So long nothing must come when everything has come: three settle windows.
const QUIET: Duration = Duration::from_millis(300);
/// The endpoint that gets format `current`: flag events and audit events.
pub(super) const ORGANISATION: &str = "/organisation";
/// The endpoint that gets format `classic`: flag events of one environment.
pub(super) const PRODUCTION: &str = "/production";

/// What the demo plays on.
pub(super) struct Stage {
    // In the order of the end: nobody writes into a folder that goes.
    pub(super) daemon: Option<Daemon>,
    pub(super) flagsmith: Flagsmith,
    pub(super) receiver: Receiver,
    pub(super) binary: Binary,
    cluster: Cluster,
    /// Requests that [`Stage::take`] has given out.
    taken: usize,
}

impl Stage {
    /// Sets everything up, and says so.
    pub(super) async fn set(screen: &mut Screen) -> Result<Stage> {
        screen.heading("Setting up", "")?;
        let started = Instant::now();
        let auth = Auth::Scram { password: format!("{:032x}", rand::random::<u128>()) };
        let options = Options { auth, ..Options::default() }.set("track_commit_timestamp", "on");
        let cluster = Cluster::start(options).await?;
        let took = seconds(started.elapsed());
        screen.fact(
            "PostgreSQL",
            &format!("on port {} of 127.0.0.1, for this demo only ({took})", cluster.port()),
        )?;

        let receiver = Receiver::start(0)?;
        let flagsmith = Flagsmith::create(&cluster, |path| receiver.url(path)).await?;
        screen.fact("Flagsmith's database", "1 project, 2 environments, 6 flags, 1 segment, 1 identity")?;
        let paths = ENDPOINTS.map(|(path, _)| path).join(", ");
        screen.fact("receiver", &format!("{}, endpoints {paths}", receiver.url("")))?;

        let url = cluster.url(SUPERUSER, flagsmith::NAME);
        let binary = Binary::new(cluster.folder(), url, &receiver.url(ORGANISATION))?;
        let started = Instant::now();
        binary.setup().await?;
        screen
            .fact("flagpost setup", &format!("publication, slot, mirror ({})", seconds(started.elapsed())))?;
        let mut stage = Stage { daemon: None, flagsmith, receiver, binary, cluster, taken: 0 };
        let took = stage.start_daemon(None).await?;
        screen.fact("flagpost run", &format!("ready ({})", seconds(took)))?;
        Ok(stage)
    }

    /// Starts the daemon; tells how long it took until it was ready.
    pub(super) async fn start_daemon(&mut self, settle: Option<&str>) -> Result<Duration> {
        let started = Instant::now();
        self.daemon = Some(self.binary.start(settle).await?);
        Ok(started.elapsed())
    }

    /// Stops the daemon as an operator does.
    pub(super) async fn stop_daemon(&mut self) -> Result<()> {
        match self.daemon.take() {
            Some(daemon) => daemon.stop().await,
            None => Ok(()),
        }
    }

    /// Waits until `enough` says that the webhooks that arrived since the last call are enough, and gives them. What
    /// has come until patience ends is given as well: the caller sees what is missing.
    pub(super) async fn take(&mut self, enough: impl Fn(&[Received]) -> bool) -> Result<Vec<Webhook>> {
        let taken = self.taken;
        let new = |all: &[Received]| all.get(taken..).is_some_and(&enough);
        let all = self.receiver.wait_for(new, PATIENCE).await.unwrap_or_else(|all| all);
        self.taken = all.len();
        all.get(taken..).unwrap_or_default().iter().map(read).collect()
    }

    /// The webhooks that arrive while nothing should.
    pub(super) async fn take_surplus(&mut self) -> Result<Vec<Webhook>> {
        tokio::time::sleep(QUIET).await;
        self.take(|_| true).await
    }

    /// How many requests have arrived in all.
    pub(super) fn arrived(&self) -> usize {
        self.receiver.all().len()
    }

    /// Ends everything, but leaves the data directory and the ledger in a folder of their own.
    pub(super) async fn keep(mut self) -> Result<PathBuf> {
        self.stop_daemon().await?;
        self.cluster.stop(StopMode::Fast).await?;
        let kept = std::env::temp_dir().join(format!("flagpost-demo-{}", std::process::id()));
        let keep = || {
            std::fs::create_dir(&kept)?;
            std::fs::rename(self.cluster.data_dir(), kept.join("data"))?;
            std::fs::rename(self.binary.state_dir(), kept.join("state"))
        };
        keep().map_err(|e| {
            Error::internal(format!(
                "cannot keep the folder as {}: {e}; remove what is there",
                kept.display()
            ))
        })?;
        Ok(kept)
    }
}

fn read(received: &Received) -> Result<Webhook> {
    let secret = ENDPOINTS.iter().find(|(path, _)| *path == received.path).map_or("", |(_, secret)| secret);
    Webhook::read(received, secret)
}
