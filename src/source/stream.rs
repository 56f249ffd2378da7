//! The stream: reads pgoutput, hands on transactions, and tells the server what is durable here.
//!
//! Invariants: the position that is confirmed is the one in `durable`, which only the ledger's writer moves (PITFALLS 3);
//! this task never waits for anything but the server and room in its channel, and while it waits for room it goes on
//! confirming (PITFALLS 6); a keepalive's position is handed on in its place between the transactions, so that it becomes
//! durable after everything before it (PITFALLS 2).

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::assemble::Assembler;
use super::catalog::Catalog;
use super::heartbeat::time_of;
use super::pgoutput::{Message, decode, from_postgres_epoch, to_postgres_epoch};
use super::replication::{Names, Replication};
use super::wire::{Frame, Wire};
use crate::change::{Lsn, Micros, Transaction};
use crate::error::{Error, Kind, Result};
use crate::pulse::Pulse;

/// The server is told where we are at least this often, and four times within its `wal_sender_timeout` (by default a
/// minute), after which it gives a silent session up.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// After a commit became durable it is confirmed at once, but not more often than this.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(50);
/// A server that says nothing for so long is gone, also if its host still acknowledges what we send: as long as PostgreSQL's own
/// subscribers wait (`wal_receiver_timeout`, by default a minute).
const SILENCE: Duration = Duration::from_secs(60);
/// Well before that it is told as not there ([`Pulse`]): after as long as the server itself waits for us, between these.
const QUIET: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(30);
/// We ask a server that says nothing, which it may have no reason to, so often within that time.
const ASKS: u32 = 3;
/// Between two requests for a keepalive while the end is waited for.
const ASK_FOR_END: Duration = Duration::from_millis(50);
/// Unit of [`Channels::budget`], in bytes.
pub(super) const BUDGET_UNIT: usize = 1024;
/// Units that wait between the stream and the engine at the most: 16 MiB. A larger transaction takes all of it, alone.
pub(super) const BUDGET: usize = 16 * 1024;
/// Transactions that wait there at the most.
pub const QUEUE: usize = 256;

/// The server sends each message alone. When reads this small follow each other without a pause, a short wait lets several
/// arrive at once: more throughput for less CPU (PITFALLS 17).
const SMALL_READ: usize = 4 * 1024;
const SMALL_READS: u32 = 32;
const COALESCE: Duration = Duration::from_millis(1);
/// Reads further apart than this are no busy stream.
const BUSY_GAP: Duration = Duration::from_micros(500);

/// What the stream brings.
#[derive(Debug)]
pub enum Item {
    /// A committed transaction.
    Transaction(Transaction, Option<OwnedSemaphorePermit>),
    /// Everything before `position` that concerns us has been handed on.
    Alive {
        /// A position of the server's log.
        position: Lsn,
        /// Whether we have come to where the server was when we connected: silence means silence only then.
        caught_up: bool,
    },
}

/// An [`Item`] with the server's clock.
#[derive(Debug)]
pub struct Delivery {
    /// What was brought.
    pub item: Item,
    /// The server's clock when it sent it.
    pub server_time: Micros,
    /// Our clock when it came.
    pub received: Instant,
    /// Where to go on after a restart, if the position alone does not tell ([`Place`](super::outbox::Place)): to be kept with it.
    pub cursor: Option<String>,
}

/// How the stream is connected with the rest.
#[derive(Clone)]
pub struct Channels {
    /// Takes what the stream brings.
    pub out: mpsc::Sender<Delivery>,
    /// Bounds what waits in `out` by size.
    pub budget: Arc<Semaphore>,
    /// The position that may be confirmed.
    pub durable: watch::Receiver<Lsn>,
    /// Asks the server for a keepalive: proof of silence.
    pub probe: Arc<Notify>,
    /// Is told whether the source is open and what was last heard of it.
    pub pulse: Arc<Pulse>,
}

impl Channels {
    /// What is brought goes to `out`; `durable` tells what may be confirmed.
    pub fn new(out: mpsc::Sender<Delivery>, durable: watch::Receiver<Lsn>) -> Channels {
        let (budget, probe) = (Arc::new(Semaphore::new(BUDGET)), Arc::new(Notify::new()));
        Channels { out, budget, durable, probe, pulse: Arc::default() }
    }

    /// Tells this pulse of the source.
    pub fn with_pulse(mut self, pulse: Arc<Pulse>) -> Channels {
        self.pulse = pulse;
        self
    }
}

/// An open stream.
pub struct Stream {
    wire: Wire,
    assembler: Assembler,
    channels: Channels,
    /// Nothing behind this is handed on: the stream ends there.
    until: Option<Lsn>,
    /// The server's position when we connected.
    goal: Lsn,
    status_interval: Duration,
    /// A server that is well is heard of within this time.
    quiet: Duration,
    /// What the server has sent.
    received: Lsn,
    /// End of the last transaction that was handed on: where the next session goes on.
    handed_on: Lsn,
    confirmed: Lsn,
    last_status: Instant,
    /// When the server last said something, or we last could listen.
    last_heard: Instant,
    small_reads: u32,
    last_read_at: Instant,
}

impl Stream {
    /// Starts streaming after `from`, for ever or up to a position. With `messages`, heartbeats come along.
    pub async fn start(
        replication: Replication,
        names: &Names,
        catalog: Catalog,
        from: Lsn,
        until: Option<Lsn>,
        messages: bool,
        channels: Channels,
    ) -> Result<Stream> {
        let Replication { mut wire, server } = replication;
        let command = format!(
            "START_REPLICATION SLOT \"{}\" LOGICAL {from} (proto_version '1', publication_names '\"{}\"'{})",
            names.slot,
            names.publication,
            if messages { ", messages 'true'" } else { "" }
        );
        wire.start_copy(&format!("reading replication slot {:?}", names.slot), &command).await?;
        let quiet = server.sender_timeout.unwrap_or(Duration::MAX).clamp(*QUIET.start(), *QUIET.end());
        channels.pulse.source_opened(quiet);
        Ok(Stream {
            wire,
            assembler: Assembler::new(catalog, server.next_xid),
            channels,
            until,
            goal: server.position,
            status_interval: server
                .sender_timeout
                .map_or(STATUS_INTERVAL, |timeout| STATUS_INTERVAL.min(timeout / 4)),
            quiet,
            received: from,
            handed_on: from,
            confirmed: Lsn::default(),
            last_status: Instant::now(),
            last_heard: Instant::now(),
            small_reads: 0,
            last_read_at: Instant::now(),
        })
    }

    /// Where the next session must go on.
    pub fn handed_on(&self) -> Lsn {
        self.handed_on
    }

    /// Reads until `stop` or the end (then `Ok`), or until the stream breaks.
    pub async fn run(&mut self, stop: &CancellationToken) -> Result<()> {
        let mut tick = interval(self.status_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let probe = Arc::clone(&self.channels.probe);
        let mut durable = self.channels.durable.clone();
        loop {
            while let Some(frame) = self.wire.buffered()? {
                if !self.frame(frame, stop).await? {
                    return Ok(());
                }
            }
            let confirm_at = self.last_status + CONFIRM_INTERVAL;
            let has_more_to_confirm = *durable.borrow_and_update() > self.confirmed;
            tokio::select! {
                frame = self.wire.frame() => {
                    if !self.frame(frame?, stop).await? {
                        return Ok(());
                    }
                    self.coalesce().await;
                }
                () = sleep_until(confirm_at), if has_more_to_confirm => self.status(false).await?,
                // The sender lives as long as the ledger's writer; when that is gone the daemon stops.
                Ok(()) = durable.changed(), if !has_more_to_confirm => {}
                () = probe.notified() => self.status(true).await?,
                _ = tick.tick() => self.listen().await?,
                // Only a keepalive tells that nothing more comes before the end.
                () = sleep(ASK_FOR_END), if self.until.is_some() => self.status(true).await?,
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// The regular update; asks for an answer when there has been none for long.
    async fn listen(&mut self) -> Result<()> {
        let silence = self.last_heard.elapsed();
        if silence >= SILENCE {
            return Err(Error::new(
                Kind::DatabaseUnreachable,
                format!("the server has said nothing for {} s: check that it is up", silence.as_secs()),
            ));
        }
        self.status(silence >= self.quiet / ASKS).await
    }

    /// Nothing more is handed on, so whoever takes what the stream brings comes to its end. The session stays open: what
    /// becomes durable of it is confirmed by [`Stream::finish`].
    pub fn hand_on_no_more(&mut self) {
        self.channels.out = mpsc::channel(1).0;
    }

    /// Tells the server what has become durable, and ends the session so that the slot is free at once.
    pub async fn finish(mut self) {
        if self.status(false).await.is_ok() {
            self.wire.close().await;
        }
    }

    async fn coalesce(&mut self) {
        let now = Instant::now();
        let is_busy = self.wire.last_read < SMALL_READ && now - self.last_read_at < BUSY_GAP;
        self.small_reads = if is_busy { self.small_reads + 1 } else { 0 };
        if self.small_reads >= SMALL_READS {
            tokio::time::sleep(COALESCE).await;
        }
        self.last_read_at = Instant::now();
    }

    /// Takes one message. False when there is nobody left to hand it to.
    async fn frame(&mut self, frame: Frame, stop: &CancellationToken) -> Result<bool> {
        let goes_on = self.take(frame, stop).await;
        // While we waited for room we did not listen.
        self.last_heard = Instant::now();
        self.channels.pulse.source_heard();
        goes_on
    }

    async fn take(&mut self, frame: Frame, stop: &CancellationToken) -> Result<bool> {
        match frame.tag {
            b'd' => self.copy_data(frame.body, stop).await,
            b'E' => Err(self.wire.refused("streaming", &frame.body)),
            // CopyDone: the server shuts down in an orderly way and will be back.
            b'c' => Err(Error::new(
                Kind::DatabaseUnreachable,
                "the server ended the stream: it goes on once the server is back",
            )),
            _ => Ok(true),
        }
    }

    async fn copy_data(&mut self, mut body: Bytes, stop: &CancellationToken) -> Result<bool> {
        let malformed =
            || Error::internal("the server sent a malformed streaming message: nothing was confirmed");
        match body.try_get_u8() {
            Ok(b'w') => {
                if body.len() < 24 {
                    return Err(malformed());
                }
                let start = Lsn(body.get_u64());
                body.advance(8);
                let server_time = from_postgres_epoch(body.get_i64());
                self.received = self.received.max(start);
                self.message(&body, server_time, stop).await
            }
            Ok(b'k') => {
                if body.len() < 17 {
                    return Err(malformed());
                }
                let position = Lsn(body.get_u64());
                let server_time = from_postgres_epoch(body.get_i64());
                let wants_reply = body.get_u8() == 1;
                let goes_on = self.alive(position, server_time, stop).await?;
                if wants_reply {
                    self.status(false).await?;
                }
                Ok(goes_on)
            }
            _ => Err(malformed()),
        }
    }

    /// Everything before this position has been handed on. False at the end.
    async fn alive(&mut self, position: Lsn, server_time: Micros, stop: &CancellationToken) -> Result<bool> {
        self.received = self.received.max(position);
        let is_end = self.until.is_some_and(|until| position >= until);
        let position = self.until.map_or(position, |until| position.min(until));
        let item = Item::Alive { position, caught_up: position >= self.goal };
        Ok(self.hand_on(item, server_time, stop).await? && !is_end)
    }

    async fn message(&mut self, body: &[u8], server_time: Micros, stop: &CancellationToken) -> Result<bool> {
        let message = decode(body).map_err(|e| {
            Error::internal(format!(
                "the server sent {e}: nothing was confirmed; restart flagpost, report it if it stays"
            ))
        })?;
        // One that belongs to no transaction comes where it stands in the log: after all that was committed before it. It proves
        // silence until it was left, not until the server has come to read it.
        if let Message::Logical { is_transactional: false, lsn, prefix, content } = message
            && let Some(left_at) = time_of(prefix, content)
        {
            return self.alive(lsn, left_at, stop).await;
        }
        let Some(transaction) = self.assembler.take(message)? else { return Ok(true) };
        // A server may start a little before the position that was asked for; what was handed on is not handed on twice.
        if transaction.end_lsn <= self.handed_on {
            return Ok(true);
        }
        let end = transaction.end_lsn;
        if let Some(until) = self.until.filter(|until| *until < end) {
            let item = Item::Alive { position: until, caught_up: false };
            self.hand_on(item, server_time, stop).await?;
            return Ok(false);
        }
        let units = u32::try_from((transaction.size() / BUDGET_UNIT + 1).min(BUDGET)).unwrap_or(1);
        let Some(permit) = self.permit(units, stop).await? else { return Ok(false) };
        if !self.hand_on(Item::Transaction(transaction, Some(permit)), server_time, stop).await? {
            return Ok(false);
        }
        self.handed_on = end;
        self.received = self.received.max(end);
        Ok(true)
    }

    async fn permit(&mut self, units: u32, stop: &CancellationToken) -> Result<Option<OwnedSemaphorePermit>> {
        let acquire = Arc::clone(&self.channels.budget).acquire_many_owned(units);
        tokio::pin!(acquire);
        loop {
            tokio::select! {
                permit = &mut acquire => return Ok(permit.ok()),
                () = stop.cancelled() => return Ok(None),
                () = sleep_until(self.next_status()) => {}
            }
            self.status(false).await?;
        }
    }

    async fn hand_on(&mut self, item: Item, server_time: Micros, stop: &CancellationToken) -> Result<bool> {
        let delivery = Delivery { item, server_time, received: Instant::now(), cursor: None };
        let out = self.channels.out.clone();
        let room = out.reserve();
        tokio::pin!(room);
        loop {
            tokio::select! {
                room = &mut room => {
                    let Ok(room) = room else { return Ok(false) };
                    room.send(delivery);
                    return Ok(true);
                }
                () = stop.cancelled() => return Ok(false),
                () = sleep_until(self.next_status()) => {}
            }
            self.status(false).await?;
        }
    }

    /// When to confirm next while we wait for room. The update itself is never raced against anything: half a message
    /// would break the session.
    fn next_status(&self) -> Instant {
        let has_more_to_confirm = *self.channels.durable.borrow() > self.confirmed;
        self.last_status
            + if has_more_to_confirm {
                self.status_interval.min(Duration::from_secs(1))
            } else {
                self.status_interval
            }
    }

    /// Standby status update: written = received, flushed and applied = durable.
    async fn status(&mut self, wants_reply: bool) -> Result<()> {
        let durable = *self.channels.durable.borrow();
        let mut payload = [0_u8; 34];
        let mut out = &mut payload[..];
        out.put_u8(b'r');
        out.put_u64(self.received.max(durable).0);
        out.put_u64(durable.0);
        out.put_u64(durable.0);
        out.put_i64(to_postgres_epoch(Micros::now()));
        out.put_u8(u8::from(wants_reply));
        self.wire.send_copy(&payload).await?;
        self.confirmed = durable;
        self.last_status = Instant::now();
        Ok(())
    }
}
