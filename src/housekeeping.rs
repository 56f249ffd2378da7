//! Housekeeping of the ledger: what has waited too long is given up, what is over and too old is forgotten. In small steps, so
//! that nobody waits for it; what is still to be sent is never forgotten.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::change::Micros;
use crate::error::Result;
use crate::fact::{DeliveriesExpired, EventsForgotten, EventsForgottenEarly, LedgerTooLarge};
use crate::ledger::{Reader, Retention, Write};

/// Between two looks, when there was nothing left to do.
const INTERVAL: Duration = Duration::from_secs(60);
/// Between two steps, so that captures and outcomes go first.
const PAUSE: Duration = Duration::from_millis(20);
/// Deliveries or events in one step.
const STEP: usize = 500;

/// See the module's documentation.
pub struct Housekeeper {
    reader: Reader,
    writes: mpsc::Sender<Write>,
    terms: watch::Receiver<Terms>,
}

/// What is kept.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Of the history.
    pub retention: Retention,
    /// A delivery that has waited longer is a dead letter.
    pub max_age: Duration,
    /// A secret that was replaced longer ago signs no more.
    pub secret_rotation: Duration,
}

impl Housekeeper {
    /// A housekeeper of the ledger that `reader` reads.
    pub fn new(reader: Reader, writes: mpsc::Sender<Write>, terms: watch::Receiver<Terms>) -> Housekeeper {
        Housekeeper { reader, writes, terms }
    }

    /// Keeps house until `stop`.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        loop {
            if stop.run_until_cancelled(self.round()).await.transpose()?.is_none()
                || stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none()
            {
                return Ok(());
            }
        }
    }

    async fn round(&mut self) -> Result<()> {
        let terms = *self.terms.borrow();
        // When the writer is gone, it tells why itself.
        self.writes.send(Write::ForgetSecrets(before(terms.secret_rotation))).await.ok();
        self.give_up(terms.max_age).await?;
        let forgotten = self.forget(before(terms.retention.age), 0).await?;
        if forgotten > 0 {
            EventsForgotten { events: forgotten }.tell();
        }
        let forgotten = self.forget(Micros::now(), terms.retention.max_bytes).await?;
        if forgotten > 0 {
            EventsForgottenEarly { events: forgotten }.tell();
        }
        let bytes = self.reader.used_bytes()?;
        if bytes > terms.retention.max_bytes {
            LedgerTooLarge { bytes }.tell();
        }
        Ok(())
    }

    /// What nothing could be sent of for too long, because its endpoint's breaker is open or its flag's earlier events were in
    /// the way, becomes a dead letter.
    async fn give_up(&mut self, max_age: Duration) -> Result<()> {
        let mut count = 0;
        loop {
            let expired = self.reader.expired(before(max_age), STEP)?;
            if expired.is_empty() {
                break;
            }
            count += expired.len();
            if self.writes.send(Write::Expire(expired)).await.is_err() || !self.written(Vec::new()).await {
                return Ok(());
            }
        }
        if count > 0 {
            DeliveriesExpired { deliveries: count }.tell();
        }
        Ok(())
    }

    /// Forgets events recorded before `too_old` that have nothing pending, oldest first, as long as the ledger is larger than
    /// `max_bytes`.
    async fn forget(&mut self, too_old: Micros, max_bytes: u64) -> Result<usize> {
        let (mut after, mut count) = (0, 0);
        while self.reader.used_bytes()? > max_bytes {
            let finished = self.reader.finished(after, too_old, STEP)?;
            let Some(until) = finished.looked_until else { break };
            after = until;
            count += finished.events.len();
            if !finished.events.is_empty() && !self.written(finished.events).await {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(count)
    }

    /// Waits until these are forgotten for good; false when the writer is gone, which tells why itself.
    async fn written(&mut self, events: Vec<i64>) -> bool {
        let (purged, wait) = oneshot::channel();
        self.writes.send(Write::Purge(events, purged)).await.is_ok() && wait.await.is_ok()
    }
}

fn before(age: Duration) -> Micros {
    Micros(Micros::now().0.saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX)))
}
