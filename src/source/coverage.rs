//! Watching that the publication still covers what it covered: a column that is dropped with CASCADE (as Django's migrations
//! do) takes its table out of a publication with a column list, without a word in the stream.
//!
//! Invariant: only a position at which the publication was seen whole *after* it had become durable is confirmed. So what
//! changed after a table left is never confirmed, and the daemon stops with the reason instead of missing changes silently.

use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::catalog::Catalog;
use super::conn_info::ConnInfo;
use super::publication::Publication;
use super::sql::connect;
use crate::change::Lsn;
use crate::error::{Error, Kind, Policy, Result};

/// Between two looks while positions wait to be confirmed: one short query.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two looks while nothing waits.
const LOOK_WHEN_QUIET: Duration = Duration::from_secs(10);
/// Between two tries to connect: doubled from the first to the last.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// See the module's documentation.
pub struct Coverage {
    info: ConnInfo,
    catalog: Catalog,
    name: String,
    client: Option<Client>,
}

impl Coverage {
    /// Watches the publication `name`, which must cover all of `catalog`.
    pub fn new(info: ConnInfo, catalog: Catalog, name: String) -> Coverage {
        Coverage { info, catalog, name, client: None }
    }

    /// Moves `confirmable` behind `durable` until `stop`, then once more. `Err` when the publication has lost something.
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
                    warn!(%error, "the publication cannot be looked at: nothing is confirmed until it can");
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
        let client = match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => connect(&self.info).await?,
        };
        let publication = Publication::read(&client, &self.info, &self.catalog, &self.name).await;
        self.client = Some(client);
        let missing = match publication? {
            Some(publication) => publication.missing(&self.catalog),
            None => vec![format!("the publication {:?} itself", self.name)],
        };
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Kind::SlotLost,
            format!(
                "publication {:?} has lost {} while we were reading (a migration that dropped a column does that): what \
                 changed there since is not in the stream and was not confirmed; run \"flagpost setup --resnapshot\"",
                self.name,
                missing.join(", ")
            ),
        ))
    }
}
