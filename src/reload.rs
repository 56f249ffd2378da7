//! SIGHUP: the configuration is read again. What can change while we run holds at once; what cannot is named, and keeps its old
//! value until a restart; a configuration that cannot be used changes nothing.

use std::pin::pin;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::capture::Order;
use crate::config::Config;
use crate::delivery::{self, Client, Options, Targets};
use crate::error::{Error, Result};
use crate::event::EndpointKey;
use crate::fact::{ReloadNeedsRestart, ReloadRefused, Reloaded, ReloadedUnchanged};
use crate::ops::{logging, service};
use crate::prepare::require_tags;
use crate::source::Catalog;
use crate::{housekeeping, notify};

/// Where the stages of a running daemon take other settings.
pub struct Levers {
    /// What the database has.
    pub catalog: Catalog,
    /// Of the capture.
    pub orders: mpsc::Sender<Order>,
    /// Of the dispatcher, where there is one.
    pub delivery: Option<mpsc::Sender<delivery::Terms>>,
    /// Of the housekeeper.
    pub housekeeping: watch::Sender<housekeeping::Terms>,
    /// Of the notifier.
    pub notices: watch::Sender<notify::Terms>,
}

impl Levers {
    /// With a dispatcher.
    #[must_use]
    pub fn with_delivery(self, delivery: mpsc::Sender<delivery::Terms>) -> Levers {
        Levers { delivery: Some(delivery), ..self }
    }
}

/// Reads the configuration again whenever it is told to.
pub struct Reloading {
    load: Box<dyn Fn() -> Result<Config> + Send + Sync>,
    hangups: Signal,
    current: watch::Sender<Arc<Config>>,
}

impl Reloading {
    /// Listens to SIGHUP from now on. `load` reads the configuration, of which `config` is the first reading.
    pub fn new(
        config: Config,
        load: impl Fn() -> Result<Config> + Send + Sync + 'static,
    ) -> Result<Reloading> {
        let hangups = signal(SignalKind::hangup())
            .map_err(|e| Error::internal(format!("signals cannot be listened to: {e}")))?;
        Ok(Reloading { load: Box::new(load), hangups, current: watch::Sender::new(Arc::new(config)) })
    }

    /// The configuration that holds.
    pub fn current(&self) -> watch::Receiver<Arc<Config>> {
        self.current.subscribe()
    }

    /// Reloads when told to, as long as `running` runs.
    pub async fn serve<T>(&mut self, levers: &Levers, running: impl Future<Output = T>) -> T {
        let mut running = pin!(running);
        loop {
            tokio::select! {
                ended = &mut running => return ended,
                Some(()) = self.hangups.recv() => {}
            }
            service::reloading();
            let told = tokio::select! {
                // A stage that has ended takes no orders.
                ended = &mut running => return ended,
                told = self.reload(levers) => told,
            };
            service::ready(&told);
        }
    }

    /// Returns what is told of it.
    async fn reload(&self, levers: &Levers) -> String {
        match self.try_reload(levers).await {
            Ok(told) => told,
            Err(error) => {
                ReloadRefused { error: error.to_string() }.tell();
                "the configuration cannot be used: the old one still holds (see the log)".into()
            }
        }
    }

    async fn try_reload(&self, levers: &Levers) -> Result<String> {
        let old = Arc::clone(&self.current.borrow());
        let read = (self.load)()?;
        let changes = old.changes(&read);
        let new = old.reloaded(&read);
        if !changes.live.is_empty() {
            apply(&old, &new, levers).await?;
        }
        // Files that a key names can be others although the key's value is not: the next look compares with these.
        self.current.send_replace(Arc::new(new));
        Ok(tell(&changes.live, &changes.restart))
    }
}

/// Everything that can fail comes first, so that nothing holds by half.
async fn apply(old: &Config, new: &Config, levers: &Levers) -> Result<()> {
    require_tags(new, &levers.catalog)?;
    let terms = delivery_terms(new)?;
    logging::set_level(&new.log_level)?;
    let (taken, wait) = oneshot::channel();
    let gone = gone(&old.targets, &new.targets);
    let order = Order { routing: new.routing(), metadata_events: new.metadata_events, gone, taken };
    // A stage that takes nothing has ended, and tells why itself.
    levers.orders.send(order).await.ok();
    wait.await.ok();
    // After the capture: what was queued for an endpoint that is no more has been dropped by then.
    if let Some(delivery) = &levers.delivery {
        delivery.send(terms).await.ok();
    }
    levers.housekeeping.send_replace(housekeeping_terms(new));
    levers.notices.send_replace(notice_terms(new));
    Ok(())
}

fn gone(old: &Targets, new: &Targets) -> Vec<EndpointKey> {
    let keys = old.configured().iter().map(|configured| EndpointKey::Configured(configured.name));
    keys.filter(|key| new.endpoint(*key).is_none()).collect()
}

fn tell(live: &[String], restart: &[String]) -> String {
    if !restart.is_empty() {
        ReloadNeedsRestart { keys: restart.join(", ") }.tell();
    }
    match (live, restart) {
        ([], []) => {
            ReloadedUnchanged {}.tell();
            "read again, nothing has changed".into()
        }
        ([], restart) => format!("read again; a restart is needed for {}", restart.join(", ")),
        (live, restart) => {
            Reloaded { changed: live.join(", ") }.tell();
            let rest = match restart {
                [] => String::new(),
                keys => format!("; a restart is needed for {}", keys.join(", ")),
            };
            format!("changed: {}{rest}", live.join(", "))
        }
    }
}

/// How deliveries are made.
pub fn delivery_terms(config: &Config) -> Result<delivery::Terms> {
    let client = Client::new(config.client_settings())?;
    let options = Options {
        max_in_flight: config.max_in_flight,
        schedule: config.schedule.clone(),
        breaker: config.breaker,
        secret_rotation: config.secret_rotation,
        ..Options::default()
    };
    Ok(delivery::Terms { client, options })
}

/// What is kept.
pub fn housekeeping_terms(config: &Config) -> housekeeping::Terms {
    housekeeping::Terms {
        retention: config.retention,
        max_age: config.schedule.max_age,
        secret_rotation: config.secret_rotation,
    }
}

/// Who is told.
pub fn notice_terms(config: &Config) -> notify::Terms {
    notify::Terms { settings: config.notify.clone(), targets: Arc::clone(&config.targets) }
}
