//! The daemon: puts the stages together, waits, and takes them apart in order.
//!
//! Shutdown is one list, in `Running::stop`: stop reading → finish attempts → commit → last status update → exit.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::capture::{self, Capture, Rows};
use crate::change::{Lsn, Micros};
use crate::config::{Config, Mode};
use crate::delivery::{Dispatcher, Terms};
use crate::error::{Error, Kind, RECOVER, Result};
use crate::event::{EndpointKey, Engine, Format, Formats, Routing};
use crate::fact::{DropUnnoted, EndpointRemoved, Stopped, StoppedUnconnected, Stopping, trace};
use crate::housekeeping::Housekeeper;
use crate::ledger::{Identity, Ledger, Newsstand, Purpose, Reader, Write};
use crate::mirror::Mirror;
use crate::notify::Notifier;
use crate::ops;
use crate::ops::traces::{self, Collector};
use crate::prepare::{Prepared, Until, covering, origin, prepare};
use crate::pulse::{Phase, Pulse};
use crate::reload::{Levers, Reloading, delivery_terms, housekeeping_terms, notice_terms};
use crate::room::{Room, Waited};
use crate::schema::Table;
use crate::source::{Catalog, Channels, Coverage, Feed, Hold, QUEUE, beat, give_up_slot};
use crate::stage::Stage;

/// How long the ledger's writer may take to tell why it ended, after another stage has failed.
const WRITER_TELLS_WITHIN: Duration = Duration::from_millis(100);

/// Between two writes that only make an idle writer show that it gets on.
const NUDGE: Duration = Duration::from_secs(2);

/// Runs until SIGTERM or SIGINT (then `Ok`), or until something is wrong that waiting does not mend. `load` reads the
/// configuration, now and at each SIGHUP. `desk` makes who answers the status page, by the configuration that holds. `ready` is
/// called once, when the mirror is loaded and the stream is open.
pub async fn run(
    config: &Config,
    load: impl Fn() -> Result<Config> + Send + Sync + 'static,
    desk: impl FnOnce(watch::Receiver<Arc<Config>>) -> Arc<dyn ops::Desk>,
    ready: impl FnOnce(&str),
) -> Result<()> {
    let stop = CancellationToken::new();
    let pulse = Arc::<Pulse>::default();
    stop_on_signals(&stop, &pulse)?;
    let reloading = Reloading::new(config.clone(), load)?;
    let ops = tokio::spawn({
        let (config, pulse, stop) = (config.clone(), Arc::clone(&pulse), stop.clone());
        let desk = desk(reloading.current());
        async move { ops::serve(&config, desk, pulse, stop).await }
    });
    let hold = Hold::new(config.database.clone(), config.names.slot.clone(), config.retained);
    let room = Room::new(config, hold.levels());
    let hold = (config.mode == Mode::Replication).then(|| tokio::spawn(hold.watch(stop.clone())));
    let every = config.heartbeat.filter(|_| config.mode == Mode::Replication);
    let heartbeat = every.map(|every| tokio::spawn(beat(config.database.clone(), every, stop.clone())));
    if let Some(base) = &config.traces {
        let collector = Collector::new(base).map_err(Error::no_http_client)?;
        let (out, spans) = mpsc::channel(traces::QUEUE);
        trace::begin(out);
        // It ends with the process: what it still has is dropped.
        tokio::spawn(collector.run(spans));
    }
    let watched = tokio::spawn(ops::service::watch(config.clone(), Arc::clone(&pulse)));
    let ended = run_as_long_as_there_is_room(reloading, ready, room, &pulse, &stop).await;
    ops.abort();
    watched.abort();
    for task in [hold, heartbeat].into_iter().flatten() {
        task.abort();
    }
    ended
}

async fn run_as_long_as_there_is_room(
    mut reloading: Reloading,
    ready: impl FnOnce(&str),
    mut room: Room,
    pulse: &Arc<Pulse>,
    stop: &CancellationToken,
) -> Result<()> {
    let mut ready = Some(ready);
    loop {
        let config = Arc::clone(&reloading.current().borrow());
        let (terms, terms_receiver) = mpsc::channel(1);
        let dispatch = |outlet: Outlet, stop| {
            let dispatcher = dispatcher(&config, outlet, terms_receiver)?;
            Ok(dispatcher.with_pulse(Arc::clone(pulse)).run(stop))
        };
        let mut ready = |summary: &str| {
            pulse.enter(Phase::Running);
            match ready.take() {
                Some(ready) => ready(summary),
                // There was no room on the disk, and now there is.
                None => ops::service::status(summary),
            }
        };
        // A token of its own: what is still running when there is no room ends before it is begun again.
        let token = stop.child_token();
        let ended = async {
            let Some(prepared) = prepared(&config, &token).await? else { return Ok(()) };
            let (running, levers) =
                start(&config, prepared, Purpose::Send, None, dispatch, pulse, token.clone()).await?;
            ready(&running.summary);
            reloading.serve(&levers.with_delivery(terms), Box::pin(running.wait())).await
        };
        match ended.await {
            Err(error) if error.kind() == Kind::LedgerFull => {
                pulse.enter(Phase::NoRoom);
                match room.wait(&error, stop).await {
                    Waited::Room => {}
                    Waited::Stopped => return Ok(()),
                    Waited::GaveUp => return Err(give_up(&config).await),
                }
                pulse.enter(Phase::Starting);
            }
            ended => return ended,
        }
    }
}

/// The last resort: the server is let off, and the ledger says that it has missed something. Returns the error to end with.
async fn give_up(config: &Config) -> Error {
    let name = &config.names.slot;
    let why = format!(
        "the disk of state.dir was full while the server kept more than source.max_retained_wal of its log: replication slot \
         {name:?} was dropped to save the server (source.max_retained_wal_action): make room, then {RECOVER}"
    );
    if let Err(error) = give_up_slot(&config.database, name).await {
        // As before: the server goes on keeping its log, and somebody must hear of it.
        return Error::new(
            error.kind(),
            format!(
                "the server keeps more than source.max_retained_wal of its log, and the slot cannot be dropped: {error}"
            ),
        );
    }
    // Without it the next start finds the slot gone, and says the same.
    let noted = Ledger::open(&config.state_dir).and_then(|ledger| ledger.note_broken(&why));
    if let Err(error) = noted {
        DropUnnoted { error: error.to_string() }.tell();
    }
    Error::new(Kind::SlotLost, why)
}

/// `None` when told to stop meanwhile.
async fn prepared(config: &Config, stop: &CancellationToken) -> Result<Option<Prepared>> {
    stop.run_until_cancelled(prepare(config)).await.transpose()
}

/// Where events come out: what a consumer reads them with.
pub struct Outlet {
    /// Reads what was recorded.
    pub reader: Reader,
    /// Takes outcomes. The ledger's writer ends when the last sender is gone: whoever sends none drops it.
    pub writes: mpsc::Sender<Write>,
    /// Tells what is new.
    pub newsstand: Arc<Newsstand>,
}

/// Runs as [`run`] does, with another consumer in the place of the dispatcher, and reloads nothing. `consume` makes it before anything is captured;
/// it ends when its token is cancelled, or with the error that ends the daemon.
pub async fn run_with<C>(
    config: &Config,
    purpose: Purpose,
    consume: impl FnOnce(Outlet, CancellationToken) -> Result<C>,
    ready: impl FnOnce(&str),
) -> Result<()>
where
    C: Future<Output = Result<()>> + Send + 'static,
{
    let stop = CancellationToken::new();
    let pulse = Arc::default();
    stop_on_signals(&stop, &pulse)?;
    let Some(prepared) = prepared(config, &stop).await? else { return Ok(()) };
    let (running, _) = start(config, prepared, purpose, None, consume, &pulse, stop.clone()).await?;
    ready(&running.summary);
    running.wait().await
}

/// Captures up to this place of the source and no further, and sends nothing. `Err` if it was not reached.
pub async fn catch_up(config: &Config, until: Until) -> Result<()> {
    let signalled = CancellationToken::new();
    let pulse = Arc::default();
    stop_on_signals(&signalled, &pulse)?;
    let interrupted = || Error::internal("interrupted: nothing is lost, run it again");
    let prepared = tokio::select! {
        prepared = prepare(config) => prepared?,
        () = signalled.cancelled() => return Err(interrupted()),
    };
    let purpose = prepared.ledger.purpose()?;
    let nobody = |outlet: Outlet, stop: CancellationToken| {
        drop(outlet);
        Ok(async move {
            stop.cancelled().await;
            Ok(())
        })
    };
    let stop = signalled.child_token();
    start(config, prepared, purpose, Some(until), nobody, &pulse, stop).await?.0.wait().await?;
    if signalled.is_cancelled() { Err(interrupted()) } else { Ok(()) }
}

fn stop_on_signals(stop: &CancellationToken, pulse: &Arc<Pulse>) -> Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signal =
            signal(kind).map_err(|e| Error::internal(format!("signals cannot be listened to: {e}")))?;
        let (stop, pulse) = (stop.clone(), Arc::clone(pulse));
        tokio::spawn(async move {
            if signal.recv().await.is_some() {
                Stopping {}.tell();
                pulse.enter(Phase::Stopping);
                ops::service::stopping();
                stop.cancel();
            }
        });
    }
    Ok(())
}

/// A stage that is a task.
type Task<T> = Stage<T, JoinHandle<Result<T>>>;
/// A stage that is a thread, which sends how it ended.
type Thread = Stage<(), oneshot::Receiver<Result<()>>>;

struct Running {
    summary: String,
    stop: CancellationToken,
    source: Task<Option<Feed>>,
    capture: Thread,
    consumer: Task<()>,
    coverage: Task<Coverage>,
    housekeeper: Task<()>,
    notifier: Task<()>,
    positions: Positions,
    writer: Thread,
}

fn dispatcher(config: &Config, outlet: Outlet, terms: mpsc::Receiver<Terms>) -> Result<Dispatcher> {
    drop_removed(config, &outlet)?;
    let Outlet { reader, writes, newsstand } = outlet;
    Ok(Dispatcher::new(reader, writes, newsstand, delivery_terms(config)?, terms))
}

/// Drops what is queued for endpoints that the configuration does not have any more; nobody knows where to send it. It stays on
/// record, as with endpoints that are deleted in Flagsmith.
fn drop_removed(config: &Config, outlet: &Outlet) -> Result<()> {
    let is_removed = |key: &EndpointKey| {
        matches!(key, EndpointKey::Configured(_)) && config.targets.endpoint(*key).is_none()
    };
    let removed = outlet.reader.endpoints_with_work()?.into_iter().filter(is_removed);
    let mut writes: Vec<Write> = removed.map(Write::EndpointGone).collect();
    if writes.is_empty() {
        return Ok(());
    }
    for write in &writes {
        if let Write::EndpointGone(endpoint_id) = write {
            EndpointRemoved { endpoint_id: endpoint_id.to_string() }.tell();
        }
    }
    // Nothing has been captured yet: the position is the ledger's.
    let clock = outlet.reader.meta("clock")?.and_then(|text| text.parse().ok()).unwrap_or_default();
    writes.push(Write::Checkpoint(outlet.reader.checkpoint()?.unwrap_or_default(), Micros(clock)));
    let failed = |_| Error::internal("the ledger's writer takes nothing");
    writes.into_iter().try_for_each(|write| outlet.writes.try_send(write).map_err(failed))
}

async fn start<C>(
    config: &Config,
    prepared: Prepared,
    purpose: Purpose,
    until: Option<Until>,
    consume: impl FnOnce(Outlet, CancellationToken) -> Result<C>,
    pulse: &Arc<Pulse>,
    stop: CancellationToken,
) -> Result<(Running, Levers)>
where
    C: Future<Output = Result<()>> + Send + 'static,
{
    let Prepared { ledger, identity, catalog } = prepared;
    let checkpoint = ledger.checkpoint()?.unwrap_or_default();
    let before = ledger.purpose()?;
    let is_bounded = until.is_some();
    let origin = origin(config, &ledger, &identity, &catalog, until)?;
    let mut engine = load_engine(config, &ledger, &catalog, &identity, routing(config, before))?;
    let endpoints = [Table::EnvironmentWebhook, Table::OrganisationWebhook]
        .map(|table| engine.mirror().count(table))
        .iter()
        .sum::<usize>()
        + config.subscriptions.len();
    let reader = ledger.reader()?;
    let housekeeping_reader = ledger.reader()?;
    let notifier_reader = ledger.reader()?;
    let writer = ledger.with_pulse(Arc::clone(pulse)).start_writer()?;
    tokio::spawn(nudge(writer.writes.downgrade()));
    let (out, items) = mpsc::channel(QUEUE);
    // What is durable may be confirmed once the publication has been seen whole.
    let (confirmable, confirmable_receiver) = watch::channel(checkpoint);
    let coverage = Coverage::new(config.database.clone(), catalog.clone(), covering(config));
    let durable = writer.durable.clone();
    let channels = Channels::new(out, confirmable_receiver).with_pulse(Arc::clone(pulse));
    let probe = Arc::clone(&channels.probe);
    let feed = Feed::open(origin, channels).await?;
    let after = routing(config, purpose);
    let default_format = after.formats.default;
    if before != purpose {
        let format = routing(config, before).formats.default;
        capture::turn(&mut engine, purpose, checkpoint, format, &writer.writes).await;
        engine.set_routing(after);
    }

    let outlet = Outlet { reader, writes: writer.writes.clone(), newsstand: writer.newsstand };
    // Deliveries go on while the stream is being read to its end; they stop when it has.
    let consumer = tokio::spawn(consume(outlet, stop.child_token())?);
    let recorder = writer.writes.clone();
    let (housekeeping, keeping) = watch::channel(housekeeping_terms(config));
    let (notices, telling) = watch::channel(notice_terms(config));
    let housekeeper = Housekeeper::new(housekeeping_reader, writer.writes.clone(), keeping);
    let housekeeper = tokio::spawn(housekeeper.run(stop.child_token()));
    let notifier = Notifier::new(notifier_reader, writer.writes.clone(), telling);
    let (orders, orders_receiver) = mpsc::channel(1);
    let levers = Levers { catalog: catalog.clone(), orders, delivery: None, housekeeping, notices };
    let capture = Capture::new(
        engine,
        checkpoint,
        items,
        writer.writes,
        probe,
        Rows::new(config.database.clone(), catalog, stop.clone()),
        default_format,
    )
    .with_orders(orders_receiver)
    .with_pulse(Arc::clone(pulse));
    let notifier = tokio::spawn(tell_of_troubles(notifier, purpose, stop.child_token()));
    // What ends by itself takes the others with it when everything of it has been captured.
    let capture = start_capture(capture, is_bounded.then(|| stop.clone()))?;
    let summary = format!(
        "flagpost {} ready: reading {} from {checkpoint}, {endpoints} endpoints",
        env!("CARGO_PKG_VERSION"),
        config.database.shown()
    );
    let coverage =
        tokio::spawn(watch_coverage(coverage, durable.clone(), confirmable.clone(), recorder, stop.clone()));
    let stop_reading = stop.clone();
    let source = tokio::spawn(async move {
        let feed = feed.follow(&stop_reading).await;
        if feed.is_ok() {
            // What has come to its end by itself stays open until everything of it has been captured.
            stop_reading.cancelled().await;
        }
        feed
    });
    let positions = Positions { durable, confirmable };
    let running = Running {
        summary,
        stop,
        source: Stage::new("the source", source),
        capture: Stage::new("the capture thread", capture),
        consumer: Stage::new("the dispatcher", consumer),
        coverage: Stage::new("the coverage watch", coverage),
        housekeeper: Stage::new("the housekeeper", housekeeper),
        notifier: Stage::new("the notifier", notifier),
        positions,
        writer: Stage::new("the ledger's writer", writer.ended),
    };
    Ok((running, levers))
}

/// Makes an idle writer show that it gets on, as long as others write to it.
async fn nudge(writes: mpsc::WeakSender<Write>) {
    loop {
        tokio::time::sleep(NUDGE).await;
        let Some(writes) = writes.upgrade() else { return };
        // One whose queue is full is not idle.
        writes.try_send(Write::Nothing).ok();
    }
}

/// Ends when told to, also where nobody is to be told: a stage that has ended is not waited for again.
async fn tell_of_troubles(notifier: Notifier, purpose: Purpose, stop: CancellationToken) -> Result<()> {
    match purpose {
        Purpose::Send => notifier.run(stop).await,
        Purpose::Shadow => {
            stop.cancelled().await;
            Ok(())
        }
    }
}

/// What is durable, and what of it may be confirmed.
struct Positions {
    durable: watch::Receiver<Lsn>,
    confirmable: watch::Sender<Lsn>,
}

/// Watches the publication. When it has lost something, that is recorded first: a later start must not go on as if nothing had
/// been missed.
async fn watch_coverage(
    coverage: Coverage,
    durable: watch::Receiver<Lsn>,
    confirmable: watch::Sender<Lsn>,
    writes: mpsc::Sender<Write>,
    stop: CancellationToken,
) -> Result<Coverage> {
    let result = coverage.watch(durable, confirmable, stop).await;
    if let Err(error) = &result {
        let (recorded, wait) = oneshot::channel();
        if writes.send(Write::Broken(error.to_string(), recorded)).await.is_ok() {
            // The writer may be gone too; then its own error is the one that is told.
            wait.await.ok();
        }
    }
    result
}

/// Who gets what. What Flagsmith sends can only be compared in its own format, and of the configuration's own endpoints
/// Flagsmith knows nothing.
fn routing(config: &Config, purpose: Purpose) -> Routing {
    match purpose {
        Purpose::Send => config.routing(),
        Purpose::Shadow => Routing {
            formats: Formats { default: Format::Current, by_url: Vec::new() },
            subscriptions: Vec::new(),
        },
    }
}

/// The engine as the ledger left it.
pub fn load_engine(
    config: &Config,
    ledger: &Ledger,
    catalog: &Catalog,
    identity: &Identity,
    routing: Routing,
) -> Result<Engine> {
    let mut mirror = Mirror::new(catalog.capabilities());
    ledger.load_mirror(|table, row| mirror.load(table, row))?;
    let mut engine =
        Engine::new(mirror, identity.system_id.clone(), config.settle, routing, config.metadata_events);
    let (clock, position) = (ledger.clock()?.unwrap_or_default(), ledger.checkpoint()?.unwrap_or_default());
    engine.resume(clock, position);
    for bytes in ledger.load_groups()? {
        if !engine.restore_group(&bytes) {
            return Err(Error::new(
                Kind::LedgerMismatch,
                "the ledger holds an open change that this flagpost cannot read: run the flagpost that wrote it",
            ));
        }
    }
    Ok(engine)
}

fn start_capture(
    capture: Capture,
    stop_at_end: Option<CancellationToken>,
) -> Result<oneshot::Receiver<Result<()>>> {
    let (sender, receiver) = oneshot::channel();
    let runtime = Handle::current();
    std::thread::Builder::new()
        .name("capture".into())
        .spawn(move || {
            let result = capture.run(&runtime);
            let is_well = result.is_ok();
            // Nobody to tell when the daemon is gone.
            sender.send(result).ok();
            if let Some(stop) = stop_at_end.filter(|_| is_well) {
                stop.cancel();
            }
        })
        .map_err(|e| Error::internal(format!("the capture thread cannot be started: {e}")))?;
    Ok(receiver)
}

impl Running {
    /// Waits until it is told to stop, or a stage fails.
    async fn wait(mut self) -> Result<()> {
        let stop = self.stop.clone();
        let failure = tokio::select! {
            // First: once told to stop, every stage ends, and that is no error.
            biased;
            () = stop.cancelled() => None,
            error = self.failure() => Some(error),
        };
        match failure {
            None => tokio::time::timeout(STOP_WITHIN, self.stop()).await.unwrap_or_else(|_| {
                Err(Error::internal("stopping took too long and was cut short: what was not finished is done at the next start"))
            }),
            Some(error) => {
                self.stop.cancel();
                self.take_down().await;
                Err(error)
            }
        }
    }

    /// After a failure: what still runs ends on its own, calls in flight first; what does not is cut off.
    async fn take_down(&mut self) {
        let Running { source, consumer, coverage, housekeeper, notifier, .. } = self;
        consumer.end(STOP_WITHIN).await;
        source.end(STOP_WITHIN).await;
        coverage.end(STOP_WITHIN).await;
        housekeeper.end(STOP_WITHIN).await;
        notifier.end(STOP_WITHIN).await;
    }

    /// The error of the stage that failed.
    async fn failure(&mut self) -> Error {
        let Running { source, capture, consumer, coverage, housekeeper, notifier, writer, .. } = self;
        let error = tokio::select! {
            biased;
            error = writer.failure() => return error,
            error = coverage.failure() => error,
            error = source.failure() => error,
            error = capture.failure() => error,
            error = consumer.failure() => error,
            error = notifier.failure() => error,
            error = housekeeper.failure() => error,
        };
        // Whoever writes to the ledger notices that its writer is gone a moment before the writer has told why.
        tokio::time::timeout(WRITER_TELLS_WITHIN, writer.failure()).await.unwrap_or(error)
    }

    async fn stop(self) -> Result<()> {
        let source = self.source.result().await?;
        self.capture.result().await?;
        self.consumer.result().await?;
        self.notifier.result().await?;
        self.housekeeper.result().await?;
        let mut coverage = self.coverage.result().await?;
        // Every sender is gone: the writer commits what it has and ends.
        self.writer.result().await?;
        let Positions { durable, confirmable } = self.positions;
        if coverage.is_whole().await {
            confirmable.send_replace(*durable.borrow());
        }
        match source {
            Some(source) => source.finish().await,
            None => StoppedUnconnected {}.tell(),
        }
        Stopped {}.tell();
        Ok(())
    }
}

/// How long a stop may take, so that an operator's service manager can be told: attempts in flight, then the commits.
pub const STOP_WITHIN: Duration = Duration::from_secs(15);
