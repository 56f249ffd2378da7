//! The listener against senders that mean it harm, with limits that a test can wait for.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::listener::{Heard, Limits, Listener};

const SHORT: Duration = Duration::from_millis(200);
/// On a busy machine.
const LONG: Duration = Duration::from_secs(20);

fn limits() -> Limits {
    Limits { head_within: SHORT, body_within: SHORT, connection_within: LONG, ..Limits::default() }
}

async fn listener(limits: Limits) -> Listener {
    Listener::bind("127.0.0.1:0".parse().unwrap(), limits).await.unwrap()
}

async fn connect(addr: SocketAddr) -> TcpStream {
    TcpStream::connect(addr).await.unwrap()
}

/// What is answered until the other side closes; it must close. A sender that is cut off may see no answer.
async fn answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    timeout(LONG, stream.read_to_end(&mut answer)).await.expect("the connection is closed").ok();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn post(addr: SocketAddr, body: &str) -> String {
    let mut stream = connect(addr).await;
    let head = format!("POST /hook HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    answer(&mut stream).await
}

async fn heard(listener: &mut Listener) -> Heard {
    timeout(LONG, listener.heard.recv()).await.unwrap().unwrap()
}

/// Whatever was done to it, it takes the next request.
async fn still_listens(listener: &mut Listener) {
    assert!(post(listener.addr, "still here").await.starts_with("HTTP/1.1 200"));
    assert_eq!(heard(listener).await.body, b"still here");
}

#[tokio::test]
async fn a_head_that_trickles_is_cut_off() {
    let mut listener = listener(limits()).await;
    let mut stream = connect(listener.addr).await;
    let started = Instant::now();
    for byte in b"POST /hook HTTP/1.1\r\nX-Slow: ".iter().chain(std::iter::repeat(&b'a')) {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        sleep(SHORT / 20).await;
        assert!(started.elapsed() < LONG, "it never gives up");
    }
    assert_eq!(listener.lost(), 1);
    still_listens(&mut listener).await;
}

#[tokio::test]
async fn a_body_that_trickles_is_cut_off() {
    let mut listener = listener(limits()).await;
    let mut stream = connect(listener.addr).await;
    let head = "POST /hook HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let started = Instant::now();
    while stream.write_all(b"1\r\na\r\n").await.is_ok() {
        sleep(SHORT / 20).await;
        assert!(started.elapsed() < LONG, "it never gives up");
    }
    assert_eq!(listener.lost(), 1);
    still_listens(&mut listener).await;
}

#[tokio::test]
async fn a_body_without_an_end_is_cut_off_at_its_limit() {
    let mut listener = listener(Limits { body_within: LONG, ..limits() }).await;
    let mut stream = connect(listener.addr).await;
    let head = "POST /hook HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x10000));
    let mut sent = 0;
    while stream.write_all(chunk.as_bytes()).await.is_ok() {
        sent += chunk.len();
        assert!(sent < 64 * 1024 * 1024, "it reads on and on");
    }
    assert_eq!(listener.lost(), 1);
    still_listens(&mut listener).await;
}

#[tokio::test]
async fn a_huge_head_is_refused() {
    let mut listener = listener(limits()).await;
    let mut stream = connect(listener.addr).await;
    let head = format!("POST /hook HTTP/1.1\r\nX-Huge: {}\r\n\r\n", "a".repeat(1024 * 1024));
    stream.write_all(head.as_bytes()).await.ok();
    let answer = answer(&mut stream).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(listener.lost(), 1);
    still_listens(&mut listener).await;
}

#[tokio::test]
async fn more_connections_than_it_bears_are_closed_and_counted() {
    let mut listener = listener(Limits { connections: 3, ..limits() }).await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        idle.push(connect(listener.addr).await);
    }
    let started = Instant::now();
    assert_eq!(post(listener.addr, "one more").await, "");
    assert!(started.elapsed() < SHORT, "it does not wait until there is room");
    assert_eq!(listener.lost(), 1);
    for stream in &mut idle {
        answer(stream).await;
    }
    still_listens(&mut listener).await;
}

#[tokio::test]
async fn no_connection_lives_for_ever() {
    let limits = Limits { connection_within: SHORT, head_within: LONG, body_within: LONG, ..limits() };
    let mut listener = listener(limits).await;
    let mut stream = connect(listener.addr).await;
    stream.write_all(b"POST /hook HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n").await.unwrap();
    answer(&mut stream).await;
    still_listens(&mut listener).await;
}

#[tokio::test]
async fn many_bodies_that_are_only_begun_hold_up_nobody() {
    let mut listener = listener(Limits { body_within: LONG, ..limits() }).await;
    let mut begun = Vec::new();
    for _ in 0..200 {
        let mut stream = connect(listener.addr).await;
        stream
            .write_all(b"POST /hook HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\na")
            .await
            .unwrap();
        begun.push(stream);
    }
    still_listens(&mut listener).await;
    assert_eq!(listener.lost(), 0);
}

#[tokio::test]
async fn path_and_signature_come_through_and_a_connection_carries_one_request() {
    let mut listener = listener(limits()).await;
    let mut stream = connect(listener.addr).await;
    let request =
        "POST /a?b=c HTTP/1.1\r\nHost: x\r\nX-Flagsmith-Signature: s\r\nContent-Length: 2\r\n\r\n{}";
    stream.write_all(format!("{request}{request}").as_bytes()).await.unwrap();
    assert_eq!(answer(&mut stream).await.matches("HTTP/1.1 200").count(), 1);
    let first = heard(&mut listener).await;
    assert_eq!((first.target.as_str(), first.signature.as_deref()), ("/a?b=c", Some("s")));
    assert!(listener.heard.try_recv().is_err());
}
