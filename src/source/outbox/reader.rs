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
use super::session::{Look, SILENCE, Session};
use crate::change::{Lsn, Micros, Transaction};
use crate::error::{Error, Kind, RECOVER, Result};
use crate::pulse::Pulse;
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
    /// Everything that this sees has been handed on up to `read_to`, but for the batch that is open.
    done: Snapshot,
    /// The highest sequence number that has been handed on, but for the batch that is open.
    read_to: i64,
    /// A batch that has begun.
    open: Option<Place>,
    position: Lsn,
    /// The server's clock at the last look.
    time: Micros,
    /// Batches that have been handed on and not taken away.
    handed_on: VecDeque<HandedOn>,
    /// The server's last checkpoint, as of the last look. Where it is another, the server may have crashed meanwhile (behind a
    /// pooler the connection does not tell), and transaction ids may have come again: then nothing is left out by them.
    checkpoint: Option<String>,
    /// Reads from this transaction on.
    floor: u64,
}

/// A batch that has been handed on.
struct HandedOn {
    /// The position behind it.
    position: Lsn,
    /// What it was read by, with all before it.
    seen: Snapshot,
    /// Up to this sequence number.
    read_to: i64,
    /// Transactions below this have been taken away before.
    floor: u64,
}

impl Reader {
    /// Connects and checks that the outbox is the one that the ledger has read.
    pub async fn open(reading: Reading, channels: Channels) -> Result<Reader> {
        let session = connect(&reading).await?;
        let Reading { place, from, .. } = &reading;
        let (done, read_to, position) = (place.before.clone(), place.read_to, *from);
        // What was durable before and not taken away is taken away now.
        let handed_on = VecDeque::from([HandedOn { position, seen: done.clone(), read_to, floor: 0 }]);
        let open = (place.seq > 0).then(|| place.clone());
        let mut reader = Reader {
            done,
            read_to,
            open,
            position,
            time: Micros::default(),
            handed_on,
            checkpoint: None,
            floor: 0,
            session,
            channels,
            reading,
        };
        let look = reader.look().await?;
        reader.require_continuity(&look)?;
        reader.tell_open();
        Ok(reader)
    }

    fn tell_open(&self) {
        // When it is quiet, the next answer comes with the next look.
        self.channels.pulse.source_opened(self.reading.poll + SILENCE);
    }

    /// What is told of the source.
    pub fn pulse(&self) -> &Pulse {
        &self.channels.pulse
    }

    /// Connects again after the connection has broken.
    pub async fn reopen(&mut self) -> Result<()> {
        self.session = connect(&self.reading).await?;
        self.checkpoint = None;
        // What was taken away may be there again, for that is not waited for.
        let (position, seen, read_to) = (self.position, self.done.clone(), self.read_to);
        self.handed_on.push_back(HandedOn { position, seen, read_to, floor: 0 });
        let look = self.look().await?;
        self.require_continuity(&look)?;
        self.tell_open();
        Ok(())
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
    ///
    /// Nothing is left out by transaction ids until what is there since another checkpoint has been taken.
    async fn look(&mut self) -> Result<Look> {
        self.floor = self.done.xmin();
        let mut look = self.session.look(&self.done, self.read_to, self.floor).await?;
        self.channels.pulse.source_heard();
        if self.checkpoint.as_ref() != Some(&look.checkpoint) {
            self.floor = 0;
            look = self.session.look(&self.done, self.read_to, self.floor).await?;
        }
        if look.failures > 0 {
            return Err(Error::new(
                Kind::SlotLost,
                format!(
                    "the triggers could not capture {} statements of Flagsmith's (table flagpost.failure and the server's log have \
                     the reasons): what they changed is not in the outbox; mend the cause, then {RECOVER}",
                    look.failures
                ),
            ));
        }
        if look.ledger != self.reading.ledger {
            return Err(Error::new(
                Kind::SlotLost,
                "the outbox belongs to another ledger now, which takes away what it has read: point this one elsewhere, or \
                 take the outbox over with \"flagpost recover\", which sends receivers what was missed, or with \"flagpost setup \
                 --resnapshot\"",
            ));
        }
        Ok(look)
    }

    /// `Err` if the database was set back, or if rows were taken away that this ledger has not read.
    fn require_continuity(&self, look: &Look) -> Result<()> {
        let known = self.open.as_ref().map_or(self.read_to, Place::highest);
        if look.given < known {
            return Err(Error::new(
                Kind::SlotLost,
                format!(
                    "the outbox is at {} and the ledger at {known}: the database was restored from an older state; {RECOVER}",
                    look.given
                ),
            ));
        }
        if look.consumed > known {
            return Err(Error::new(
                Kind::SlotLost,
                format!(
                    "somebody else has read the outbox further than this ledger (a copy of it, or a newer state): what was \
                     taken away cannot be told any more; {RECOVER}"
                ),
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
        let checkpoint = look.checkpoint;
        let goal = self.reading.until.clone().unwrap_or(look.snapshot);
        if look.waits {
            let (before, read_to) = (self.done.clone(), self.read_to);
            self.open = Some(Place { before, read_to, batch: goal, seq: 0 });
            if !self.finish_batch(stop).await? {
                return Ok(false);
            }
        } else {
            self.done = goal;
        }
        self.checkpoint = Some(checkpoint);
        if self.reading.until.is_some() {
            return Ok(false);
        }
        let alive = Item::Alive { position: self.position, caught_up: true };
        self.hand_on(alive, None, stop).await
    }

    async fn finish_batch(&mut self, stop: &CancellationToken) -> Result<bool> {
        let Some(place) = self.open.clone() else { return Ok(true) };
        let before = self.position;
        let floor = self.floor;
        // The server sorts a long backlog before its first row comes.
        let Some(rows) = stop.run_until_cancelled(self.session.rows(&place, floor)).await else {
            return Ok(false);
        };
        let rows = rows?;
        futures_util::pin_mut!(rows);
        let mut assembler = Assembler::default();
        let mut highest = place.highest();
        loop {
            let Some(row) = stop.run_until_cancelled(rows.try_next()).await else { return Ok(false) };
            let Some(row) = row.map_err(|e| self.session.failed(&e))? else { break };
            self.channels.pulse.source_heard();
            let record = Record::from_row(&row)?;
            highest = highest.max(record.seq);
            if let Some(complete) = assembler.take(&record)?
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
        self.read_to = highest;
        self.open = None;
        // What nothing came of is not in the ledger's cursor: it is taken away with the next that something comes of.
        if self.position > before || place.seq > 0 {
            let (position, seen, read_to) = (self.position, self.done.clone(), self.read_to);
            self.handed_on.push_back(HandedOn { position, seen, read_to, floor });
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
        let count = self.handed_on.iter().take_while(|batch| batch.position <= durable).count();
        let durable = self.handed_on.range(..count);
        let Some((last, floor)) = durable.clone().last().zip(durable.map(|batch| batch.floor).min()) else {
            return Ok(());
        };
        self.session.take_away(&self.reading.ledger, &last.seen, last.read_to, floor).await?;
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
                 database.url or state.dir, or, if the database was moved, run \"flagpost recover --moved\" (or begin anew with \
                 \"flagpost setup --resnapshot\")",
                reading.system_id
            ),
        ));
    }
    Ok(session)
}
