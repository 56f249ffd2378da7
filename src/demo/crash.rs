//! Third part: the daemon is killed while changes are being made, and started again; then the proof.
//!
//! Changes of one flag are further apart than the settle window, so that each is an event of its own. The receiver
//! answers slowly, so that the kill hits deliveries that have arrived and are not known to have: they come again.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::daemon::Daemon;
use super::flagsmith::{Change, Flagsmith, Target, Value};
use super::proof::{self, Proof, Track};
use super::receiver::{Answer, Received};
use super::show::{Screen, milliseconds};
use super::stage::{ORGANISATION, PRODUCTION, Stage};
use super::tally::Tally;
use super::webhook::Webhook;
use crate::error::{Error, Result};

const CHANGES: usize = 50;
/// The daemon dies after so many changes …
const KILLED_AFTER: usize = 20;
/// … and is started again after so many.
const STARTED_AFTER: usize = 35;
/// Between two changes. With five flags in turn, the changes of one flag are 200 ms apart: twice the settle window.
const PAUSE: Duration = Duration::from_millis(40);
/// How long the receiver thinks about an answer.
const ANSWER_AFTER: Duration = Duration::from_millis(60);
/// Changed in turn; the first two are turned on and off, the others get new values.
const FLAGS: [&str; 5] = ["free_shipping", "new_footer", "banner_text", "page_size", "search_limit"];

/// Shows it.
pub(super) async fn survive(stage: &mut Stage, screen: &mut Screen, tally: &mut Tally) -> Result<()> {
    screen.heading("kill -9 in the middle", "")?;
    stage.receiver.answer_others(Answer::status(200).after(ANSWER_AFTER));
    let mut tracks = Vec::new();
    for flag in FLAGS {
        tracks.push(Track { flag, states: vec![stage.flagsmith.visible(flag).await?] });
    }
    screen.fact(
        "writer",
        &format!("{CHANGES} changes of {} flags, one every {} ms or so", FLAGS.len(), PAUSE.as_millis()),
    )?;
    let daemon = stage.daemon.take().ok_or_else(|| {
        Error::internal("the daemon does not run when it is to be killed: this is a bug, please report it")
    })?;
    let (progress, committed) = watch::channel(0);
    let (written, restarted) = tokio::join!(
        write(&stage.flagsmith, &mut tracks, progress),
        kill_and_start(stage, screen, daemon, committed)
    );
    written?;
    stage.daemon = Some(restarted?);
    let webhooks = all_webhooks(stage).await?;
    tally.changes += CHANGES;
    tally.count(&webhooks);
    stage.receiver.answer_others(Answer::default());
    prove(&tracks, &webhooks, screen, tally)
}

/// One change after the other, with its audit row, whatever happens to the daemon.
async fn write(flagsmith: &Flagsmith, tracks: &mut [Track], progress: watch::Sender<usize>) -> Result<()> {
    for number in 0..CHANGES {
        let place = number % FLAGS.len();
        let Some(track) = tracks.get_mut(place) else { continue };
        let change = next_change(track, place, number);
        let written = flagsmith.perform(&change).await?;
        for row in &written.audits {
            flagsmith.audit(row).await?;
        }
        track.states.push(flagsmith.visible(track.flag).await?);
        progress.send_replace(number + 1);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

fn next_change(track: &Track, place: usize, number: usize) -> Change {
    let flag = track.flag;
    let is_on = track.states.last().and_then(|state| state.get(0)) == Some(&true.into());
    match place {
        0 | 1 => Change::Toggle { flag, on: !is_on },
        2 => Change::Set { flag, target: Target::Everybody, value: Value::Text(format!("text {number}")) },
        _ => Change::Set {
            flag,
            target: Target::Everybody,
            value: Value::Int(i64::try_from(number).unwrap_or_default() + 1000),
        },
    }
}

async fn kill_and_start(
    stage: &Stage,
    screen: &mut Screen,
    daemon: Daemon,
    mut committed: watch::Receiver<usize>,
) -> Result<Daemon> {
    reached(&mut committed, KILLED_AFTER).await?;
    let pid = daemon.pid().unwrap_or_default();
    daemon.kill().await?;
    let (count, arrived) = (*committed.borrow(), stage.arrived());
    screen.fact("kill -9", &format!("process {pid}, after {count} changes"))?;
    reached(&mut committed, STARTED_AFTER).await?;
    screen.fact(
        "while it was dead",
        &format!(
            "{} changes more, {} webhooks",
            *committed.borrow() - count,
            stage.arrived().saturating_sub(arrived)
        ),
    )?;
    let started = Instant::now();
    let daemon = stage.binary.start(None).await?;
    screen.fact(
        "started again",
        &format!("ready after {}, while the changes go on", milliseconds(started.elapsed())),
    )?;
    Ok(daemon)
}

async fn reached(committed: &mut watch::Receiver<usize>, count: usize) -> Result<()> {
    // The writer is gone early only when it has failed, and then says why itself.
    committed.wait_for(|committed| *committed >= count).await.map(drop).map_err(|_| {
        Error::internal("the changes ended too early: see the error of the writer, and try again")
    })
}

/// Everything that comes until every change has its event at each endpoint, or patience ends.
async fn all_webhooks(stage: &mut Stage) -> Result<Vec<Webhook>> {
    let mut webhooks = stage.take(|new: &[Received]| distinct(new) >= 3 * CHANGES).await?;
    webhooks.extend(stage.take_surplus().await?);
    Ok(webhooks)
}

/// Flag events at two endpoints, audit events at one.
fn distinct(received: &[Received]) -> usize {
    let mut keys: Vec<_> =
        received.iter().map(|r| (r.path.as_str(), r.header("x-flagpost-event-id"))).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.len()
}

fn prove(tracks: &[Track], webhooks: &[Webhook], screen: &mut Screen, tally: &mut Tally) -> Result<()> {
    let of = |endpoint: &str, is_flag: bool| -> Vec<&Webhook> {
        webhooks.iter().filter(|w| w.endpoint == endpoint && w.is_flag() == is_flag).collect()
    };
    screen.line("")?;
    screen.line("  what arrived                     committed   events   received   repeats   lost")?;
    let rows = [
        ("flags at /production", proof::of_flags(tracks, &of(PRODUCTION, true))),
        ("flags at /organisation", proof::of_flags(tracks, &of(ORGANISATION, true))),
        ("audit log at /organisation", proof::of_audit(CHANGES, &of(ORGANISATION, false))),
    ];
    let mut is_right = true;
    for (name, row) in rows {
        let Proof { committed, received, events, repeats, lost, problems } = row;
        screen
            .line(&format!("  {name:<30}{committed:>12}{events:>9}{received:>11}{repeats:>10}{lost:>7}"))?;
        is_right &= lost == 0 && problems.is_empty();
        tally.lost += lost;
        tally.repeats += repeats;
        tally.problems.extend(problems.into_iter().map(|problem| format!("{name}: {problem}")));
    }
    if is_right {
        screen.quiet("  ", "Of each flag in order, each previous_state being the new_state before; repeats have the same id and body.")?;
    }
    Ok(())
}
