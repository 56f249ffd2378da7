//! Watching that the source still covers what it covered. A column that is dropped with CASCADE (as Django's migrations do)
//! takes its table out of a publication with a column list, without a word in the stream; and triggers can be dropped and
//! disabled.
//!
//! Invariant: only a position at which everything was seen whole *after* it had become durable is confirmed. So what changed
//! after a table left is never confirmed, and the daemon stops with the reason instead of missing changes silently.

use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::catalog::Catalog;
use super::conn_info::ConnInfo;
use super::outbox::Outbox;
use super::publication::Publication;
use super::sql::reuse;
use crate::change::Lsn;
use crate::error::{Error, Kind, Policy, RECOVER, Result};
use crate::fact::CoverageUnknown;

/// Between two looks while positions wait to be confirmed: one short query.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two looks while nothing waits.
const LOOK_WHEN_QUIET: Duration = Duration::from_secs(10);
/// Between two tries to connect: doubled from the first to the last.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What must cover all that the database has and flagpost reads.
#[derive(Debug, Clone)]
pub enum Covering {
    /// The publication of this name.
    Publication(String),
    /// The outbox's triggers.
    Outbox(Outbox),
}

/// See the module's documentation.
pub struct Coverage {
    info: ConnInfo,
    catalog: Catalog,
    covering: Covering,
    client: Option<Client>,
}

impl Coverage {
    /// Watches that all of `catalog` is covered.
    pub fn new(info: ConnInfo, catalog: Catalog, covering: Covering) -> Coverage {
        Coverage { info, catalog, covering, client: None }
    }

    /// Moves `confirmable` behind `durable` until `stop`, then once more. `Err` when something is covered no more.
    pub async fn watch(
        mut self,
        mut durable: watch::Receiver<Lsn>,
        confirmable: watch::Sender<Lsn>,
        stop: CancellationToken,
    ) -> Result<Coverage> {
        let mut retry = FIRST_RETRY;
        loop {
            let seen = *durable.borrow_and_update();
            let wait = match self.look().await {
                Ok(()) => {
                    confirmable.send_if_modified(|at| std::mem::replace(at, seen) != seen);
                    retry = FIRST_RETRY;
                    LOOK_EVERY
                }
                Err(error) if error.kind().policy() == Policy::Stop => return Err(error),
                Err(error) => {
                    CoverageUnknown { error: error.to_string() }.tell();
                    let wait = retry;
                    retry = (retry * 2).min(LAST_RETRY);
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return Ok(self),
            }
            tokio::select! {
                // An error means that the writer is gone; whoever waits for that stops us.
                _ = durable.changed() => {}
                () = tokio::time::sleep(LOOK_WHEN_QUIET) => {}
                () = stop.cancelled() => return Ok(self),
            }
        }
    }

    /// The last look of a daemon that stops: whether everything durable may be confirmed.
    pub async fn is_whole(&mut self) -> bool {
        self.look().await.is_ok()
    }

    async fn look(&mut self) -> Result<()> {
        let client = reuse(self.client.take(), &self.info).await?;
        let missing = self.missing(&client).await;
        self.client = Some(client);
        let missing = missing?;
        if missing.is_empty() {
            return Ok(());
        }
        let missing = missing.join(", ");
        Err(Error::new(
            Kind::SlotLost,
            match &self.covering {
                Covering::Publication(name) => format!(
                    "publication {name:?} has lost {missing} while we were reading (a migration that dropped a column does \
                     that): what changed there since is not in the stream and was not confirmed; {RECOVER}"
                ),
                Covering::Outbox(_) => format!(
                    "the outbox has lost {missing} while we were reading: what changed there since is not in it; {RECOVER}"
                ),
            },
        ))
    }

    async fn missing(&self, client: &Client) -> Result<Vec<String>> {
        match &self.covering {
            Covering::Publication(name) => {
                let publication = Publication::read(client, &self.info, &self.catalog, name).await?;
                Ok(match publication {
                    Some(publication) => publication.missing(&self.catalog),
                    None => vec![format!("the publication {name:?} itself")],
                })
            }
            Covering::Outbox(outbox) => outbox.losses(client, &self.info, &self.catalog).await,
        }
    }
}
