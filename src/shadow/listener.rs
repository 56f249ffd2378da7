//! Where Flagsmith's webhooks come in: plain HTTP, answered with 200 at once and handed on, whatever they say.
//!
//! Nothing a request holds is trusted. Bodies are read up to `MAX_BODY` and within `READ_WITHIN`; of the headers only the
//! signature is kept (hyper itself refuses more than 100 headers). What waits to be compared is bounded by `BUDGET_KIB`; what
//! comes beyond is answered, counted and forgotten: Flagsmith must never wait for a comparison.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::change::Micros;
use crate::delivery::SIGNATURE;
use crate::error::{Error, Result};

/// The largest body: Flagsmith's have up to 20 000 characters of a value twice, and a little more.
const MAX_BODY: usize = 1024 * 1024;
const MAX_BODY_KIB: u32 = 1024;
/// Bodies being read or waiting: 64 of the largest, thousands of ordinary ones.
const BUDGET_KIB: usize = 64 * 1024;
/// Requests that wait to be compared.
const QUEUE: usize = 4_096;
/// A body that has not come by then is not waited for.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// A signature has 64 characters; what is longer is none.
const MAX_SIGNATURE: usize = 128;

/// A request, as it was sent. Not `Debug`: signature and path are nobody's business.
pub(super) struct Heard {
    /// Path and query.
    pub(super) target: String,
    /// `X-Flagsmith-Signature`.
    pub(super) signature: Option<String>,
    pub(super) body: Vec<u8>,
    /// When the body had been read.
    pub(super) at: Micros,
    _room: OwnedSemaphorePermit,
}

/// Listens until it is dropped.
pub(super) struct Listener {
    pub(super) addr: SocketAddr,
    pub(super) heard: mpsc::Receiver<Heard>,
    lost: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Inlet {
    out: mpsc::Sender<Heard>,
    room: Arc<Semaphore>,
    lost: Arc<AtomicU64>,
}

impl Listener {
    pub(super) async fn bind(addr: SocketAddr) -> Result<Listener> {
        let failed = |e: std::io::Error| {
            Error::config(format!("--listen {addr} cannot be listened to: {e}: give another address"))
        };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let (out, heard) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let inlet = Inlet { out, room: Arc::new(Semaphore::new(BUDGET_KIB)), lost: Arc::clone(&lost) };
        let router = axum::Router::new().fallback(receive).with_state(inlet);
        let task = tokio::spawn(async move {
            // It ends with its task: axum goes on after every error of a connection.
            axum::serve(listener, router).await.ok();
        });
        Ok(Listener { addr, heard, lost, task })
    }

    /// How many requests were answered and not compared: too large, too slow, too many at once.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn receive(State(inlet): State<Inlet>, request: Request) -> StatusCode {
    if request.method() != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED;
    }
    let status = take(&inlet, request).await;
    if let Err(status) = status {
        inlet.lost.fetch_add(1, Ordering::Relaxed);
        return status;
    }
    StatusCode::OK
}

/// The error is what is answered to what is not compared.
async fn take(inlet: &Inlet, request: Request) -> Result<(), StatusCode> {
    let room = Arc::clone(&inlet.room).try_acquire_many_owned(MAX_BODY_KIB);
    let mut room = room.map_err(|_| StatusCode::OK)?;
    let (parts, body) = request.into_parts();
    let body = tokio::time::timeout(READ_WITHIN, to_bytes(body, MAX_BODY)).await;
    let body = body.map_err(|_| StatusCode::REQUEST_TIMEOUT)?.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
    // Room for the largest was taken before the size was known.
    let unused = (MAX_BODY - body.len().min(MAX_BODY)) / 1024;
    drop(room.split(unused));
    let signature = parts.headers.get(SIGNATURE).and_then(|value| value.to_str().ok());
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let heard = Heard {
        target: super::place::normal_target(target),
        signature: signature.filter(|text| text.len() <= MAX_SIGNATURE).map(str::to_owned),
        body: body.to_vec(),
        at: Micros::now(),
        _room: room,
    };
    inlet.out.try_send(heard).map_err(|_| StatusCode::OK)
}
