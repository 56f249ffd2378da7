//! What a service manager is told: that we are ready, that we stop, and in a line how we are (`systemctl status`).
//!
//! Without a service manager (no `NOTIFY_SOCKET`) nothing happens. Source: systemd's manual, sd_notify(3).

use sd_notify::NotifyState;

use crate::fact::ServiceManagerUntold;

/// The mirror is loaded and the source is open.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// We were told to stop and do so.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishing calls in flight, then stopping")]);
}

/// In a line, how we are.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

fn tell(states: &[NotifyState<'_>]) {
    // The daemon works without being heard.
    if let Err(error) = sd_notify::notify(states) {
        ServiceManagerUntold { error: error.to_string() }.tell();
    }
}
