//! Signs of life: every stage says here that it gets on, and whoever asks is told which does not.
//!
//! A stage beats when it has really done a step, or has found that there is nothing to do; none beats for another. Who judges
//! (`/readyz`, `/livez`, the service manager's watchdog) only reads. Two questions are apart: *ready* is about doing the work now
//! (the source may be down, which passes by itself), *stuck* is about us (which only a restart mends).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A stage that has not beaten for so long is not ready: it beats every few seconds.
const LATE: Duration = Duration::from_secs(30);
/// After so long it is taken for stuck. Four times as long, for a restart costs more than patience with a slow disk.
const STUCK: Duration = Duration::from_secs(120);
/// A stage that waits for somebody outside (a database that is down) beats so often meanwhile.
const WAITING_BEAT: Duration = Duration::from_secs(1);

/// What can be stuck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Moves the mirror with the stream.
    Capture,
    /// Writes the ledger.
    Writer,
    /// Sends what is due.
    Delivery,
}

impl Stage {
    /// All of them.
    pub const ALL: [Stage; 3] = [Stage::Capture, Stage::Writer, Stage::Delivery];

    /// Its name, as it is told.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Capture => "capture",
            Stage::Writer => "writer",
            Stage::Delivery => "delivery",
        }
    }
}

/// Where the daemon is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Connecting, checking, filling or loading the mirror.
    Starting,
    /// The mirror is loaded and all stages run.
    Running,
    /// There is no room on the disk of the ledger: nothing is read or sent until there is.
    NoRoom,
    /// Told to stop.
    Stopping,
}

impl Phase {
    /// Its name, as it is told.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::NoRoom => "no room",
            Phase::Stopping => "stopping",
        }
    }
}

/// What is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// `daemon`, `source`, or a stage's name.
    pub part: &'static str,
    /// What is wrong with it, for a person.
    pub says: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.says)
    }
}

/// See the module's documentation. Shared by all stages of a daemon.
#[derive(Debug)]
pub struct Pulse {
    began: Instant,
    state: Mutex<State>,
    /// By [`Stage`]: milliseconds since `began`.
    beats: [AtomicU64; Stage::ALL.len()],
    /// The same of the source's server.
    heard: AtomicU64,
    /// Attempts that were answered with 2xx, and that failed.
    delivered: AtomicU64,
    failed: AtomicU64,
}

#[derive(Debug, Clone)]
struct State {
    phase: Phase,
    phase_since: u64,
    source: Source,
    source_since: u64,
}

#[derive(Debug, Clone)]
enum Source {
    /// Not opened yet.
    New,
    /// Open. A server that says nothing for longer than this is not there.
    Open { quiet: Duration },
    /// It broke; why.
    Closed(String),
}

impl Default for Pulse {
    fn default() -> Pulse {
        Pulse {
            began: Instant::now(),
            state: Mutex::new(State {
                phase: Phase::Starting,
                phase_since: 0,
                source: Source::New,
                source_since: 0,
            }),
            beats: std::array::from_fn(|_| AtomicU64::new(0)),
            heard: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }
}

impl Pulse {
    /// A stage got on.
    pub fn beat(&self, stage: Stage) {
        if let Some(beat) = self.beats.get(stage as usize) {
            beat.store(self.now(), Ordering::Relaxed);
        }
    }

    /// An attempt to deliver has ended.
    pub fn attempted(&self, is_delivered: bool) {
        let counter = if is_delivered { &self.delivered } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// How many attempts were delivered, and how many failed, since the process began.
    pub fn attempts(&self) -> (u64, u64) {
        (self.delivered.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// Waits for somebody outside who may take long, beating for the stage that waits.
    pub async fn beat_while<T>(&self, stage: Stage, waiting: impl Future<Output = T>) -> T {
        let mut waiting = std::pin::pin!(waiting);
        loop {
            self.beat(stage);
            if let Ok(done) = tokio::time::timeout(WAITING_BEAT, &mut waiting).await {
                return done;
            }
        }
    }

    /// The daemon has come to another phase of its life. All stages begin anew with it.
    pub fn enter(&self, phase: Phase) {
        Stage::ALL.into_iter().for_each(|stage| self.beat(stage));
        let now = self.now();
        let mut state = self.state();
        state.phase = phase;
        state.phase_since = now;
    }

    /// The source is open. It is heard of again within `quiet`, or it is not there any more.
    pub fn source_opened(&self, quiet: Duration) {
        self.source_heard();
        self.source(Source::Open { quiet });
    }

    /// The server has said something, or has answered.
    pub fn source_heard(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
    }

    /// The source broke.
    pub fn source_closed(&self, why: &dyn fmt::Display) {
        self.source(Source::Closed(why.to_string()));
    }

    fn source(&self, source: Source) {
        let now = self.now();
        let mut state = self.state();
        // Since when it is down counts, not since when the last try has failed.
        if !matches!((&state.source, &source), (Source::Closed(_), Source::Closed(_))) {
            state.source_since = now;
        }
        state.source = source;
    }

    /// The phase, and for how long.
    pub fn phase(&self) -> (Phase, Duration) {
        let state = self.state();
        (state.phase, span(state.phase_since, self.now()))
    }

    /// How long ago a stage got on.
    pub fn since(&self, stage: Stage) -> Duration {
        let beat = self.beats.get(stage as usize).map_or(0, |beat| beat.load(Ordering::Relaxed));
        span(beat, self.now())
    }

    /// What keeps the daemon from doing its work now; nothing when it is ready.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.troubles_at(self.now())
    }

    /// Stages that have not got on for so long that only a restart helps; none when the daemon is alive.
    pub fn stuck(&self) -> Vec<Trouble> {
        self.stuck_at(self.now())
    }

    fn troubles_at(&self, now: u64) -> Vec<Trouble> {
        let state = self.state().clone();
        let phase_for = span(state.phase_since, now).as_secs();
        let daemon = match state.phase {
            Phase::Running => None,
            Phase::Starting => {
                Some(format!("it starts, for {phase_for} s now: connecting, checking, loading the mirror"))
            }
            Phase::NoRoom => Some(format!(
                "there is no room on the disk of state.dir, for {phase_for} s now: nothing is read or sent until there is"
            )),
            Phase::Stopping => Some("it was told to stop".to_owned()),
        };
        let source_for = span(state.source_since, now).as_secs();
        let silent = span(self.heard.load(Ordering::Relaxed), now);
        let source = match state.source {
            // There is nothing more to tell than that it starts.
            Source::New => None,
            Source::Open { quiet } if silent <= quiet => None,
            Source::Open { .. } => {
                Some(format!("the database has said nothing for {} s: check that it is up", silent.as_secs()))
            }
            Source::Closed(why) => {
                Some(format!("down for {source_for} s, connecting again and again: {why}"))
            }
        };
        let trouble = |part| move |says| Trouble { part, says };
        let mut all: Vec<Trouble> = daemon.map(trouble("daemon")).into_iter().collect();
        // Without room, and before the start, there are no stages.
        if matches!(state.phase, Phase::Running | Phase::Stopping) {
            all.extend(source.map(trouble("source")));
            all.extend(self.silent_for(LATE, now));
        }
        all
    }

    fn stuck_at(&self, now: u64) -> Vec<Trouble> {
        let phase = self.state().phase;
        if phase == Phase::Running { self.silent_for(STUCK, now) } else { Vec::new() }
    }

    fn silent_for(&self, limit: Duration, now: u64) -> Vec<Trouble> {
        Stage::ALL
            .into_iter()
            .zip(&self.beats)
            .map(|(stage, beat)| (stage, span(beat.load(Ordering::Relaxed), now)))
            .filter(|(_, silent)| *silent > limit)
            .map(|(stage, silent)| Trouble {
                part: stage.name(),
                says: format!("it has not got on for {} s", silent.as_secs()),
            })
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since it began.
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn span(from: u64, to: u64) -> Duration {
    Duration::from_millis(to.saturating_sub(from))
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_secs(10);

    fn running() -> Pulse {
        let pulse = Pulse::default();
        pulse.source_opened(QUIET);
        pulse.enter(Phase::Running);
        pulse
    }

    fn parts(troubles: &[Trouble]) -> Vec<&str> {
        troubles.iter().map(|trouble| trouble.part).collect()
    }

    /// So long from now.
    fn after(pulse: &Pulse, span: Duration) -> u64 {
        pulse.now() + u64::try_from(span.as_millis()).unwrap()
    }

    #[test]
    fn it_is_ready_only_while_it_runs_on_an_open_source() {
        let pulse = Pulse::default();
        assert_eq!(parts(&pulse.troubles()), ["daemon"]);
        pulse.source_opened(QUIET);
        assert_eq!(parts(&pulse.troubles()), ["daemon"], "the mirror is not loaded yet");
        pulse.enter(Phase::Running);
        assert_eq!(pulse.troubles(), []);
        for phase in [Phase::NoRoom, Phase::Stopping, Phase::Starting] {
            pulse.enter(phase);
            assert_eq!(parts(&pulse.troubles()), ["daemon"], "{phase:?}");
            assert_eq!(pulse.stuck(), []);
        }
    }

    #[test]
    fn a_source_that_broke_is_told_with_its_reason_until_it_is_open_again() {
        let pulse = running();
        pulse.source_closed(&"connection refused");
        let troubles = pulse.troubles();
        assert_eq!(parts(&troubles), ["source"]);
        assert!(troubles[0].to_string().ends_with("connection refused"), "{}", troubles[0]);
        assert_eq!(pulse.stuck(), [], "a restart does not mend the database");
        pulse.source_opened(QUIET);
        assert_eq!(pulse.troubles(), []);
    }

    #[test]
    fn how_long_it_is_down_is_counted_from_the_first_failure() {
        let pulse = running();
        pulse.source_closed(&"reset");
        std::thread::sleep(Duration::from_millis(5));
        let since = pulse.state().source_since;
        pulse.source_closed(&"refused");
        assert_eq!(pulse.state().source_since, since);
        pulse.source_opened(QUIET);
        assert!(pulse.state().source_since > since);
    }

    #[test]
    fn a_silent_server_is_no_open_source() {
        let pulse = running();
        assert_eq!(pulse.troubles_at(after(&pulse, Duration::from_secs(9))), []);
        assert_eq!(parts(&pulse.troubles_at(after(&pulse, Duration::from_secs(11)))), ["source"]);
    }

    #[test]
    fn a_stage_that_does_not_get_on_is_named_and_later_stuck() {
        let pulse = running();
        pulse.source_opened(Duration::MAX);
        let late = after(&pulse, LATE + Duration::from_secs(1));
        assert_eq!(parts(&pulse.troubles_at(late)), ["capture", "writer", "delivery"]);
        assert_eq!(pulse.stuck_at(late), []);
        let much_later = after(&pulse, STUCK + Duration::from_secs(1));
        assert_eq!(parts(&pulse.stuck_at(much_later)), ["capture", "writer", "delivery"]);
        // Only the one that beats is well.
        pulse.beats[Stage::Writer as usize].store(much_later, Ordering::Relaxed);
        assert_eq!(parts(&pulse.stuck_at(much_later)), ["capture", "delivery"]);
    }

    #[tokio::test]
    async fn who_waits_for_somebody_outside_goes_on_beating() {
        let pulse = running();
        let beat = &pulse.beats[Stage::Capture as usize];
        let until_it_beats_again = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            beat.store(0, Ordering::Relaxed);
            while beat.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        pulse.beat_while(Stage::Capture, until_it_beats_again).await;
    }
}
