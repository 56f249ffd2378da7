//! Where Flagsmith's webhooks come in: plain HTTP, answered with 200 at once and handed on, whatever they say.
//!
//! Nothing that comes is trusted, and everything has a limit ([`Limits`]): how many connections there are and how long one lives
//! (each carries one request: Flagsmith makes one for each), how large and how slow a head and a body may be. Of the headers
//! only the signature is kept. What waits to be compared is bounded by `BUDGET_KIB`; what comes beyond is answered, counted
//! and forgotten: Flagsmith must never wait for a comparison, nor for a connection that others have.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use futures_util::StreamExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use crate::change::Micros;
use crate::delivery::SIGNATURE;
use crate::error::{Error, Result};

/// Bodies being read or waiting: 64 of the largest, thousands of ordinary ones.
const BUDGET_KIB: usize = 64 * 1024;
const KIB: usize = 1024;
/// Requests that wait to be compared.
const QUEUE: usize = 4_096;
/// A signature has 64 characters; what is longer is none.
const MAX_SIGNATURE: usize = 128;
/// After an error of `accept`: it may be that no file descriptor is free, and then it comes again at once.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// What the listener bears.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections at once; one more is closed. Far below the number of files that a process may have open.
    pub(super) connections: usize,
    /// Request line and headers, in bytes: Flagsmith sends a few hundred. hyper itself refuses more than 100 headers.
    pub(super) head: usize,
    /// Until the head has come.
    pub(super) head_within: Duration,
    /// The largest body, in bytes: Flagsmith's have up to 20 000 characters of a value twice, and a little more.
    pub(super) body: usize,
    /// Until the body has come. Flagsmith itself gives up after 10 s.
    pub(super) body_within: Duration,
    /// A whole connection: it may be that nobody reads the answer.
    pub(super) connection_within: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 256,
            head: 16 * KIB,
            head_within: Duration::from_secs(5),
            body: KIB * KIB,
            body_within: Duration::from_secs(10),
            connection_within: Duration::from_secs(20),
        }
    }
}

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
    limits: Limits,
    out: mpsc::Sender<Heard>,
    room: Arc<Semaphore>,
    lost: Arc<AtomicU64>,
}

impl Listener {
    /// `Err` where the address cannot be listened to.
    pub(super) async fn bind(addr: SocketAddr, limits: Limits) -> Result<Listener> {
        let failed = |e: std::io::Error| {
            Error::config(format!("--listen {addr} cannot be listened to: {e}: give another address"))
        };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let (out, heard) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let inlet =
            Inlet { limits, out, room: Arc::new(Semaphore::new(BUDGET_KIB)), lost: Arc::clone(&lost) };
        let task = tokio::spawn(accept(listener, inlet));
        Ok(Listener { addr, heard, lost, task })
    }

    /// How many requests were not compared: too large, too slow, too many at once.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Its connections end with it.
        self.task.abort();
    }
}

/// Takes connections, for ever.
async fn accept(listener: TcpListener, inlet: Inlet) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < inlet.limits.connections => {
                    connections.spawn(serve(stream, inlet.clone()));
                }
                Ok(_) => inlet.lose(),
                Err(_) => tokio::time::sleep(ACCEPT_WAIT).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection: one request and its answer.
async fn serve(stream: TcpStream, inlet: Inlet) {
    let receiver = inlet.clone();
    let receive = service_fn(move |request| {
        let inlet = receiver.clone();
        async move {
            let mut answer = Response::new(Body::empty());
            *answer.status_mut() = inlet.receive(request).await;
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(inlet.limits.head_within)
        .max_buf_size(inlet.limits.head)
        .keep_alive(false)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), receive);
    let served = tokio::time::timeout(inlet.limits.connection_within, connection).await;
    // Whoever only connects, a health check say, has sent no request that could be lost.
    if served.is_ok_and(|served| served.is_err_and(|e| e.is_timeout() || e.is_parse())) {
        inlet.lose();
    }
}

impl Inlet {
    fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    async fn receive(&self, request: Request<Incoming>) -> StatusCode {
        if request.method() != Method::POST {
            return StatusCode::METHOD_NOT_ALLOWED;
        }
        match self.take(request).await {
            Ok(()) => StatusCode::OK,
            Err(status) => {
                self.lose();
                status
            }
        }
    }

    /// The error is what is answered to what is not compared.
    async fn take(&self, request: Request<Incoming>) -> Result<(), StatusCode> {
        let (parts, body) = request.into_parts();
        let read = tokio::time::timeout(self.limits.body_within, self.read(Body::new(body))).await;
        let (body, room) = read.map_err(|_| StatusCode::REQUEST_TIMEOUT)??;
        let signature = parts.headers.get(SIGNATURE).and_then(|value| value.to_str().ok());
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let heard = Heard {
            target: super::place::normal_target(target),
            signature: signature.filter(|text| text.len() <= MAX_SIGNATURE).map(str::to_owned),
            body,
            at: Micros::now(),
            _room: room,
        };
        self.out.try_send(heard).map_err(|_| StatusCode::OK)
    }

    /// The body, and the room that it takes: taken as it comes, so that whoever only promises much holds up nobody.
    async fn read(&self, body: Body) -> Result<(Vec<u8>, OwnedSemaphorePermit), StatusCode> {
        let mut room = self.room(1)?;
        let (mut bytes, mut chunks) = (Vec::new(), body.into_data_stream());
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| StatusCode::BAD_REQUEST)?;
            if bytes.len() + chunk.len() > self.limits.body {
                return Err(StatusCode::PAYLOAD_TOO_LARGE);
            }
            bytes.extend_from_slice(&chunk);
            let more = bytes.len().div_ceil(KIB).saturating_sub(room.num_permits());
            room.merge(self.room(more)?);
        }
        Ok((bytes, room))
    }

    fn room(&self, kib: usize) -> Result<OwnedSemaphorePermit, StatusCode> {
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        Arc::clone(&self.room).try_acquire_many_owned(kib).map_err(|_| StatusCode::OK)
    }
}
