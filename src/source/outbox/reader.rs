//! The reader: looks at the outbox, hands on transactions as the stream does, and takes away what is durable here.
//!
//! Invariants: a row is taken away only when the position behind its whole batch is in [`Channels::durable`]; batches are
//! complete before the next begins, so the cursor tells exactly what has been handed on ([`Place`]); notifications only make
//! it faster, since it looks from time to time in any case.
//!
//! Positions: the outbox has none of its own, so a transaction's is the one before plus one. They begin where the server's log
//! was when the mirror was filled; since every transaction writes more than a byte to the log, they stay below it, and so the
//! order holds when an installation changes to replication.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::order::{Assembler, Record};
use super::place::{Place, Snapshot};
use super::session::{Look, Session};
use crate::change::{Lsn, Micros, Transaction};
use crate::error::{Error, Kind, Result};
use crate::source::conn_info::ConnInfo;
use crate::source::stream::{BUDGET, BUDGET_UNIT, Channels, Delivery, Item};

/// After something has come, more is likely to, and not everybody who commits at the same moment notifies: longer while
/// transactions are open, whose commits may wait for a slow disk.
const BUSY_FOR: Duration = Duration::from_millis(100);
const BUSY_WHILE_OPEN: Duration = Duration::from_secs(1);
/// Between two looks at least: what is notified in a burst is read together, at less cost to the server (PITFALLS 17). The first
/// after a pause is looked for at once.
const LOOK_APART: Duration = Duration::from_millis(5);
const LOOK_WHEN_BUSY: Duration = Duration::from_millis(20);

/// What to read, and from where on.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The database.
    pub info: ConnInfo,
    /// The cluster that the ledger belongs to.
    pub system_id: String,
    /// The ledger that the outbox must belong to.
    pub ledger: String,
    /// The ledger's checkpoint.
    pub from: Lsn,
    /// The ledger's cursor.
    pub place: Place,
    /// Between two looks when nobody notifies.
    pub poll: Duration,
    /// Reads only what this snapshot sees, then ends.
    pub until: Option<Snapshot>,
}

/// See the module's documentation.
pub struct Reader {
    reading: Reading,
    session: Session,
    channels: Channels,
    /// Everything that this sees has been handed on, but for the batch that is open.
    done: Snapshot,
    /// A batch that has begun.
    open: Option<Place>,
    position: Lsn,
    /// The server's clock at the last look.
    time: Micros,
    /// Batches that have been handed on, each with the position behind it.
    handed_on: VecDeque<(Lsn, Snapshot)>,
}

impl Reader {
    /// Connects and checks that the outbox is the one that the ledger has read.
    pub async fn open(reading: Reading, channels: Channels) -> Result<Reader> {
        let session = connect(&reading).await?;
        let Reading { place, from, .. } = &reading;
        let (done, position) = (place.before.clone(), *from);
        // What was durable before and not taken away is taken away now.
        let handed_on = VecDeque::from([(position, done.clone())]);
        let open = (place.before != place.batch).then(|| place.clone());
        let time = Micros::default();
        let reader = Reader { done, open, position, time, handed_on, session, channels, reading };
        let look = reader.look().await?;
        reader.require_continuity(&look)?;
        Ok(reader)
    }

    /// Connects again after the connection has broken.
    pub async fn reopen(&mut self) -> Result<()> {
        self.session = connect(&self.reading).await?;
        let look = self.look().await?;
        self.require_continuity(&look)
    }

    /// Reads until `stop` or the end (then `Ok`), or until the connection breaks.
    pub async fn run(&mut self, stop: &CancellationToken) -> Result<()> {
        let probe = Arc::clone(&self.channels.probe);
        let mut durable = self.channels.durable.clone();
        let mut look_at = Instant::now();
        let mut busy_until = look_at;
        let mut looked_at = look_at;
        loop {
            let is_told = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = self.session.notified() => true,
                () = probe.notified() => false,
                () = sleep_until(look_at) => false,
                // The sender lives as long as the ledger's writer; when that is gone the daemon stops.
                Ok(()) = durable.changed() => {
                    self.take_away().await?;
                    continue;
                }
            };
            sleep_until(looked_at + LOOK_APART).await;
            looked_at = Instant::now();
            let look = self.look().await?;
            let has_come = look.waits || self.open.is_some();
            let busy_for = if look.snapshot.has_open() { BUSY_WHILE_OPEN } else { BUSY_FOR };
            if !self.take(look, stop).await? {
                return Ok(());
            }
            self.take_away().await?;
            let now = Instant::now();
            if is_told || has_come {
                busy_until = now + busy_for;
            }
            look_at = now + if now < busy_until { LOOK_WHEN_BUSY } else { self.reading.poll };
        }
    }

    /// Nothing more is handed on, so whoever takes it comes to its end.
    pub fn hand_on_no_more(&mut self) {
        self.channels.out = tokio::sync::mpsc::channel(1).0;
    }

    /// Takes away what has become durable.
    pub async fn finish(mut self) {
        // What stays is taken away at the next start.
        self.take_away().await.ok();
    }

    /// Looks, and makes sure that nothing has been missed and that nobody else takes rows away.
    async fn look(&self) -> Result<Look> {
        let look = self.session.look(&self.done).await?;
        if look.failures > 0 {
            return Err(Error::new(
                Kind::SlotLost,
                format!(
                    "the triggers could not capture {} statements of Flagsmith's (table flagpost.failure and the server's log have \
                     the reasons): what they changed is not in the outbox; mend the cause, then run \"flagpost setup \
                     --resnapshot\"",
                    look.failures
                ),
            ));
        }
        if look.ledger != self.reading.ledger {
            return Err(Error::new(
                Kind::SlotLost,
                "the outbox belongs to another ledger now, which takes away what it has read: point this one elsewhere, or \
                 take the outbox over with \"flagpost setup --resnapshot\"",
            ));
        }
        Ok(look)
    }

    /// `Err` if the database was set back, or if rows were taken away that this ledger has not read.
    fn require_continuity(&self, look: &Look) -> Result<()> {
        let known = self.open.as_ref().map_or(self.done.xmax(), |place| place.batch.xmax());
        if look.snapshot.xmax() < known {
            return Err(Error::new(
                Kind::SlotLost,
                format!(
                    "the database is at transaction {} and the ledger at {known}: it was restored from an older state; begin \
                     anew with \"flagpost setup --resnapshot\"",
                    look.snapshot.xmax()
                ),
            ));
        }
        if look.consumed.is_some_and(|consumed| consumed > known) {
            return Err(Error::new(
                Kind::SlotLost,
                "somebody else has read the outbox further than this ledger (a copy of it, or a newer state): what was taken \
                 away cannot be told any more; begin anew with \"flagpost setup --resnapshot\"",
            ));
        }
        Ok(())
    }

    /// Hands on what a look has shown. False when there is nobody left to hand it to, or at the end.
    async fn take(&mut self, look: Look, stop: &CancellationToken) -> Result<bool> {
        // First what a broken connection or the last run has left over.
        if !self.finish_batch(stop).await? {
            return Ok(false);
        }
        self.time = look.time;
        let goal = self.reading.until.clone().unwrap_or(look.snapshot);
        if look.waits && goal != self.done {
            self.open = Some(Place { before: self.done.clone(), batch: goal, seq: 0 });
            if !self.finish_batch(stop).await? {
                return Ok(false);
            }
        } else {
            self.done = goal;
        }
        if self.reading.until.is_some() {
            return Ok(false);
        }
        let alive = Item::Alive { position: self.position, caught_up: true };
        self.hand_on(alive, None, stop).await
    }

    async fn finish_batch(&mut self, stop: &CancellationToken) -> Result<bool> {
        let Some(place) = self.open.clone() else { return Ok(true) };
        let before = self.position;
        // The server sorts a long backlog before its first row comes.
        let Some(rows) = stop.run_until_cancelled(self.session.rows(&place)).await else { return Ok(false) };
        let rows = rows?;
        futures_util::pin_mut!(rows);
        let mut assembler = Assembler::default();
        loop {
            let Some(row) = stop.run_until_cancelled(rows.try_next()).await else { return Ok(false) };
            let Some(row) = row.map_err(|e| self.session.failed(&e))? else { break };
            if let Some(complete) = assembler.take(&Record::from_row(&row)?)?
                && !self.transaction(complete, stop).await?
            {
                return Ok(false);
            }
        }
        if let Some(last) = assembler.end()
            && !self.transaction(last, stop).await?
        {
            return Ok(false);
        }
        self.done = place.batch;
        self.open = None;
        // What nothing came of is not in the ledger's cursor: it is taken away with the next that something comes of.
        if self.position > before || place.seq > 0 {
            self.handed_on.push_back((self.position, self.done.clone()));
        }
        Ok(true)
    }

    async fn transaction(
        &mut self,
        (mut transaction, last): (Transaction, i64),
        stop: &CancellationToken,
    ) -> Result<bool> {
        let Some(place) = self.open.as_mut().filter(|_| !transaction.changes.is_empty()) else {
            return Ok(true);
        };
        place.seq = last;
        let cursor = place.to_string();
        self.position = Lsn(self.position.0 + 1);
        transaction.end_lsn = self.position;
        let units = u32::try_from((transaction.size() / BUDGET_UNIT + 1).min(BUDGET)).unwrap_or(1);
        let budget = Arc::clone(&self.channels.budget);
        let permit: Option<OwnedSemaphorePermit> = tokio::select! {
            permit = budget.acquire_many_owned(units) => permit.ok(),
            () = stop.cancelled() => None,
        };
        let Some(permit) = permit else { return Ok(false) };
        self.hand_on(Item::Transaction(transaction, Some(permit)), Some(cursor), stop).await
    }

    async fn hand_on(
        &mut self,
        item: Item,
        cursor: Option<String>,
        stop: &CancellationToken,
    ) -> Result<bool> {
        let delivery = Delivery { item, server_time: self.time, received: Instant::now(), cursor };
        tokio::select! {
            sent = self.channels.out.send(delivery) => Ok(sent.is_ok()),
            () = stop.cancelled() => Ok(false),
        }
    }

    async fn take_away(&mut self) -> Result<()> {
        let durable = *self.channels.durable.borrow();
        let count = self.handed_on.iter().take_while(|(position, _)| *position <= durable).count();
        let Some((_, consumed)) = count.checked_sub(1).and_then(|last| self.handed_on.get(last)) else {
            return Ok(());
        };
        self.session.take_away(&self.reading.ledger, consumed).await?;
        self.handed_on.drain(..count);
        Ok(())
    }
}

async fn connect(reading: &Reading) -> Result<Session> {
    let session = Session::open(&reading.info).await?;
    let system_id = session.system_id().await?;
    if system_id != reading.system_id {
        return Err(Error::new(
            Kind::LedgerMismatch,
            format!(
                "the ledger belongs to another database cluster (system identifier {}, this one is {system_id}): correct \
                 database.url or state.dir, or begin anew with \"flagpost setup --resnapshot\"",
                reading.system_id
            ),
        ));
    }
    Ok(session)
}
