//! Capture: moves the engine with the stream and writes what comes of it to the ledger. A thread of its own, for the engine
//! computes and the ledger's channel may be full; the stream's task never waits for either.
//!
//! Invariants: everything of one source transaction is written before its [`Write::Checkpoint`], so the ledger takes it as
//! one; a group is closed by silence only when the server itself has said, by a keepalive, that nothing came until then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::change::{Key, Lsn, Micros, Row, Transaction};
use crate::error::{Policy, Result};
use crate::event::{Effect, EndpointKey, Engine, Format, Routing};
use crate::fact::{Captured, EndpointRemoved, KeepaliveAsked, RowsUnfetched, SupersededForgotten};
use crate::ledger::{EventRecord, Purpose, Write};
use crate::mirror::Mirror;
use crate::pulse::{Pulse, Stage};
use crate::schema::Table;
use crate::source::{Catalog, ConnInfo, Delivery, Item, fetch, reuse};

/// The position of a quiet stream is made durable this often: one small commit a second at the most (PITFALLS 2).
const IDLE_CHECKPOINT: Duration = Duration::from_secs(1);
/// Between two requests for a keepalive while a group waits to be closed.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);
/// The same while the stream is down or far behind.
const SLOW_PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// It wakes at least this often, and shows that it is there ([`Pulse`]).
const IDLE_BEAT: Duration = Duration::from_secs(5);
/// Rows that are fetched with one statement.
const FETCH_AT_ONCE: usize = 1_000;
/// Between two tries to fetch rows.
const FETCH_WAIT: Duration = Duration::from_secs(2);

/// What holds from now on.
pub struct Order {
    /// Who gets what.
    pub routing: Routing,
    /// Whether a change of a feature's own metadata is an event.
    pub metadata_events: bool,
    /// Endpoints that are no more: what is queued for them is dropped.
    pub gone: Vec<EndpointKey>,
    /// Told when it holds.
    pub taken: oneshot::Sender<()>,
}

/// What the thread wakes up for.
enum Next {
    Delivery(Delivery),
    Order(Order),
    /// The stream's side is closed.
    End,
    /// It is time for something.
    Time,
}

/// See the module's documentation.
pub struct Capture {
    engine: Engine,
    items: mpsc::Receiver<Delivery>,
    orders: mpsc::Receiver<Order>,
    writer: Effects,
    probe: Arc<Notify>,
    rows: Rows,
    /// The server's clock, and ours, at the last delivery.
    clock: Option<(Micros, Instant)>,
    /// Keepalives prove silence only after the stream has come to where the server was.
    caught_up: bool,
    last_probe: Option<Instant>,
    /// A position that a keepalive brought and that is not written yet.
    idle_position: Option<Lsn>,
    last_checkpoint_at: Instant,
    pulse: Arc<Pulse>,
}

/// Hands effects to the ledger's writer.
struct Effects {
    writes: mpsc::Sender<Write>,
    default_format: Format,
    checkpoint: Lsn,
    is_gone: bool,
    pulse: Arc<Pulse>,
}

impl Capture {
    /// A capture that goes on at `checkpoint`, where the engine's mirror is.
    pub fn new(
        engine: Engine,
        checkpoint: Lsn,
        items: mpsc::Receiver<Delivery>,
        writes: mpsc::Sender<Write>,
        probe: Arc<Notify>,
        rows: Rows,
        default_format: Format,
    ) -> Capture {
        Capture {
            engine,
            items,
            orders: mpsc::channel(1).1,
            writer: Effects { writes, default_format, checkpoint, is_gone: false, pulse: Arc::default() },
            probe,
            rows,
            clock: None,
            caught_up: false,
            last_probe: None,
            idle_position: None,
            last_checkpoint_at: Instant::now(),
            pulse: Arc::default(),
        }
    }

    /// Shows this pulse that it gets on.
    pub fn with_pulse(mut self, pulse: Arc<Pulse>) -> Capture {
        self.writer.pulse = Arc::clone(&pulse);
        self.pulse = pulse;
        self
    }

    /// Other settings come by `orders`.
    #[must_use]
    pub fn with_orders(mut self, orders: mpsc::Receiver<Order>) -> Capture {
        self.orders = orders;
        self
    }

    /// Runs until the stream's side of the channel is closed; blocks its thread.
    pub fn run(mut self, runtime: &Handle) -> Result<()> {
        self.forget_superseded();
        loop {
            self.pulse.beat(Stage::Capture);
            let wake_at = self.next_wake();
            match runtime.block_on(self.next(wake_at)) {
                Next::Delivery(delivery) => {
                    if !self.take(delivery, runtime)? {
                        return Ok(());
                    }
                }
                Next::Order(order) => self.go_on_by(order),
                Next::End => {
                    self.write_idle_position();
                    return Ok(());
                }
                Next::Time => self.wake(),
            }
            if self.writer.is_gone {
                // The writer tells why itself.
                return Ok(());
            }
        }
    }

    async fn next(&mut self, wake_at: Instant) -> Next {
        tokio::select! {
            biased;
            // Between two transactions, so that each is routed as a whole.
            Some(order) = self.orders.recv() => Next::Order(order),
            delivery = self.items.recv() => delivery.map_or(Next::End, Next::Delivery),
            () = tokio::time::sleep_until(wake_at) => Next::Time,
        }
    }

    fn go_on_by(&mut self, order: Order) {
        self.writer.default_format = order.routing.formats.default;
        self.engine.set_routing(order.routing);
        self.engine.set_metadata_events(order.metadata_events);
        if !order.gone.is_empty() {
            for endpoint in order.gone {
                EndpointRemoved { endpoint_id: endpoint.to_string() }.tell();
                self.writer.send(Write::EndpointGone(endpoint));
            }
            self.writer.checkpoint(self.writer.checkpoint, self.engine.clock());
        }
        // Whoever asked may have gone.
        order.taken.send(()).ok();
    }

    /// A snapshot brings versions that others have superseded, and so may a ledger of an older flagpost.
    fn forget_superseded(&mut self) {
        let Capture { engine, writer, .. } = self;
        let mut count = 0_u64;
        engine.forget_all_superseded(&mut |effect| {
            count += 1;
            writer.write(effect);
        });
        if count > 0 {
            SupersededForgotten { rows: count }.tell();
            writer.checkpoint(writer.checkpoint, engine.clock());
        }
    }

    fn take(&mut self, delivery: Delivery, runtime: &Handle) -> Result<bool> {
        self.clock = Some((delivery.server_time, delivery.received));
        match delivery.item {
            Item::Transaction(transaction, permit) => {
                let goes_on = self.transaction(transaction, delivery.cursor, runtime)?;
                drop(permit);
                Ok(goes_on)
            }
            Item::Alive { position, caught_up } => {
                self.caught_up = caught_up;
                self.alive(position, delivery.server_time);
                Ok(true)
            }
        }
    }

    /// False when we were told to stop before the transaction could be taken: it comes again at the next start.
    fn transaction(
        &mut self,
        transaction: Transaction,
        cursor: Option<String>,
        runtime: &Handle,
    ) -> Result<bool> {
        let end = transaction.end_lsn;
        let Capture { engine, writer, rows, .. } = self;
        let missing = rows.missing(engine.mirror(), &transaction, runtime, &self.pulse)?;
        let Some(missing) = missing else { return Ok(false) };
        for (table, row) in missing {
            engine.supply(table, row, &mut |effect| writer.write(effect));
        }
        let captured = Captured {
            lsn: end.to_string(),
            xid: transaction.xid,
            changes: u64::try_from(transaction.changes.len()).unwrap_or(u64::MAX),
        };
        engine.transaction(transaction, &mut |effect| writer.write(effect));
        captured.tell();
        if let Some(cursor) = cursor {
            writer.send(Write::Cursor(cursor));
        }
        writer.checkpoint(end, engine.clock());
        self.idle_position = None;
        self.last_checkpoint_at = Instant::now();
        Ok(true)
    }

    fn alive(&mut self, position: Lsn, server_time: Micros) {
        if position > self.writer.checkpoint {
            self.idle_position = Some(position);
        }
        if self.caught_up && self.engine.next_deadline().is_some_and(|deadline| deadline <= server_time) {
            let Capture { engine, writer, .. } = self;
            engine.silence(server_time, &mut |effect| writer.write(effect));
            writer.checkpoint(position, engine.clock());
            self.idle_position = None;
            self.last_checkpoint_at = Instant::now();
        } else if self.last_checkpoint_at.elapsed() >= IDLE_CHECKPOINT {
            self.write_idle_position();
        }
    }

    fn write_idle_position(&mut self) {
        if let Some(position) = self.idle_position.take() {
            self.writer.checkpoint(position, self.engine.clock());
            self.last_checkpoint_at = Instant::now();
        }
    }

    /// The server's clock now, as far as we can tell.
    fn server_now(&self) -> Option<Micros> {
        self.clock.map(|(server, ours)| server.plus(ours.elapsed()))
    }

    fn next_wake(&self) -> Instant {
        let beat = Instant::now() + IDLE_BEAT;
        let idle = self.idle_position.map(|_| self.last_checkpoint_at + IDLE_CHECKPOINT);
        idle.into_iter().chain(self.next_probe()).fold(beat, Instant::min)
    }

    fn next_probe(&self) -> Option<Instant> {
        let deadline = self.engine.next_deadline()?;
        let (server, ours) = self.clock.unwrap_or((deadline, Instant::now()));
        let due = ours + Duration::from_micros(u64::try_from(deadline.0 - server.0).unwrap_or(0));
        let interval = if self.caught_up { PROBE_INTERVAL } else { SLOW_PROBE_INTERVAL };
        Some(self.last_probe.map_or(due, |last| due.max(last + interval)))
    }

    fn wake(&mut self) {
        if self.idle_position.is_some() && self.last_checkpoint_at.elapsed() >= IDLE_CHECKPOINT {
            self.write_idle_position();
        }
        let now = Instant::now();
        if self.next_probe().is_some_and(|at| at <= now) {
            self.last_probe = Some(now);
            KeepaliveAsked { server_now: self.server_now().map(|now| now.0) }.tell();
            self.probe.notify_one();
        }
    }
}

fn write(effect: Effect, default_format: Format) -> Write {
    match effect {
        Effect::Mirror(persist) => Write::Mirror(persist),
        Effect::KeepGroup { slot, bytes } => Write::KeepGroup(slot, bytes),
        Effect::DropGroup { slot } => Write::DropGroup(slot),
        Effect::Event(event, recipients) => {
            Write::Event(Box::new(EventRecord::new(&event, recipients, default_format)))
        }
        Effect::EndpointChanged(endpoint) => Write::EndpointChanged(endpoint),
        Effect::EndpointGone(endpoint) => Write::EndpointGone(endpoint),
    }
}

/// From here on the ledger is written for `purpose`. Groups that are open were read for the one before, so they are closed
/// and recorded for it, in the same ledger transaction: what shadow mode has read is never sent, what `run` has read is owed,
/// however either of them ended. Before anything else is captured; returns when it is durable. `default_format` is that of the
/// purpose before.
pub async fn turn(
    engine: &mut Engine,
    purpose: Purpose,
    checkpoint: Lsn,
    default_format: Format,
    writes: &mpsc::Sender<Write>,
) {
    let mut effects = Vec::new();
    engine.close_all(&mut |effect| effects.push(effect));
    let (recorded, wait) = oneshot::channel();
    let closed = effects.into_iter().map(|effect| write(effect, default_format));
    let turn = [Write::Purpose(purpose, recorded), Write::Checkpoint(checkpoint, engine.clock())];
    for write in closed.chain(turn) {
        if writes.send(write).await.is_err() {
            break;
        }
    }
    // A writer that is gone tells why itself.
    wait.await.ok();
}

impl Effects {
    fn write(&mut self, effect: Effect) {
        self.send(write(effect, self.default_format));
    }

    /// What was written before belongs together, and to this position.
    fn checkpoint(&mut self, position: Lsn, clock: Micros) {
        self.checkpoint = self.checkpoint.max(position);
        self.send(Write::Checkpoint(self.checkpoint, clock));
    }

    fn send(&mut self, write: Write) {
        self.pulse.beat(Stage::Capture);
        if !self.is_gone && self.writes.blocking_send(write).is_err() {
            self.is_gone = true;
        }
    }
}

/// Fetches the few rows that the mirror does not keep. Connects when it is first needed.
pub struct Rows {
    info: ConnInfo,
    catalog: Catalog,
    client: Option<Client>,
    stop: CancellationToken,
}

impl Rows {
    /// Rows of this database, until `stop`.
    pub fn new(info: ConnInfo, catalog: Catalog, stop: CancellationToken) -> Rows {
        Rows { info, catalog, client: None, stop }
    }

    /// What a transaction refers to and the mirror lacks, as it is now, without what is gone. `None` when we are told to stop.
    fn missing(
        &mut self,
        mirror: &Mirror,
        transaction: &Transaction,
        runtime: &Handle,
        pulse: &Pulse,
    ) -> Result<Option<Vec<(Table, Row)>>> {
        let mut lacking: BTreeMap<Table, Vec<Key>> = BTreeMap::new();
        for (table, key) in mirror.lacks(transaction) {
            lacking.entry(table).or_default().push(key);
        }
        let mut found = Vec::new();
        for (table, keys) in &lacking {
            for keys in keys.chunks(FETCH_AT_ONCE) {
                let Some(rows) =
                    runtime.block_on(pulse.beat_while(Stage::Capture, self.fetch(*table, keys)))?
                else {
                    return Ok(None);
                };
                found.extend(rows.into_iter().map(|row| (*table, row)));
            }
        }
        Ok(Some(found))
    }

    /// Tries until the database answers or we are told to stop: a transaction cannot be understood without these rows, and
    /// nothing after it is confirmed meanwhile.
    async fn fetch(&mut self, table: Table, keys: &[Key]) -> Result<Option<Vec<Row>>> {
        let stop = self.stop.clone();
        loop {
            let error = match stop.run_until_cancelled(self.try_fetch(table, keys)).await {
                None => return Ok(None),
                Some(Ok(rows)) => return Ok(Some(rows)),
                Some(Err(error)) => error,
            };
            self.client = None;
            if error.kind().policy() == Policy::Stop {
                return Err(error);
            }
            RowsUnfetched { error: error.to_string(), table: table.name() }.tell();
            stop.run_until_cancelled(tokio::time::sleep(FETCH_WAIT)).await;
        }
    }

    async fn try_fetch(&mut self, table: Table, keys: &[Key]) -> Result<Vec<Row>> {
        let client = reuse(self.client.take(), &self.info).await?;
        let rows = fetch(&client, &self.info, &self.catalog, table, keys).await;
        self.client = Some(client);
        rows
    }
}
