//! The promise of the whole pure core: whatever people do in Flagsmith, somebody who knows only the events knows every flag.
//!
//! A random story ([`telling`]) of clicks ([`clicks`]) on a Flagsmith in memory ([`database`]) becomes transactions; the engine
//! makes events of them ([`play`]); a receiver applies these ([`receiver`]); an oracle ([`oracle`]) reads the tables by the
//! rules of SEMANTICS.md and has the last word. No database, no clock, no I/O.

mod births;
mod clicks;
mod database;
mod desk;
mod faults;
mod oracle;
mod play;
mod receiver;
mod telling;
mod wild;

use std::collections::{BTreeMap, HashMap, HashSet};

use flagpost::event::{EventId, Kind, Recipient};
use proptest::collection::vec;
use proptest::prelude::*;

use database::Database;
use oracle::{environment_is_alive, flag_values, recipients};
use play::{Daemon, Told};
use receiver::{FlagEvent, Receiver};
use telling::{Click, Story, beginning, click};
use wild::{Burst, burst};

/// Stories a property; `PROPTEST_CASES` overrides it.
const CASES: u32 = 256;
/// Clicks of a story.
const LENGTH: std::ops::Range<usize> = 1..24;

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES)
}

type Recipients = BTreeMap<i64, Vec<Recipient>>;
type Verdict = Result<(), String>;

/// Plays a story with the daemon running all the time, and has the receiver follow it.
fn followed(story: &Story) -> Result<Vec<Told>, String> {
    let mut daemon = Daemon::new(&story.begin);
    let mut receiver = Receiver::default();
    receiver.is_told(&story.known_before());
    let mut all = Vec::new();
    let nobody_dead = Vec::new();
    let before = recipients(&story.begin);
    let (mut dead, mut to) = (&nobody_dead, &before);
    let mut follow =
        |daemon: &mut Daemon, receiver: &mut Receiver, dead: &[i64], to: &Recipients| -> Verdict {
            for told in daemon.told() {
                if let Some(event) = FlagEvent::read(&told)? {
                    if dead.contains(&event.flag.environment) {
                        return Err(format!("told below a deletion: {}", told.current));
                    }
                    if to[&event.flag.environment] != told.recipients {
                        return Err(format!("not to {:?}: {told}", to[&event.flag.environment]));
                    }
                    receiver.takes(event)?;
                }
                all.push(told);
            }
            Ok(())
        };
    for beat in &story.beats {
        daemon.silence(beat.transaction.commit_time);
        follow(&mut daemon, &mut receiver, dead, to)?;
        daemon.transaction(&beat.transaction, &story.end);
        (dead, to) = (&beat.dead, &beat.recipients);
        follow(&mut daemon, &mut receiver, dead, to)?;
        receiver.is_told(&beat.told_otherwise);
    }
    daemon.silence(story.end_time);
    follow(&mut daemon, &mut receiver, dead, to)?;
    if daemon.open_groups() > 0 {
        return Err("a group never closes".into());
    }
    knows_the_end(story, &receiver)?;
    Ok(all)
}

/// Below what is alive the receiver knows exactly what the tables say.
fn knows_the_end(story: &Story, receiver: &Receiver) -> Verdict {
    let is = flag_values(&story.end, story.end_time);
    for (flag, visible) in &is {
        let known = receiver.known().get(flag);
        if known != Some(visible) {
            return Err(format!("{flag:?} is {visible:?}, but the receiver knows {known:?}"));
        }
    }
    for (flag, known) in receiver.known() {
        if environment_is_alive(&story.end, flag.environment) && !is.contains_key(flag) {
            return Err(format!("{flag:?} is gone, but the receiver knows {known:?}"));
        }
    }
    Ok(())
}

/// Plays a story with a restart after each transaction for which `restarts` says so.
fn restarted(story: &Story, restarts: impl Fn(usize) -> bool) -> Vec<Told> {
    let mut daemon = Daemon::new(&story.begin);
    for (number, beat) in story.beats.iter().enumerate() {
        daemon.transaction(&beat.transaction, &story.end);
        if restarts(number) {
            daemon.restart();
        }
    }
    daemon.silence(story.end_time);
    daemon.told()
}

/// Whether two runs told the same: ids, bodies, recipients, in this order.
fn same(uninterrupted: &[Told], interrupted: &[Told]) -> Verdict {
    let pairs = uninterrupted.iter().zip(interrupted);
    if let Some((a, b)) = pairs.clone().find(|(a, b)| a != b) {
        return Err(format!("uninterrupted {a}\ninterrupted   {b}"));
    }
    if uninterrupted.len() != interrupted.len() {
        let longer = if uninterrupted.len() > interrupted.len() { uninterrupted } else { interrupted };
        let extra = &longer[uninterrupted.len().min(interrupted.len())];
        let counts = (uninterrupted.len(), interrupted.len());
        return Err(format!("{counts:?} events, uninterrupted and interrupted; the first extra {extra}"));
    }
    Ok(())
}

fn ids_are_unique(told: &[Told]) -> Verdict {
    let mut by_id: HashMap<EventId, &Told> = HashMap::new();
    for event in told {
        if let Some(other) = by_id.insert(event.id, event) {
            return Err(format!("one id for two events:\n{other}\n{event}"));
        }
    }
    Ok(())
}

fn judged(clicks: &[Click]) -> Verdict {
    ids_are_unique(&followed(&Story::tell(clicks))?)
}

/// Whether a restart is harmless after those transactions, given the number and the count of all.
fn survives(clicks: &[Click], restarts: impl Fn(usize, usize) -> bool) -> Verdict {
    let story = Story::tell(clicks);
    let count = story.beats.len();
    let uninterrupted = restarted(&story, |_| false);
    same(&uninterrupted, &restarted(&story, |number| restarts(number, count)))
}

/// Whether nothing worse happens in a stream of nonsense than in one of sense.
fn bears(bursts: &[Burst]) -> Verdict {
    let begin = beginning();
    let mut daemon = Daemon::new(&begin);
    let mut receiver = Receiver::default();
    let mut all = Vec::new();
    for transaction in wild::transactions(bursts) {
        if wild::hides(&transaction) {
            receiver.forgets_all();
        }
        // Whatever the mirror lacks is not to be had.
        daemon.transaction(&transaction, &Database::default());
        for told in daemon.told() {
            if let Some(event) = FlagEvent::read(&told)? {
                receiver.takes_what_is_new(event)?;
            }
            all.push(told);
        }
        if wild::hides(&transaction) {
            receiver.forgets_all();
        }
    }
    // A primary key of the audit log that comes twice names the same event twice, and rightly so.
    all.retain(|told| told.kind != Kind::AuditLogCreated);
    // An id is made of the state (DESIGN.md): where SQL moves a state to another flag within one window, two flags can get
    // events of one id. Of one flag no id ever comes twice.
    let mut seen = HashSet::new();
    match all.iter().find(|told| !seen.insert((told.id, told.flag))) {
        Some(told) => Err(format!("its id comes twice: {told}")),
        None => Ok(()),
    }
}

fn check(verdict: Verdict) -> Result<(), TestCaseError> {
    verdict.map_err(TestCaseError::fail)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn who_knows_only_the_events_knows_every_flag(clicks in vec(click(), LENGTH)) {
        check(judged(&clicks))?;
    }

    #[test]
    fn row_changes_without_sense_make_no_panic_and_no_contradiction(bursts in vec(burst(), 1..40)) {
        check(bears(&bursts))?;
    }

    #[test]
    fn a_restart_after_any_transaction_changes_no_event(clicks in vec(click(), LENGTH), cut in 0..400_usize) {
        check(survives(&clicks, |number, count| number == cut % count))?;
    }

    #[test]
    fn a_restart_after_every_transaction_changes_no_event(clicks in vec(click(), LENGTH)) {
        check(survives(&clicks, |_, _| true))?;
    }
}
