//! What a service manager is told: that we are ready, that we reload, that we stop, in a line how we are (`systemctl status`), and, as
//! long as every stage gets on, that we are alive (the watchdog).
//!
//! Without a service manager (no `NOTIFY_SOCKET`) nothing happens. Source: systemd's manual, sd_notify(3),
//! sd_watchdog_enabled(3).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;

use crate::config::{Config, Mode};
use crate::error::Result;
use crate::fact::{ServiceManagerUntold, WatchdogWithheld};
use crate::ledger::Reader;
use crate::pulse::{Phase, Pulse, Trouble};
use crate::source::{outbox_facts, reuse, slot_facts};

/// Between two lines of how we are.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// So long the server may take to tell how far we are behind.
const SERVER_TELLS_WITHIN: Duration = Duration::from_secs(3);

/// The mirror is loaded and the source is open, or what was asked for is reloaded.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is being read again. [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => {
            tell(&[NotifyState::Reloading, now, NotifyState::Status("reading the configuration again")])
        }
        Err(error) => ServiceManagerUntold { error: error.to_string() }.tell(),
    }
}

/// We were told to stop and do so.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishing calls in flight, then stopping")]);
}

/// In a line, how we are.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Feeds the watchdog as long as no stage is stuck, and tells now and then how we are; forever.
pub async fn watch(config: Config, pulse: Arc<Pulse>) {
    // Twice in the time that systemd waits, as its manual advises.
    let watchdog = sd_notify::watchdog_enabled().map(|limit| limit / 2);
    let is_heard = std::env::var_os("NOTIFY_SOCKET").is_some();
    if !is_heard {
        return;
    }
    let mut server = None;
    let mut feed = tokio::time::interval(watchdog.unwrap_or(STATUS_EVERY));
    let mut line = tokio::time::interval(STATUS_EVERY);
    feed.set_missed_tick_behavior(MissedTickBehavior::Delay);
    line.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = feed.tick(), if watchdog.is_some() => feed_watchdog(&pulse.stuck()),
            _ = line.tick() => tell_how_we_are(&config, &mut server, &pulse).await,
        }
    }
}

fn feed_watchdog(stuck: &[Trouble]) {
    if stuck.is_empty() {
        return tell(&[NotifyState::Watchdog]);
    }
    WatchdogWithheld { reason: joined(stuck) }.tell();
}

async fn tell_how_we_are(config: &Config, server: &mut Option<Client>, pulse: &Pulse) {
    // What is said of the other phases is said when they begin.
    if pulse.phase().0 != Phase::Running {
        return;
    }
    let directory = config.state_dir.clone();
    let work = tokio::task::spawn_blocking(move || work(&directory)).await;
    let work = work.ok().and_then(Result::ok).unwrap_or_else(|| "the ledger cannot be read".into());
    let lag = tokio::time::timeout(SERVER_TELLS_WITHIN, lag(config, server)).await;
    let lag = lag.ok().and_then(Result::ok).flatten().unwrap_or_else(|| "lag unknown".into());
    match pulse.troubles().as_slice() {
        [] => status(&format!("running: {lag}, {work}")),
        troubles => status(&format!("NOT READY: {}; {lag}, {work}", joined(troubles))),
    }
}

/// How far we are behind. The connection is kept for the next time.
async fn lag(config: &Config, server: &mut Option<Client>) -> Result<Option<String>> {
    let client = reuse(server.take(), &config.database).await?;
    let lag = match config.mode {
        Mode::Replication => slot_facts(&client, &config.database, &config.names.slot)
            .await?
            .and_then(|slot| slot.lag_bytes)
            .map(|bytes| format!("{bytes} bytes behind")),
        Mode::Outbox => {
            let outbox = outbox_facts(&client, &config.database).await?;
            Some(format!("{} row changes behind", outbox.changes))
        }
    };
    *server = Some(client);
    Ok(lag)
}

/// What waits to be sent, and to whom nothing gets through.
fn work(directory: &Path) -> Result<String> {
    let reader = Reader::open(directory)?;
    let pending = reader.waiting()?;
    let failing: Vec<String> = reader
        .lanes()?
        .into_iter()
        .filter(|(_, lane)| lane.pause.is_some() || lane.breaker.opened_at.is_some())
        .map(|(endpoint, lane)| {
            format!("{endpoint} {}", if lane.pause.is_some() { "paused" } else { "failing" })
        })
        .collect();
    let at = reader.checkpoint()?.unwrap_or_default();
    let failing = match failing.as_slice() {
        [] => "all endpoints answer".to_owned(),
        some => some.join(", "),
    };
    Ok(format!("at {at}, {pending} deliveries wait, {failing}"))
}

fn joined(troubles: &[Trouble]) -> String {
    troubles.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn tell(states: &[NotifyState<'_>]) {
    // The daemon works without being heard.
    if let Err(error) = sd_notify::notify(states) {
        ServiceManagerUntold { error: error.to_string() }.tell();
    }
}
