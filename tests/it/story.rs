//! The promise of the whole pure core: whatever people do in Flagsmith, somebody who knows only the events knows every flag.
//!
//! A random story ([`telling`]) of clicks ([`clicks`]) on a Flagsmith in memory ([`database`]) becomes transactions; the engine
//! makes events of them ([`play`]); a receiver applies these ([`receiver`]); an oracle ([`oracle`]) reads the tables by the
//! rules of SEMANTICS.md and has the last word. No database, no clock, no I/O.

mod births;
mod clicks;
mod coverage;
mod database;
mod desk;
mod faults;
mod oracle;
mod play;
mod receiver;
mod schedule;
mod telling;
mod versions;
mod wild;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use flagpost::change::Micros;
use flagpost::event::{EndpointKey, EventId, Format, Kind, Recipient};
use proptest::collection::vec;
use proptest::prelude::*;

use database::Database;
use oracle::{FlagValue, dead_features, recipients};
use play::{Daemon, Told};
use receiver::{FlagEvent, Receiver};
use telling::{Click, Story, Truth, beginning, click, is_gone_by};
use wild::{Burst, burst};

/// Stories a property; `PROPTEST_CASES` overrides it.
const CASES: u32 = 256;
/// Clicks of a story.
const LENGTH: std::ops::Range<usize> = 1..32;

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES)
}

type Recipients = BTreeMap<i64, Vec<Recipient>>;
type Verdict = Result<(), String>;

/// Plays a story with the daemon running all the time, and has the receiver follow it.
fn followed(story: &Story) -> Result<Vec<Told>, String> {
    let mut daemon = Daemon::from_snapshot(&story.begin, story.begin_time);
    let mut receiver = Receiver::default();
    let before = Truth::of(&story.begin, story.begin_time);
    receiver.is_told(&before.flags);
    receiver.is_told_of_versions(&before.versions);
    let mut all = Vec::new();
    let mut once_dead: BTreeSet<i64> = dead_features(&story.begin).into_iter().collect();
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
                if let Some(flag) = told.version_of {
                    if dead.contains(&flag.1) {
                        return Err(format!("told below a deletion: {}", told.current));
                    }
                    let to = to[&flag.1].iter().filter(|to| is_of_versions(to));
                    if !to.eq(&told.recipients) {
                        return Err(format!("not to its environment's: {told}"));
                    }
                    receiver.takes_version(flag, &told)?;
                }
                all.push(told);
            }
            Ok(())
        };
    for beat in &story.beats {
        if let Some(truth) = &beat.quiet {
            daemon.silence(truth.at);
            follow(&mut daemon, &mut receiver, dead, to)?;
            let is_sure = |flag: &FlagValue| !is_gone_by(flag, &story.end);
            knows(&receiver, &truth.as_seen_from(&story.end), is_sure, dead, &once_dead)?;
        }
        daemon.silence(beat.heard.unwrap_or(beat.transaction.commit_time));
        follow(&mut daemon, &mut receiver, dead, to)?;
        daemon.transaction(&beat.transaction, &story.end);
        (dead, to) = (&beat.dead, &beat.recipients);
        follow(&mut daemon, &mut receiver, dead, to)?;
        receiver.is_told(&beat.told_otherwise);
        once_dead.extend(&beat.dead_features);
    }
    for end in [story.end_time, story.far_end()] {
        daemon.silence(end);
        follow(&mut daemon, &mut receiver, dead, to)?;
        if daemon.open_groups() > 0 {
            return Err("a group never closes".into());
        }
        knows(&receiver, &Truth::of(&story.end, end), |_| true, dead, &once_dead)?;
    }
    Ok(all)
}

fn is_of_versions(to: &Recipient) -> bool {
    matches!(to.endpoint, EndpointKey::Environment(_)) && to.format == Format::Current
}

/// Below what is alive the receiver knows exactly what the tables say, and of every feature that always was the version that is
/// live, unless it is one that nobody published.
fn knows(
    receiver: &Receiver,
    truth: &Truth,
    is_sure: impl Fn(&FlagValue) -> bool,
    dead: &[i64],
    once_dead: &BTreeSet<i64>,
) -> Verdict {
    let at = truth.at.0;
    for (flag, visible) in &truth.flags {
        let known = receiver.known().get(flag);
        if known != Some(visible) {
            return Err(format!("{flag:?} is {visible:?} at {at}, but the receiver knows {known:?}"));
        }
    }
    for (flag, known) in receiver.known() {
        if is_sure(flag) && !dead.contains(&flag.environment) && !truth.flags.contains_key(flag) {
            return Err(format!("{flag:?} is gone at {at}, but the receiver knows {known:?}"));
        }
    }
    for (flag, live) in &truth.versions {
        let known = receiver.version(*flag);
        if live.follows_another && known != Some(&live.uuid) && !once_dead.contains(&flag.0) {
            return Err(format!(
                "{} is live in {flag:?} at {at}, but the receiver knows {known:?}",
                live.uuid
            ));
        }
    }
    Ok(())
}

/// Plays a story with a restart after each transaction for which `restarts` says so. The server's clock is heard only where the
/// story needs it.
fn restarted(story: &Story, restarts: impl Fn(usize) -> bool) -> Vec<Told> {
    let mut daemon = Daemon::from_snapshot(&story.begin, story.begin_time);
    for (number, beat) in story.beats.iter().enumerate() {
        if let Some(heard) = beat.heard {
            daemon.silence(heard);
            if restarts(number) {
                daemon.restart();
            }
        }
        daemon.transaction(&beat.transaction, &story.end);
        if restarts(number) {
            daemon.restart();
        }
    }
    daemon.silence(story.far_end());
    daemon.told()
}

/// The same with the daemon down while something goes live: each start hears how late it is before anything else, and the daemon
/// stops again before the next transaction comes.
fn started_late(story: &Story) -> Vec<Told> {
    let mut daemon = Daemon::from_snapshot(&story.begin, story.begin_time);
    for beat in &story.beats {
        daemon.restart();
        daemon.silence(beat.heard.unwrap_or(Micros(beat.transaction.commit_time.0 - 1)));
        daemon.restart();
        daemon.transaction(&beat.transaction, &story.end);
    }
    daemon.restart();
    daemon.silence(story.end_time);
    daemon.restart();
    daemon.silence(story.far_end());
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

fn judged(story: &Story) -> Verdict {
    let told = followed(story)?;
    ids_are_unique(&told)?;
    // Silence between the transactions has told nothing else than the transactions would have.
    same(&told, &restarted(story, |_| false))
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
        check(judged(&Story::tell(&clicks)))?;
    }

    #[test]
    fn who_begins_in_the_middle_of_a_history_knows_every_flag_too(before in vec(click(), LENGTH), clicks in vec(click(), LENGTH)) {
        check(judged(&Story::tell_after(&before, &clicks)))?;
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

    #[test]
    fn a_daemon_that_is_down_most_of_the_time_tells_the_same(clicks in vec(click(), LENGTH)) {
        let story = Story::tell(&clicks);
        check(same(&restarted(&story, |_| false), &started_late(&story)))?;
    }
}
