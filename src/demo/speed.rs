//! Second part: the same without the settle window, to show what the way from commit to arrival takes by itself.

use std::time::Duration;

use super::flagsmith::{self, Change};
use super::receiver::Received;
use super::show::{Screen, milliseconds};
use super::stage::{PRODUCTION, Stage};
use super::tally::{Tally, elapsed};
use crate::error::Result;

const CHANGES: usize = 30;
const FLAG: &str = "free_shipping";
/// Between two changes; each has been delivered by then, unless the machine is very busy.
const PAUSE: Duration = Duration::from_millis(15);

/// Shows it, and starts the daemon as it was before.
pub(super) async fn measure(stage: &mut Stage, screen: &mut Screen, tally: &mut Tally) -> Result<()> {
    screen.heading("Without the settle window", "")?;
    stage.stop_daemon().await?;
    stage.start_daemon(Some("0")).await?;
    let mut committed = Vec::with_capacity(CHANGES);
    for n in 0..CHANGES {
        let written = stage.flagsmith.perform(&Change::Toggle { flag: FLAG, on: n % 2 == 0 }).await?;
        committed.extend(written.committed.get(&flagsmith::PRODUCTION));
        tokio::time::sleep(PAUSE).await;
    }
    let webhooks = stage.take(|new: &[Received]| new.len() >= 2 * CHANGES).await?;
    tally.changes += CHANGES;
    tally.count(&webhooks);
    if webhooks.len() < 2 * CHANGES {
        tally.lost += 2 * CHANGES - webhooks.len();
        tally.problems.push(format!("{} of {} webhooks came", webhooks.len(), 2 * CHANGES));
    }
    let surplus = stage.take_surplus().await?;
    tally.count_surplus(&surplus);
    // The events of one flag arrive in the order of its commits.
    for (webhook, committed) in webhooks.iter().filter(|w| w.endpoint == PRODUCTION).zip(committed) {
        tally.bare.add(elapsed(committed, webhook.at));
    }
    screen.fact(
        "source.settle = 0",
        &format!(
            "{CHANGES} toggles of {FLAG}, from commit to arrival: p50 {}, max {}",
            milliseconds(tally.bare.median()),
            milliseconds(tally.bare.max())
        ),
    )?;
    stage.stop_daemon().await?;
    stage.start_daemon(None).await.map(drop)
}
