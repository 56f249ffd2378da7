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
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::change::Micros;
use crate::delivery::{Targets, redacted};
use crate::error::Result;
use crate::event::EndpointKey;
use crate::fact::{OwnerTold, OwnerUnknown, OwnerUntold};
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

/// Who is told, and of which endpoints.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Who is told.
    pub settings: Settings,
    /// Endpoints of the configuration.
    pub targets: Arc<Targets>,
}

/// See the module's documentation.
pub struct Notifier {
    reader: Reader,
    writes: mpsc::Sender<Write>,
    terms: watch::Receiver<Terms>,
    /// What could not be told waits until then.
    not_before: HashMap<EndpointKey, Instant>,
}

impl Notifier {
    /// A notifier over the ledger that `reader` reads.
    pub fn new(reader: Reader, writes: mpsc::Sender<Write>, terms: watch::Receiver<Terms>) -> Notifier {
        Notifier { reader, writes, terms, not_before: HashMap::new() }
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
        let Terms { settings, targets } = self.terms.borrow().clone();
        if settings.smtp.is_none() && settings.webhook.is_none() {
            return Ok(());
        }
        for (endpoint, lane) in self.reader.lanes()? {
            let is_waiting = self.not_before.get(&endpoint).is_some_and(|at| *at > Instant::now());
            let troubles = troubles(&lane, Micros::now(), settings.after);
            if is_waiting || troubles.is_empty() {
                continue;
            }
            let target = match targets.endpoint(endpoint) {
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
            self.tell(&settings, &notice, &lane).await;
        }
        Ok(())
    }

    async fn tell(&mut self, settings: &Settings, notice: &Notice, lane: &LaneState) {
        let endpoint_id = notice.endpoint;
        let mut failed = false;
        for result in [mail(settings, notice).await, post(settings, notice).await].into_iter().flatten() {
            if let Err(error) = result {
                OwnerUntold { endpoint_id: endpoint_id.to_string(), error }.tell();
                failed = true;
            }
        }
        if failed {
            self.not_before.insert(endpoint_id, Instant::now() + AGAIN);
            return;
        }
        OwnerTold { endpoint_id: endpoint_id.to_string(), subject: notice.subject() }.tell();
        // When the writer is gone, it tells why itself.
        self.writes.send(Write::Notified(endpoint_id, Micros::now(), lane.dead)).await.ok();
    }
}

/// `None` where there is nobody to write to.
async fn mail(settings: &Settings, notice: &Notice) -> Option<Result<(), String>> {
    let smtp = settings.smtp.as_ref()?;
    let mut to = settings.to.clone();
    if let Some(email) = notice.owner.email.as_ref().filter(|_| settings.organisations) {
        match email.parse() {
            Ok(mailbox) => to.push(mailbox),
            Err(_) => OwnerUnknown { endpoint_id: notice.endpoint.to_string() }.tell(),
        }
    }
    if to.is_empty() { None } else { Some(smtp.send(notice, &to).await) }
}

async fn post(settings: &Settings, notice: &Notice) -> Option<Result<(), String>> {
    Some(settings.webhook.as_ref()?.send(notice).await)
}
