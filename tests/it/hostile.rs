//! What an endpoint can do to the client, over real sockets: every call ends within its time, with a clear error, and little
//! is read, whatever comes. And where the client never goes: to an address that the guard refuses.

use std::collections::HashMap;
use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flagpost::delivery::{Answer, Client, DatabasePlace, Found, Guard, Lookup, Settings, Timeouts, Trust};

use crate::support::call::{client, due, endpoint, settings};
use crate::support::raw::{Issuer, Peer, Pem, Raw, loopback, server};

/// The time of a whole call.
const WHOLE: Duration = Duration::from_secs(1);
/// What a busy machine may add to it.
const SLACK: Duration = Duration::from_secs(4);
/// More than sockets and the client's own buffers hold; far less than an endless sender sends in the time.
const BOUNDED: u64 = 16 * 1024 * 1024;

/// One call to `server`, which ends in time.
async fn call(server: &Raw) -> (Answer, Duration) {
    let began = Instant::now();
    let answer = client(WHOLE).send(&endpoint(&server.url(), "s"), due("{}")).await;
    let took = began.elapsed();
    assert!(took < WHOLE + SLACK, "{took:?}: {answer:?}");
    assert!(answer.error.as_ref().is_none_or(|error| error.len() <= 500), "{answer:?}");
    (answer, took)
}

/// The call fails without a status, and says this.
async fn fails(what: &str, server: &Raw, part: &str) {
    let (answer, _) = call(server).await;
    let error = answer.error.unwrap_or_else(|| panic!("{what}: it succeeded"));
    assert!(answer.status.is_none() && error.contains(part), "{what}: {error:?} does not say {part:?}");
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\n";

#[tokio::test]
async fn who_never_answers_or_goes_away_is_a_failure_in_time() {
    let silent = Raw::start(async |mut peer: Peer| peer.hold().await).await;
    let gone = Raw::start(async |peer: Peer| drop(peer)).await;
    let half = Raw::start(async |mut peer: Peer| {
        peer.write(b"HTTP/1.1 20").await;
    })
    .await;
    let trickle = Raw::start(async |mut peer: Peer| {
        let mut bytes = b"HTTP/1.1 200 OK\r\nx: ".iter().chain(std::iter::repeat(&b'y'));
        while let Some(byte) = bytes.next()
            && peer.write(&[*byte]).await
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    tokio::join!(
        fails("silent", &silent, "no answer within 1s"),
        fails("gone", &gone, "connection"),
        fails("half", &half, "connection closed before message completed"),
        fails("trickle", &trickle, "no answer within 1s"),
    );
}

#[tokio::test]
async fn what_is_no_http_is_a_failure_that_says_so() {
    for (garbage, part) in [
        (&b"SSH-2.0-OpenSSH_9.2\r\n\r\n"[..], "invalid"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", "invalid"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "content-length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "content-length"),
        (b"HTTP/1.1 99999 Much\r\n\r\n", "invalid"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "invalid"),
    ] {
        let server = Raw::start(async move |mut peer: Peer| {
            peer.write(garbage).await;
            peer.hold().await;
        })
        .await;
        fails(&String::from_utf8_lossy(garbage), &server, part).await;
    }
}

#[tokio::test]
async fn headers_without_end_are_refused_and_not_kept() {
    let one = Raw::start(async |mut peer: Peer| {
        peer.write(b"HTTP/1.1 200 OK\r\nx: ").await;
        while peer.write(&[b'y'; 65_536]).await {}
    })
    .await;
    let many = Raw::start(async |mut peer: Peer| {
        peer.write(OK).await;
        let mut n = 0;
        while peer.write(format!("h{n}: v\r\n").as_bytes()).await {
            n += 1;
        }
    })
    .await;
    let lot = Raw::start(async |mut peer: Peer| {
        let headers: String = (0..200).map(|n| format!("h{n}: v\r\n")).collect();
        peer.write(format!("HTTP/1.1 200 OK\r\n{headers}content-length: 0\r\n\r\n").as_bytes()).await;
    })
    .await;
    fails("one", &one, "too large").await;
    fails("many", &many, "too large").await;
    fails("lot", &lot, "too large").await;
    for server in [&one, &many] {
        assert!(server.written() < BOUNDED, "{} bytes were taken", server.written());
    }
}

#[tokio::test]
async fn the_verdict_is_the_status_lines_however_the_body_goes_on() {
    const CASES: [(&str, Option<&str>); 2] = [("200 OK", None), ("500 Oh", Some("HTTP 500"))];
    for (status, error) in CASES {
        let head = format!("HTTP/1.1 {status}\r\ntransfer-encoding: chunked\r\n\r\n");
        let endless = {
            let head = head.clone();
            Raw::start(async move |mut peer: Peer| {
                peer.write(head.as_bytes()).await;
                let chunk = [&b"4000\r\n"[..], &[b'z'; 0x4000], b"\r\n"].concat();
                while peer.write(&chunk).await {}
            })
            .await
        };
        let (answer, took) = call(&endless).await;
        assert_eq!(answer.error.as_deref(), error);
        assert_eq!(answer.excerpt.as_deref(), Some(&*"z".repeat(1024)));
        assert!(took < WHOLE, "it read on for {took:?}");
        assert!(endless.written() < BOUNDED, "{} bytes were taken", endless.written());

        let trickle = {
            let head = head.clone();
            Raw::start(async move |mut peer: Peer| {
                peer.write(head.as_bytes()).await;
                while peer.write(b"1\r\na\r\n").await {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
            .await
        };
        let (answer, _) = call(&trickle).await;
        assert_eq!(answer.error.as_deref(), error);
        assert!(answer.excerpt.unwrap().starts_with("aaaa"), "what came until the end of the time is kept");

        let broken = Raw::start(async move |mut peer: Peer| {
            peer.write(head.as_bytes()).await;
            peer.write(b"zzz this is no chunk").await;
        })
        .await;
        assert_eq!(call(&broken).await.0.error.as_deref(), error);
        let short = Raw::start(async move |mut peer: Peer| {
            peer.write(format!("HTTP/1.1 {status}\r\ncontent-length: 100\r\n\r\nno more").as_bytes()).await;
        })
        .await;
        assert_eq!(call(&short).await.0, Answer { excerpt: Some("no more".into()), ..answer_of(status) });
    }
}

fn answer_of(status: &str) -> Answer {
    let code = status[..3].parse().unwrap();
    let error = (code != 200).then(|| format!("HTTP {code}"));
    Answer { status: Some(code), error, ..Answer::default() }
}

#[tokio::test]
async fn compressed_answers_are_not_asked_for_and_never_unpacked() {
    // No real bomb is needed to see that nobody unpacks: the bytes come out as they went in.
    let server = Raw::start(async |mut peer: Peer| {
        let encodings = if peer.head.contains("accept-encoding") { "asked for" } else { "bomb" };
        let bomb = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, b' '];
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n",
            bomb.len() + encodings.len()
        );
        peer.write(head.as_bytes()).await;
        peer.write(&bomb).await;
        peer.write(encodings.as_bytes()).await;
        peer.hold().await;
    })
    .await;
    let (answer, _) = call(&server).await;
    assert_eq!(answer.error, None);
    assert!(answer.excerpt.unwrap().ends_with("bomb"), "the bytes are shown as they came");
}

#[tokio::test]
async fn a_flood_of_interim_answers_ends_with_the_time() {
    let flood = Raw::start(async |mut peer: Peer| {
        let many = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(100);
        while peer.write(&many).await {}
    })
    .await;
    fails("flood", &flood, "no answer within 1s").await;
    let some = Raw::start(async |mut peer: Peer| {
        peer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n").await;
        peer.write(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    })
    .await;
    assert_eq!(call(&some).await.0, Answer { status: Some(204), ..Answer::default() });
    let upgrade = Raw::start(async |mut peer: Peer| {
        peer.write(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;
        peer.hold().await;
    })
    .await;
    let (answer, _) = call(&upgrade).await;
    assert!(answer.error.is_some(), "{answer:?}");
}

#[tokio::test]
async fn redirects_are_failures_and_not_followed() {
    for status in [300, 301, 302, 303, 307, 308, 304] {
        let server = Raw::start(async move |mut peer: Peer| {
            let head =
                format!("HTTP/1.1 {status} Elsewhere\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n");
            peer.write(head.as_bytes()).await;
            peer.hold().await;
        })
        .await;
        let (answer, _) = call(&server).await;
        assert_eq!(answer.status, Some(status));
        assert!(answer.error.unwrap().contains("redirects are not followed"));
        assert_eq!(server.connections(), 1);
    }
}

#[tokio::test]
async fn retry_after_is_handed_on_as_it_came_if_it_is_printable_and_short() {
    let long = "9".repeat(300);
    for (sent, handed_on) in [
        ("120", Some("120")),
        ("Wed, 21 Oct 2026 07:28:00 GMT", Some("Wed, 21 Oct 2026 07:28:00 GMT")),
        ("soon", Some("soon")),
        ("caf\u{e9}", None),
        (&long, Some(&long[..100])),
    ] {
        let head = format!("HTTP/1.1 429 Slow\r\nretry-after: {sent}\r\ncontent-length: 0\r\n\r\n");
        let server = Raw::start(move |mut peer: Peer| {
            let head = head.clone();
            async move {
                peer.write(head.as_bytes()).await;
            }
        })
        .await;
        let (answer, _) = call(&server).await;
        assert_eq!((answer.status, answer.retry_after.as_deref()), (Some(429), handed_on), "{sent}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_the_endpoints_own_is_refused_before_anything_is_sent() {
    let (issuer, stranger) = (Issuer::new("trusted"), Issuer::new("stranger"));
    let good = issuer.issue(&["localhost"], |_| {});
    let expired = issuer.issue(&["localhost"], |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let early = issuer.issue(&["localhost"], |params| params.not_before = rcgen::date_time_ymd(2120, 1, 1));
    let other = issuer.issue(&["other.example.com"], |_| {});
    let strange = stranger.issue(&["localhost"], |_| {});
    let alone = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let alone = Pem { certificate: alone.cert.pem(), key: alone.signing_key.serialize_pem() };
    let trust = Trust::from_pem(issuer.pem().as_bytes()).unwrap();
    let client = Client::new(Settings { trust, ..settings(WHOLE) }).unwrap();
    for (pem, refused) in [
        (&good, None),
        (&expired, Some("expired")),
        (&early, Some("not valid yet")),
        (&other, Some("not valid for name \"localhost\"")),
        (&strange, Some("name the issuer's certificate in network.ca_file")),
        (&alone, Some("invalid peer certificate")),
    ] {
        let tls = Some(server(pem, None));
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let raw = Raw::start_at((loopback(1), 0).into(), tls, async move |mut peer: Peer| {
            counted.fetch_add(1, Ordering::Relaxed);
            peer.write(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        })
        .await;
        let url = format!("https://localhost:{}/", raw.addr.port());
        let answer = client.send(&endpoint(&url, "s"), due("{}")).await;
        assert_eq!(answer.error.is_none(), refused.is_none(), "{answer:?}");
        if let (Some(error), Some(part)) = (answer.error, refused) {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
        assert_eq!(requests.load(Ordering::Relaxed), usize::from(refused.is_none()));
    }
}

#[tokio::test]
async fn plain_http_on_a_tls_port_and_the_other_way_round_are_failures() {
    let issuer = Issuer::new("issuer");
    let tls = Some(server(&issuer.issue(&["localhost"], |_| {}), None));
    let encrypted = Raw::start_at((loopback(1), 0).into(), tls, async |peer: Peer| drop(peer)).await;
    let plain = Raw::start(async |peer: Peer| drop(peer)).await;
    fails("http to https", &encrypted, "").await;
    let url = plain.url().replace("http:", "https:");
    let answer = client(WHOLE).send(&endpoint(&url, ""), due("{}")).await;
    assert!(answer.status.is_none() && answer.error.is_some(), "{answer:?}");
}

/// Answers as an attacker's name server would: each name's lists one after the other, the last one again and again.
#[derive(Debug)]
struct NameServer {
    lists: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    asked: Mutex<Vec<String>>,
}

impl NameServer {
    fn new(lists: &[(&str, &[&[u8]])]) -> Arc<NameServer> {
        let list = |list: &&[u8]| list.iter().map(|n| loopback(*n)).collect();
        let of = |lists: &&[&[u8]]| lists.iter().rev().map(list).collect();
        let lists = lists.iter().map(|(name, lists)| ((*name).to_owned(), of(lists))).collect();
        Arc::new(NameServer { lists: Mutex::new(lists), asked: Mutex::default() })
    }

    fn times(&self, name: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == name).count()
    }
}

impl Lookup for NameServer {
    fn lookup(&self, host: &str) -> Found {
        self.asked.lock().unwrap().push(host.to_owned());
        let mut lists = self.lists.lock().unwrap();
        let found = match (host.parse(), lists.get_mut(host)) {
            (Ok(literal), _) => Ok(vec![literal]),
            (_, None) => Err(std::io::Error::other("no such name")),
            (_, Some(lists)) if lists.len() > 1 => Ok(lists.pop().unwrap()),
            (_, Some(lists)) => Ok(lists[0].clone()),
        };
        Box::pin(async { found })
    }
}

/// A client that may reach `allow` and asks `names`.
fn guarded(allow: &[&str], names: &Arc<NameServer>, database: Option<DatabasePlace>) -> Client {
    let guard = Guard::new(allow.iter().map(|net| net.parse().unwrap()).collect());
    let guard = match database {
        Some(database) => guard.with_database(database),
        None => guard,
    };
    let settings = Settings::new(guard, Timeouts { connect: WHOLE, whole: WHOLE });
    Client::new(Settings { lookup: Arc::clone(names) as Arc<dyn Lookup>, ..settings }).unwrap()
}

/// Servers with one port on several addresses of this machine; each connection serves one request.
async fn servers(addresses: &[u8]) -> (Vec<Raw>, u16) {
    let answer = async |mut peer: Peer| {
        peer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    };
    let mut all: Vec<Raw> = Vec::new();
    for n in addresses {
        let port = all.first().map_or(0, |raw| raw.addr.port());
        all.push(Raw::start_at(SocketAddr::new(loopback(*n), port), None, answer).await);
    }
    let port = all[0].addr.port();
    (all, port)
}

#[tokio::test]
async fn a_name_that_changes_its_address_leads_nowhere_else() {
    let (all, port) = servers(&[2, 3]).await;
    let [good, forbidden] = &all[..] else { panic!("two") };
    // Good, then forbidden, then both in either order, then good again.
    let names = NameServer::new(&[("hook.test", &[&[2], &[3], &[3, 2], &[2, 3], &[2]])]);
    let client = guarded(&["127.0.0.2/32"], &names, None);
    let endpoint = endpoint(&format!("http://hook.test:{port}/"), "");
    for (attempt, is_let_through) in [true, false, true, true, true].into_iter().enumerate() {
        let answer = client.send(&endpoint, due("{}")).await;
        assert_eq!(answer.error.is_none(), is_let_through, "{attempt}: {answer:?}");
        if let Some(error) = answer.error {
            assert!(error.contains("network guard: 127.0.0.3 is a loopback address"), "{error}");
        }
        assert_eq!(names.times("hook.test"), attempt + 1, "one look-up a connection, no second one");
    }
    assert_eq!((good.connections(), forbidden.connections()), (4, 0));
}

#[tokio::test]
async fn the_databases_place_is_refused_in_an_allowed_network() {
    let (all, port) = servers(&[2, 3]).await;
    let other = Raw::start_at((loopback(2), 0).into(), None, async |mut peer: Peer| {
        peer.write(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    })
    .await;
    let names =
        NameServer::new(&[("db.test", &[&[2]]), ("hook.test", &[&[2]]), ("late.test", &[&[2], &[3]])]);
    let place = |host: Option<&str>, port| Some(DatabasePlace { host: host.map(str::to_owned), port });
    let whole = &["127.0.0.0/8"][..];
    let send = async |client: &Client, url: String| client.send(&endpoint(&url, ""), due("{}")).await;
    for database in [place(Some("db.test"), port), place(Some("127.0.0.2"), port), place(None, port)] {
        let client = guarded(whole, &names, database);
        for host in ["127.0.0.2", "127.0.0.3", "hook.test", "db.test", "[::ffff:127.0.0.2]"] {
            let error = send(&client, format!("http://{host}:{port}/")).await.error.unwrap();
            assert!(error.contains("the Flagsmith database"), "{host}: {error}");
        }
        // Another port of that machine is another thing.
        let url = format!("http://127.0.0.2:{}/", other.addr.port());
        assert_eq!(send(&client, url).await.status, Some(204));
    }
    assert_eq!((all[0].connections(), all[1].connections()), (0, 0));
    // A single address that is named is meant.
    let named = guarded(&["127.0.0.2/32"], &names, place(Some("db.test"), port));
    assert_eq!(send(&named, format!("http://127.0.0.2:{port}/")).await.status, Some(200));
    assert_eq!(send(&named, format!("http://hook.test:{port}/")).await.status, Some(200));
    // Where the database is cannot be told now: nothing is sent to its port.
    let lost = guarded(whole, &names, place(Some("lost.test"), port));
    let error = send(&lost, format!("http://127.0.0.2:{port}/")).await.error.unwrap();
    assert!(error.contains("database's address cannot be found"), "{error}");
}

#[tokio::test]
async fn a_name_server_that_never_answers_costs_the_time_of_a_call() {
    #[derive(Debug)]
    struct Never;
    impl Lookup for Never {
        fn lookup(&self, _: &str) -> Found {
            Box::pin(pending())
        }
    }
    let timeouts = Timeouts { connect: Duration::from_millis(300), whole: WHOLE };
    let settings = Settings { lookup: Arc::new(Never), ..Settings::new(Guard::default(), timeouts) };
    let began = Instant::now();
    let answer = Client::new(settings).unwrap().send(&endpoint("http://hook.test/", ""), due("{}")).await;
    assert_eq!(answer.error.unwrap(), "no connection within 300ms");
    assert!(began.elapsed() < WHOLE + SLACK);
}
