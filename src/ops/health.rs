//! `/livez` and `/readyz`: 200 or 503, and in plain text why. For load balancers, orchestrators and people.
//!
//! *Live* means that a restart would not help; *ready* that changes are read, recorded and sent now. What is judged is in
//! [`Pulse`]; an answer at all shows that the runtime works.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::pulse::{Pulse, Trouble};

/// The two endpoints.
pub(super) fn router(pulse: Arc<Pulse>) -> Router {
    Router::new().route("/livez", get(live)).route("/readyz", get(ready)).with_state(pulse)
}

async fn live(State(pulse): State<Arc<Pulse>>) -> Response {
    answer("alive", "stuck", &pulse.stuck())
}

async fn ready(State(pulse): State<Arc<Pulse>>) -> Response {
    answer("ready", "not ready", &pulse.troubles())
}

fn answer(well: &str, unwell: &str, troubles: &[Trouble]) -> Response {
    let (code, word) = match troubles {
        [] => (StatusCode::OK, well),
        _ => (StatusCode::SERVICE_UNAVAILABLE, unwell),
    };
    let lines: String = troubles.iter().map(|trouble| format!("{trouble}\n")).collect();
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8"), (CACHE_CONTROL, "no-store")];
    (code, headers, format!("{word}\n{lines}")).into_response()
}
