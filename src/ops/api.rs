//! The JSON that the page lives on, for other programs too: `/api/status`, `/api/samples`, `/api/deliveries`, `/api/events/ID`, and
//! with the token `/api/endpoints/KEY/pause`, `…/resume`, `/api/events/ID/replay`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, RawQuery, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value as Json, json};
use tokio::sync::{Mutex, Semaphore};

use super::desk::{Asked, Desk};
use super::door::{Door, Refusal};
use super::sample::{EVERY, History};
use crate::change::Micros;
use crate::error::Error;
use crate::fact::{PageFailed, PagePauses, PageReplays, PageResumes};
use crate::pulse::{Pulse, Stage};

/// The status is gathered anew after this time, however many look.
const STATUS_FRESH: Duration = Duration::from_secs(2);
/// Questions that read the ledger at the same time.
const READERS: usize = 2;
/// What a request may bring.
const MOST_BODY: usize = 16 * 1024;
/// Events in one answer.
const LIMIT: usize = 50;
const MOST: usize = 500;

/// What the answers are made of.
pub(super) struct Api {
    pub(super) door: Door,
    pub(super) desk: Arc<dyn Desk>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) history: Arc<History>,
    pub(super) readers: Semaphore,
    pub(super) status: Mutex<Option<Status>>,
}

/// What the desk has told of the status, and until when that will do.
pub(super) struct Status {
    told: Json,
    fresh_until: Instant,
}

impl Api {
    pub(super) fn new(door: Door, desk: Arc<dyn Desk>, pulse: Arc<Pulse>, history: Arc<History>) -> Api {
        Api { door, desk, pulse, history, readers: Semaphore::new(READERS), status: Mutex::new(None) }
    }
}

type Shared = State<Arc<Api>>;
type Answered = Result<Response, Refused>;

/// What somebody gets who does not get what they asked for.
struct Refused(Refusal);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused(refusal)
    }
}

impl From<Error> for Refused {
    /// What was asked for and is not there is the asker's; the rest is ours.
    fn from(error: Error) -> Refused {
        PageFailed { error: error.to_string() }.tell();
        let is_askers = error.kind().exit_code() == 2;
        let code = if is_askers { StatusCode::BAD_REQUEST } else { StatusCode::SERVICE_UNAVAILABLE };
        Refused((code, error.to_string()))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Refused((code, says)) = self;
        answer(code, &json!({ "error": says }))
    }
}

/// The routes under `/api/`.
pub(super) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/api/status", get(status))
        .route("/api/samples", get(samples))
        .route("/api/deliveries", get(deliveries))
        .route("/api/events/{id}", get(event))
        .route("/api/endpoints/{key}/pause", post(pause))
        .route("/api/endpoints/{key}/resume", post(resume))
        .route("/api/events/{id}/replay", post(replay))
        .layer(DefaultBodyLimit::max(MOST_BODY))
        .with_state(api)
}

async fn status(State(api): Shared, headers: HeaderMap) -> Answered {
    api.door.may_read(&headers)?;
    let mut status = api.status.lock().await;
    if status.as_ref().is_none_or(|status| status.fresh_until <= Instant::now()) {
        let told = api.desk.status(api.pulse.troubles()).await?;
        *status = Some(Status { told, fresh_until: Instant::now() + STATUS_FRESH });
    }
    let told = status.as_ref().map(|status| status.told.clone()).unwrap_or_default();
    let (phase, since) = api.pulse.phase();
    let stages: serde_json::Map<String, Json> = Stage::ALL
        .into_iter()
        .map(|stage| (stage.name().to_owned(), api.pulse.since(stage).as_secs_f64().into()))
        .collect();
    Ok(answer(
        StatusCode::OK,
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "now": Micros::now().0 / 1_000_000,
            "phase": phase.name(),
            "phase_seconds": since.as_secs(),
            "ready": api.pulse.troubles().is_empty(),
            // For how long each has not shown that it gets on.
            "stages": stages,
            "can_change": api.door.has_token(),
            "told": told,
        }),
    ))
}

async fn samples(State(api): Shared, headers: HeaderMap, RawQuery(query): RawQuery) -> Answered {
    api.door.may_read(&headers)?;
    let mut after = i64::MIN;
    for (name, value) in pairs(query.as_deref()) {
        match (name.as_str(), value.parse()) {
            ("after", Ok(second)) => after = second,
            _ => return Err(bad("use after=SECONDS, the moment (at) of the last sample that is known")),
        }
    }
    let samples = api.history.after(after);
    Ok(answer(StatusCode::OK, &json!({ "every_seconds": EVERY.as_secs(), "samples": samples })))
}

async fn deliveries(State(api): Shared, headers: HeaderMap, RawQuery(query): RawQuery) -> Answered {
    api.door.may_read(&headers)?;
    let asked = asked(query.as_deref()).map_err(|text| bad(&text))?;
    let _place = api.readers.acquire().await;
    Ok(answer(StatusCode::OK, &api.desk.deliveries(asked).await?))
}

async fn event(State(api): Shared, headers: HeaderMap, Path(id): Path<String>) -> Answered {
    api.door.may_read(&headers)?;
    let _place = api.readers.acquire().await;
    Ok(answer(StatusCode::OK, &api.desk.event(id).await?))
}

async fn pause(State(api): Shared, headers: HeaderMap, Path(key): Path<String>, body: Bytes) -> Answered {
    let mut body = may_change(&api, &headers, &body)?;
    let why = text(&mut body, "why")?;
    PagePauses { endpoint_id: key.to_string() }.tell();
    changed(&api, api.desk.pause(key, why).await).await
}

async fn resume(State(api): Shared, headers: HeaderMap, Path(key): Path<String>, body: Bytes) -> Answered {
    may_change(&api, &headers, &body)?;
    PageResumes { endpoint_id: key.to_string() }.tell();
    changed(&api, api.desk.resume(key).await).await
}

async fn replay(State(api): Shared, headers: HeaderMap, Path(id): Path<String>, body: Bytes) -> Answered {
    let mut body = may_change(&api, &headers, &body)?;
    let endpoint = text(&mut body, "endpoint")?;
    PageReplays { event_id: id.to_string(), endpoint_id: endpoint.clone() }.tell();
    changed(&api, api.desk.replay(id, endpoint).await).await
}

/// The body, of somebody who may change something.
fn may_change(api: &Api, headers: &HeaderMap, body: &[u8]) -> Result<Json, Refused> {
    api.door.may_change(headers)?;
    match serde_json::from_slice(body) {
        Ok(Json::Object(fields)) => Ok(Json::Object(fields)),
        Ok(_) | Err(_) => Err(bad("send a JSON object, {} at least")),
    }
}

/// What was changed shows at once.
async fn changed(api: &Api, done: crate::error::Result<Json>) -> Answered {
    *api.status.lock().await = None;
    Ok(answer(StatusCode::OK, &done?))
}

fn text(body: &mut Json, name: &str) -> Result<Option<String>, Refused> {
    match body.get_mut(name).map(Json::take) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(_) => Err(bad(&format!("{name} is no text"))),
    }
}

fn asked(query: Option<&str>) -> Result<Asked, String> {
    let mut asked = Asked { limit: LIMIT, ..Asked::default() };
    for (name, value) in pairs(query) {
        if value.is_empty() {
            continue;
        }
        let number = || value.parse::<i64>().map_err(|_| format!("{name}: {value:?} is no number"));
        match name.as_str() {
            "endpoint" => asked.endpoint = Some(value),
            "state" => asked.state = Some(value),
            "feature" => asked.feature = Some(value),
            "environment" => asked.environment = Some(value),
            "kind" => asked.kind = Some(value),
            "before" => asked.before = Some(number()?),
            "limit" => asked.limit = usize::try_from(number()?).unwrap_or(0).clamp(1, MOST),
            _ => {
                return Err(format!(
                    "{name:?} means nothing here: use endpoint, state, feature, environment, kind, before, limit"
                ));
            }
        }
    }
    Ok(asked)
}

fn pairs(query: Option<&str>) -> Vec<(String, String)> {
    url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect()
}

fn bad(says: &str) -> Refused {
    Refused((StatusCode::BAD_REQUEST, says.to_owned()))
}

fn answer(code: StatusCode, json: &Json) -> Response {
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (code, headers, Body::from(json.to_string())).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_and_a_misspelt_one_is_told() {
        let asked = asked(Some("endpoint=environment%3A2&state=&feature=a+b&before=7&limit=9999")).unwrap();
        assert_eq!(asked.endpoint.as_deref(), Some("environment:2"));
        assert_eq!((asked.state, asked.feature.as_deref()), (None, Some("a b")));
        assert_eq!((asked.before, asked.limit), (Some(7), MOST));
        assert!(super::asked(Some("stat=dead")).unwrap_err().contains("stat"));
        assert!(super::asked(Some("before=x")).unwrap_err().contains("before"));
        assert_eq!(super::asked(None).unwrap().limit, LIMIT);
    }
}
