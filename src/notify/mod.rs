//! Failure notices: whoever owns an endpoint hears of it by mail when it keeps failing and when deliveries are given up, as
//! Flagsmith does it (`organisations_organisation.webhook_notification_email`), and so does the operator; at most once an endpoint
//! and hour. It reads the ledger and knows nothing of deliveries.

mod notice;
mod policy;
mod post;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lettre::message::Mailbox;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::change::Micros;
use crate::delivery::{Targets, redacted};
use crate::error::Result;
use crate::event::EndpointKey;
use crate::ledger::{LaneState, Reader, Write};

pub use notice::Notice;
pub use policy::{Trouble, troubles};
pub use post::{OperatorWebhook, Smtp};

/// Between two looks at the ledger.
const LOOK: Duration = Duration::from_secs(2);
/// What could not be told is tried again after this.
const AGAIN: Duration = Duration::from_secs(60);

/// Who is told, and when.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The mail server.
    pub smtp: Option<Smtp>,
    /// Who gets every mail.
    pub to: Vec<Mailbox>,
    /// Whether the organisation's own address gets it too.
    pub organisations: bool,
    /// Gets the same as JSON.
    pub webhook: Option<OperatorWebhook>,
    /// How long an endpoint's breaker has been open when it is told.
    pub after: Duration,
}

/// See the module's documentation.
pub struct Notifier {
    reader: Reader,
    writes: mpsc::Sender<Write>,
    settings: Settings,
    targets: Arc<Targets>,
    /// What could not be told waits until then.
    not_before: HashMap<EndpointKey, Instant>,
}

impl Notifier {
    /// A notifier over the ledger that `reader` reads; `None` where nobody is to be told.
    pub fn new(
        reader: Reader,
        writes: mpsc::Sender<Write>,
        settings: Settings,
        targets: Arc<Targets>,
    ) -> Option<Notifier> {
        let tells = settings.smtp.is_some() || settings.webhook.is_some();
        tells.then(|| Notifier { reader, writes, settings, targets, not_before: HashMap::new() })
    }

    /// Looks and tells until `stop`.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        loop {
            if stop.run_until_cancelled(self.look()).await.transpose()?.is_none()
                || stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none()
            {
                return Ok(());
            }
        }
    }

    async fn look(&mut self) -> Result<()> {
        for (endpoint, lane) in self.reader.lanes()? {
            let is_waiting = self.not_before.get(&endpoint).is_some_and(|at| *at > Instant::now());
            let troubles = troubles(&lane, Micros::now(), self.settings.after);
            if is_waiting || troubles.is_empty() {
                continue;
            }
            let target = match self.targets.endpoint(endpoint) {
                Some(target) => Some(target),
                None => self.reader.endpoint(endpoint)?,
            };
            let Some(target) = target else { continue };
            let notice = Notice {
                endpoint,
                url: redacted(&target.url),
                owner: self.reader.owner(endpoint)?,
                troubles,
                pending: self.reader.pending(endpoint)?,
                last_error: self.reader.last_error(&endpoint.to_string())?,
            };
            self.tell(&notice, &lane).await;
        }
        Ok(())
    }

    async fn tell(&mut self, notice: &Notice, lane: &LaneState) {
        let endpoint_id = notice.endpoint;
        let mut failed = false;
        for result in [self.mail(notice).await, self.post(notice).await].into_iter().flatten() {
            if let Err(error) = result {
                warn!(%endpoint_id, error, "nobody could be told of an endpoint's troubles: trying again in a minute");
                failed = true;
            }
        }
        if failed {
            self.not_before.insert(endpoint_id, Instant::now() + AGAIN);
            return;
        }
        info!(%endpoint_id, subject = notice.subject(), "told of an endpoint's troubles");
        // When the writer is gone, it tells why itself.
        self.writes.send(Write::Notified(endpoint_id, Micros::now(), lane.dead)).await.ok();
    }

    /// `None` where there is nobody to write to.
    async fn mail(&mut self, notice: &Notice) -> Option<Result<(), String>> {
        let smtp = self.settings.smtp.as_ref()?;
        let mut to = self.settings.to.clone();
        if let Some(email) = notice.owner.email.as_ref().filter(|_| self.settings.organisations) {
            match email.parse() {
                Ok(mailbox) => to.push(mailbox),
                Err(_) => warn!(
                    endpoint_id = %notice.endpoint,
                    "the organisation's webhook_notification_email is no address: correct it in Flagsmith"
                ),
            }
        }
        if to.is_empty() { None } else { Some(smtp.send(notice, &to).await) }
    }

    async fn post(&mut self, notice: &Notice) -> Option<Result<(), String>> {
        Some(self.settings.webhook.as_ref()?.send(notice).await)
    }
}
