//! The last hour, in memory: every ten seconds how far behind we are and what was done meanwhile. A restart begins it anew.
//!
//! A sample must cost next to nothing, for it is taken whether anybody looks or not: one row of a system view, the newest event's
//! number, and counters of this process. What is pending is counted, which takes a while where much is: then less often.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_postgres::Client;

use crate::change::Micros;
use crate::config::{Config, Mode};
use crate::error::Result;
use crate::ledger::Reader;
use crate::pulse::Pulse;
use crate::source::{outbox_facts, reuse, slot_facts};

/// Between two samples.
pub(super) const EVERY: Duration = Duration::from_secs(10);
/// An hour of them.
const KEPT: usize = 360;
/// What is pending is counted again after so many times what counting took: at most a fiftieth of a core.
const REST: u32 = 50;
/// So long the server may take to tell.
const SERVER_TELLS_WITHIN: Duration = Duration::from_secs(3);

/// What was seen at one moment, and done since the one before. `None` for what could not be found out.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Sample {
    /// Seconds since 1970.
    at: i64,
    /// Bytes of the server's log that are not confirmed (source `replication`).
    lag_bytes: Option<i64>,
    /// Row changes that wait in the outbox (source `outbox`).
    lag_rows: Option<i64>,
    /// For how long what is behind has been.
    lag_seconds: Option<f64>,
    /// Events that were recorded.
    events: Option<i64>,
    /// Attempts that were answered with 2xx.
    delivered: u64,
    /// Attempts that failed.
    failed: u64,
    /// Deliveries that wait.
    pending: Option<u64>,
    /// Whether the daemon was ready.
    ready: bool,
}

/// The last hour.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<VecDeque<Sample>>);

impl History {
    fn add(&self, sample: Sample) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() == KEPT {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// What was taken after this second, oldest first.
    pub(super) fn after(&self, second: i64) -> Vec<Sample> {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().filter(|sample| sample.at > second).cloned().collect()
    }
}

/// Takes the samples.
pub(super) struct Sampler {
    config: Config,
    pulse: Arc<Pulse>,
    /// Kept from one sample to the next: connecting costs more than asking.
    client: Option<Client>,
    /// At the sample before: the newest event, and attempts that were delivered and that failed.
    before: (Option<i64>, (u64, u64)),
    /// How many deliveries were pending, and until when that will do.
    pending: Option<(u64, Instant)>,
}

/// How far behind the source is.
#[derive(Default)]
struct Lag {
    bytes: Option<i64>,
    rows: Option<i64>,
    seconds: Option<f64>,
}

impl Sampler {
    pub(super) fn new(config: Config, pulse: Arc<Pulse>) -> Sampler {
        Sampler { config, pulse, client: None, before: (None, (0, 0)), pending: None }
    }

    /// Takes samples for ever.
    pub(super) async fn run(mut self, history: Arc<History>) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            history.add(self.sample().await);
        }
    }

    async fn sample(&mut self) -> Sample {
        let directory = self.config.state_dir.clone();
        let pending = self.pending.filter(|(_, until)| *until > Instant::now());
        let ledger = tokio::task::spawn_blocking(move || of_ledger(&directory, pending).ok()).await;
        let (last, pending) = ledger.ok().flatten().unzip();
        self.pending = pending;
        let lag = self.lag().await;
        let attempts = self.pulse.attempts();
        let (before, (delivered, failed)) = std::mem::replace(&mut self.before, (last, attempts));
        Sample {
            at: Micros::now().0 / 1_000_000,
            lag_bytes: lag.bytes,
            lag_rows: lag.rows,
            lag_seconds: lag.seconds,
            events: last.zip(before).map(|(last, before)| (last - before).max(0)),
            delivered: attempts.0.saturating_sub(delivered),
            failed: attempts.1.saturating_sub(failed),
            pending: pending.map(|(count, _)| count),
            ready: self.pulse.troubles().is_empty(),
        }
    }

    async fn lag(&mut self) -> Lag {
        let client = self.client.take();
        match tokio::time::timeout(SERVER_TELLS_WITHIN, ask(&self.config, client)).await {
            Ok(Ok((client, lag))) => {
                self.client = Some(client);
                lag
            }
            // The next one connects again.
            Ok(Err(_)) | Err(_) => Lag::default(),
        }
    }
}

async fn ask(config: &Config, client: Option<Client>) -> Result<(Client, Lag)> {
    let client = reuse(client, &config.database).await?;
    let lag = match config.mode {
        Mode::Replication => {
            let slot = slot_facts(&client, &config.database, &config.names.slot).await?;
            let seconds = slot.as_ref().and_then(|slot| slot.lag_seconds());
            Lag { bytes: slot.and_then(|slot| slot.lag_bytes), rows: None, seconds }
        }
        Mode::Outbox => {
            let outbox = outbox_facts(&client, &config.database).await?;
            let seconds = Some(outbox.oldest_seconds.unwrap_or_default());
            Lag { bytes: None, rows: Some(outbox.changes), seconds }
        }
    };
    Ok((client, lag))
}

/// The newest event, and how many deliveries are pending, which is counted if that is not known.
fn of_ledger(directory: &Path, pending: Option<(u64, Instant)>) -> Result<(i64, (u64, Instant))> {
    let reader = Reader::open(directory)?;
    let pending = match pending {
        Some(pending) => pending,
        None => {
            let began = Instant::now();
            let count = reader.waiting()?;
            (count, Instant::now() + began.elapsed().saturating_mul(REST))
        }
    };
    Ok((reader.last_event()?, pending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_and_asked_for_from_a_moment_on() {
        let history = History::default();
        for at in 0..400 {
            history.add(Sample { at, ..Sample::default() });
        }
        let all = history.after(i64::MIN);
        assert_eq!((all.len(), all[0].at, all[KEPT - 1].at), (KEPT, 40, 399));
        assert_eq!(history.after(397).len(), 2);
        assert_eq!(history.after(399), []);
    }
}
