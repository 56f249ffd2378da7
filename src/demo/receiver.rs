//! A real HTTP receiver on 127.0.0.1 that remembers every request and answers as it is told.
//!
//! Owns a listening socket, one thread with a runtime of its own, and the list of requests; refuses to judge them:
//! signatures and bodies are the caller's to check. The thread of its own has two reasons: a caller that blocks does
//! not delay the answers, and the end of that runtime closes every connection at once, answered or not, as the death
//! of a receiver does.
//!
//! A request is recorded when its body has been read, before the answer. The list only shrinks by
//! [`Receiver::clear`]. Nothing here polls: [`Receiver::wait_for`] is woken by each request.

use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use axum::serve::ListenerExt;
use jiff::Timestamp;
use tokio::sync::{oneshot, watch};

use crate::error::{Error, Result};

/// The largest body that is read: far above any that Flagsmith can make (a flag's value has up to 20 000 characters).
const MAX_BODY: usize = 16 * 1024 * 1024;

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Path, with the query where there is one.
    pub path: String,
    /// Names in lower case, in the order of arrival (repeated ones together).
    pub headers: Vec<(String, String)>,
    /// The body, byte for byte.
    pub body: Vec<u8>,
    /// When the body had been read, to the microsecond.
    pub at: Timestamp,
}

impl Received {
    /// The first header of this (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// How a request is answered: by default at once, with 200 and no body.
#[derive(Debug, Clone)]
pub struct Answer {
    status: Option<u16>,
    delay: Duration,
    headers: Vec<(String, String)>,
    body: String,
}

impl Default for Answer {
    fn default() -> Self {
        Answer::status(200)
    }
}

impl Answer {
    /// At once, with this status; one that HTTP does not have becomes 500.
    pub fn status(status: u16) -> Self {
        Answer { status: Some(status), delay: Duration::ZERO, headers: Vec::new(), body: String::new() }
    }

    /// Never: the connection stays open without an answer until the client or the receiver ends.
    pub fn never() -> Self {
        Answer { status: None, ..Answer::status(200) }
    }

    /// After a delay.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// With a header, such as `retry-after`; one that HTTP cannot carry is left out.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a body.
    #[must_use]
    pub fn body(mut self, body: &str) -> Self {
        body.clone_into(&mut self.body);
        self
    }

    fn response(self, status: u16) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        for (name, value) in &self.headers {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
                response.headers_mut().append(name, value);
            }
        }
        response
    }
}

/// A listening (or stopped) receiver. Dropping it stops it.
pub struct Receiver {
    addr: SocketAddr,
    shared: Arc<Shared>,
    running: Option<Running>,
}

struct Running {
    // Dropping the sender ends the thread's runtime.
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// How many requests have arrived so far; whoever waits subscribes to it.
    arrivals: watch::Sender<u64>,
    received: Mutex<Vec<Received>>,
    answers: Mutex<Answers>,
}

#[derive(Default)]
struct Answers {
    otherwise: Answer,
    by_path: HashMap<String, Answer>,
    scripts: HashMap<String, VecDeque<Answer>>,
}

impl Answers {
    fn next(&mut self, path: &str) -> Answer {
        let scripted = self.scripts.get_mut(path).and_then(VecDeque::pop_front);
        scripted.unwrap_or_else(|| self.by_path.get(path).unwrap_or(&self.otherwise).clone())
    }
}

impl Receiver {
    /// Listens on 127.0.0.1, on `port` or, for 0, on a free one.
    ///
    /// # Errors
    /// If the port is taken or no thread can be started.
    pub fn start(port: u16) -> Result<Receiver> {
        let mut receiver = Receiver {
            addr: SocketAddr::from(([127, 0, 0, 1], port)),
            shared: Arc::new(Shared::default()),
            running: None,
        };
        receiver.restart()?;
        Ok(receiver)
    }

    /// Stops, if it runs, and listens again on the same port; what was received and how it answers stay as they are.
    ///
    /// # Errors
    /// If the port is taken or no thread can be started.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        let asked = self.addr;
        let failed = |e: std::io::Error| {
            let message = format!("cannot receive on {asked}: {e}; choose another port");
            Error::internal(message).caused_by(e)
        };
        // On Unix, std sets SO_REUSEADDR: connections in TIME_WAIT do not hold the port.
        let listener = TcpListener::bind(asked).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("receiver".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener, shared) => {}
                }
            });
        });
        self.addr = addr;
        self.running = Some(Running { stop, thread: thread.map_err(failed)? });
        Ok(())
    }

    /// Stops listening and closes every connection, answered or not; what was received stays. Blocks for the moment
    /// that the thread needs to end.
    pub fn stop(&mut self) {
        if let Some(Running { stop, thread }) = self.running.take() {
            drop(stop);
            // A panic in there has been printed; the caller sees it by what did not arrive.
            thread.join().ok();
        }
    }

    /// Where it listens, or listened.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL of a path (which starts with a slash).
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// From now on answers requests to `path` (without query) so.
    pub fn answer(&self, path: &str, answer: Answer) {
        self.shared.answers().by_path.insert(path.to_owned(), answer);
    }

    /// From now on answers requests to every path that has no answer of its own so.
    pub fn answer_others(&self, answer: Answer) {
        self.shared.answers().otherwise = answer;
    }

    /// Answers the next requests to `path` by these, one each, then as [`Receiver::answer`] says. Replaces an earlier
    /// script of the path.
    pub fn script(&self, path: &str, answers: impl IntoIterator<Item = Answer>) {
        self.shared.answers().scripts.insert(path.to_owned(), answers.into_iter().collect());
    }

    /// Everything received so far, in order.
    pub fn all(&self) -> Vec<Received> {
        self.shared.received().clone()
    }

    /// Forgets everything received so far.
    pub fn clear(&self) {
        self.shared.received().clear();
    }

    /// Waits until what has been received satisfies `predicate`, which is asked now and after each request.
    ///
    /// # Errors
    /// After `timeout`, with everything received until then.
    pub async fn wait_for(
        &self,
        predicate: impl Fn(&[Received]) -> bool,
        timeout: Duration,
    ) -> Result<Vec<Received>, Vec<Received>> {
        // Subscribed before the first look: a request between look and wait is seen.
        let mut arrivals = self.shared.arrivals.subscribe();
        let satisfied = async {
            loop {
                if let Some(received) = self.shared.satisfying(&predicate) {
                    return received;
                }
                if arrivals.changed().await.is_err() {
                    // The sender lives in `self`.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(timeout, satisfied).await.map_err(|_| self.all())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    // A panic elsewhere, in a test's predicate say, leaves the lists whole.
    fn received(&self) -> MutexGuard<'_, Vec<Received>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn satisfying(&self, predicate: impl Fn(&[Received]) -> bool) -> Option<Vec<Received>> {
        let received = self.received();
        predicate(&received).then(|| received.clone())
    }

    fn record(&self, received: Received) {
        self.received().push(received);
        self.arrivals.send_modify(|count| *count += 1);
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let listener = listener.tap_io(|stream| {
        // Without it the answer is only slower.
        stream.set_nodelay(true).ok();
    });
    let router = axum::Router::new().fallback(receive).with_state(shared);
    // It ends with its runtime.
    axum::serve(listener, router).await.ok();
}

async fn receive(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return Answer::default().response(413);
    };
    let headers = parts.headers.iter();
    let headers = headers.map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()));
    let path = parts.uri.path_and_query().map_or_else(|| parts.uri.path(), |p| p.as_str());
    let now = Timestamp::now();
    let received = Received {
        path: path.to_owned(),
        headers: headers.collect(),
        body: body.to_vec(),
        at: Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now),
    };
    // Chosen before it is recorded: whoever was woken by this request sets the answer of the next one.
    let answer = shared.answers().next(parts.uri.path());
    shared.record(received);
    tokio::time::sleep(answer.delay).await;
    match answer.status {
        Some(status) => answer.response(status),
        None => std::future::pending().await,
    }
}
