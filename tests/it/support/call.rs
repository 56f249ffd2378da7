//! One call of the real HTTP client, without a daemon and a database.

use std::time::Duration;

use flagpost::change::Micros;
use flagpost::delivery::{Answer, Client, Guard, Settings, Timeouts};
use flagpost::event::EndpointKey;
use flagpost::ledger::{Due, Endpoint};

/// The event that is sent.
pub(crate) const EVENT: &str = "00a1b2c3-0000-4000-8000-000000000007";

/// An endpoint of the database.
pub(crate) fn endpoint(url: &str, secret: &str) -> Endpoint {
    Endpoint { url: url.to_owned(), secret: secret.to_owned(), old_secrets: Vec::new(), enabled: true }
}

/// A delivery to it.
pub(crate) fn due(body: &str) -> Due {
    Due {
        environment: None,
        endpoint: EndpointKey::Environment(1),
        event: 1,
        event_id: EVENT.into(),
        action: "updated;scope=default".into(),
        feature: Some("dark_mode".into()),
        sequence: 1,
        change_request: None,
        lane: "flag 1/1".into(),
        body: body.to_owned(),
        attempts: 0,
        attempts_before: 0,
        queued_at: Micros::now(),
        reconstructed: false,
        replay: false,
        commit_time: Micros::now(),
        recorded_at: Micros::now(),
    }
}

/// Settings of a client that may reach this machine, and waits this long.
pub(crate) fn settings(whole: Duration) -> Settings {
    let guard = Guard::new(vec!["127.0.0.0/8".parse().unwrap()]);
    Settings::new(guard, Timeouts { connect: whole, whole })
}

/// A client that may reach this machine, and waits this long.
pub(crate) fn client(whole: Duration) -> Client {
    Client::new(settings(whole)).unwrap()
}

/// Sends `body` to `endpoint`.
pub(crate) async fn send(endpoint: &Endpoint, body: &str) -> Answer {
    client(Duration::from_secs(5)).send(endpoint, due(body)).await
}
