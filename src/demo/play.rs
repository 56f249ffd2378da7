//! The demo from beginning to end: stage, three parts, summary.

use std::time::Instant;

use super::show::{Look, Screen, milliseconds, seconds};
use super::stage::Stage;
use super::tally::Tally;
use super::{crash, speed, story};
use crate::error::Result;

/// Plays it; true when all that was promised has been seen. With `keep`, database and ledger stay.
///
/// Dropping the future at any moment takes everything away again: processes, folder, sockets.
///
/// # Errors
/// If something could not be set up, or a part could not be played to its end.
pub async fn play(keep: bool) -> Result<bool> {
    let started = Instant::now();
    let mut screen = Screen::standard();
    let title = format!("flagpost {}: the daemon at work on a scratch database", env!("CARGO_PKG_VERSION"));
    let title = screen.paint(Look::Bold, &title);
    screen.line(&title)?;
    let mut stage = Stage::set(&mut screen).await?;
    let mut tally = Tally::default();
    story::tell(&mut stage, &mut screen, &mut tally).await?;
    speed::measure(&mut stage, &mut screen, &mut tally).await?;
    crash::survive(&mut stage, &mut screen, &mut tally).await?;
    let kept = if keep {
        Some(stage.keep().await?)
    } else {
        stage.stop_daemon().await?;
        drop(stage);
        None
    };
    summarize(&tally, started, &mut screen)?;
    if let Some(kept) = kept {
        let kept = kept.display();
        screen
            .fact("kept", &format!("{kept}: data (the cluster), state (the ledger); remove it when done"))?;
        screen.fact("", &format!("sqlite3 {kept}/state/ledger.sqlite3"))?;
    }
    Ok(tally.problems.is_empty() && tally.lost == 0)
}

fn summarize(tally: &Tally, started: Instant, screen: &mut Screen) -> Result<()> {
    screen.heading("Summary", "")?;
    screen.fact("changes", &format!("{} committed", tally.changes))?;
    let repeats = if tally.repeats == 0 {
        String::new()
    } else {
        format!(", {} of them repeats after the kill", tally.repeats)
    };
    screen.fact("webhooks", &format!("{} received{repeats}", tally.received))?;
    screen.fact("signatures", &format!("{} of {} verified", tally.signed, tally.received))?;
    for (name, times) in [("with the window", &tally.settled), ("without it", &tally.bare)] {
        let (median, max) = (milliseconds(times.median()), milliseconds(times.max()));
        screen.fact("commit to arrival", &format!("p50 {median}, max {max}, {name}"))?;
    }
    screen.fact("time", &seconds(started.elapsed()))?;
    for problem in &tally.problems {
        screen.problem(problem)?;
    }
    let is_well = tally.problems.is_empty() && tally.lost == 0;
    let verdict = if is_well { "every change arrived" } else { "not all is well" };
    let look = if is_well { Look::Green } else { Look::Red };
    let verdict = screen.paint(look, &format!("lost {}: {verdict}", tally.lost));
    screen.fact("", &verdict)
}
