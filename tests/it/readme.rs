//! The table "What happens when the endpoint …" of docs/endpoints.md: every row of it is made to happen, and nothing else stands in it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flagpost::demo::receiver::Answer;
use flagpost::event::EndpointKey;
use flagpost::ledger::{Operator, Reader};

use crate::delivery::{PATIENCE, Scene};
use crate::support::process::Daemon;
use crate::support::raw::{Issuer, Peer, Raw, server};

/// The table's rows: the endpoint's side, and the first word in bold of what becomes of its delivery.
fn rows() -> Vec<(String, String)> {
    let document = include_str!("../../docs/endpoints.md");
    let (_, after) = document.split_once("| the endpoint … | its delivery is … |").unwrap();
    let table = after.lines().skip(1).skip_while(|line| line.starts_with("| ---"));
    let lines = table.take_while(|line| line.starts_with('|'));
    lines
        .map(|line| {
            let mut cells = line.trim_matches('|').splitn(2, '|').map(str::trim);
            let (endpoint, delivery) = (cells.next().unwrap(), cells.next().unwrap());
            let fate = delivery.strip_prefix("**").and_then(|rest| rest.split_once("**")).unwrap().0;
            (endpoint.to_owned(), fate.to_owned())
        })
        .collect()
}

/// What the ledger says of an endpoint.
fn fate(reader: &Reader, endpoint: EndpointKey) -> &'static str {
    let counts = reader.counts().unwrap().remove(&endpoint.to_string()).unwrap_or_default();
    let lane = reader.lane(endpoint).unwrap();
    match () {
        () if lane.pause.is_some() => "paused",
        () if counts.dropped > 0 => "dropped",
        () if counts.dead > 0 => "dead letter",
        () if lane.breaker.opened_at.is_some() => "probed",
        () if counts.retrying > 0 => "tried again",
        () if counts.delivered > 0 => "delivered",
        () => "waiting",
    }
}

async fn becomes(reader: &Reader, row: &str, endpoint: EndpointKey, expected: &str) {
    let deadline = Instant::now() + PATIENCE;
    while fate(reader, endpoint) != expected {
        assert!(
            Instant::now() < deadline,
            "the endpoint that {row} ({endpoint}): {:?}, not {expected:?}; {:?}",
            fate(reader, endpoint),
            reader.last_error(&endpoint.to_string())
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Rows that one call shows, with the URL of an endpoint that does so.
async fn one_call(s: &Scene) -> Vec<(&'static str, String)> {
    let raw = async |script: fn(Peer) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        Raw::start(script).await.url()
    };
    let issuer = Issuer::new("nobody knows it");
    let certificate = issuer.issue(&["localhost"], |_| {});
    let tls = Raw::start_at(
        ([127, 0, 0, 1], 0).into(),
        Some(server(&certificate, None)),
        |mut peer: Peer| async move {
            peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        },
    )
    .await;
    let answers = |path: &str, answer: Answer| {
        s.receiver.answer(path, answer);
        s.receiver.url(path)
    };
    vec![
        ("answers 2xx", answers("/row-2xx", Answer::status(204))),
        (
            "answers 2xx and goes on without end",
            raw(|mut peer| {
                Box::pin(async move {
                    peer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
                    while peer.write(b"400\r\n").await
                        && peer.write(&[b'x'; 1024]).await
                        && peer.write(b"\r\n").await
                    {}
                })
            })
            .await,
        ),
        ("answers 4xx or 5xx", answers("/row-500", Answer::status(500))),
        (
            "redirects",
            answers("/row-3xx", Answer::status(307).header("location", &s.receiver.url("/elsewhere"))),
        ),
        ("answers 429 or 503", answers("/row-503", Answer::status(503))),
        ("says Retry-After", answers("/row-wait", Answer::status(429).header("retry-after", "600"))),
        ("answers 410", answers("/row-410", Answer::status(410))),
        ("never answers", answers("/row-never", Answer::never())),
        (
            "answers byte by byte",
            raw(|mut peer| {
                Box::pin(async move {
                    while peer.write(b"H").await {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                })
            })
            .await,
        ),
        ("closes the connection", raw(|_| Box::pin(async {})).await),
        (
            "sends what is no HTTP",
            raw(|mut peer| {
                Box::pin(async move {
                    peer.write(b"220 mail.example.com ESMTP\r\n").await;
                })
            })
            .await,
        ),
        ("has a certificate that cannot be verified", format!("https://localhost:{}/hook", tls.addr.port())),
        ("cannot be reached", "http://127.0.0.1:1/hook".into()),
        ("has an address inside your network", "http://10.0.0.1/hook".into()),
        ("has a URL that is none", "hooks.example.com".into()),
        ("is deleted in Flagsmith", answers("/row-deleted", Answer::status(500))),
        ("is disabled in Flagsmith", answers("/row-disabled", Answer::status(500))),
        ("keeps failing", answers("/row-failing", Answer::status(500))),
        ("fails for too long", answers("/row-too-long", Answer::status(500))),
    ]
}

#[tokio::test]
async fn what_happens_when_the_endpoint_is_as_the_table_says() {
    let rows: BTreeMap<String, String> = rows().into_iter().collect();
    let s = Scene::new().await;
    let s = s.with("FLAGPOST_DELIVERY_RETRY", "1h").with("FLAGPOST_DELIVERY_TIMEOUT", "1s");
    let scenes = one_call(&s).await;
    let known: Vec<&str> = scenes.iter().map(|(row, _)| *row).collect();
    let mut told: Vec<&str> = rows.keys().map(String::as_str).collect();
    told.sort_unstable_by_key(|row| known.iter().position(|k| k == row));
    assert_eq!(told, known, "the table's rows and what this test makes happen");

    let key = |index: usize| EndpointKey::Environment(200 + i64::try_from(index).unwrap());
    for (index, (_, url)) in scenes.iter().enumerate() {
        s.sql(&format!(
            "INSERT INTO environments_webhook SELECT (jsonb_populate_record(w, jsonb_build_object('id', {}, 'url', '{url}'))).*
             FROM environments_webhook w WHERE w.id = 2",
            200 + index
        ))
        .await;
    }
    s.installation.run(&["setup", "--resnapshot"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.set_value("a").await;
    let reader = Reader::open(&s.installation.state_dir()).unwrap();
    let later =
        ["is deleted in Flagsmith", "is disabled in Flagsmith", "keeps failing", "fails for too long"];
    for (index, (row, _)) in scenes.iter().enumerate() {
        let first = if later.contains(row) { "tried again" } else { &rows[*row] };
        becomes(&reader, row, key(index), first).await;
    }
    assert!(s.receiver.all().iter().all(|r| r.path != "/elsewhere"), "a redirect was followed");
    let index_of = |row: &str| scenes.iter().position(|(name, _)| *name == row).unwrap();

    // Deleted, and disabled, while a delivery waits.
    s.sql(&format!("DELETE FROM environments_webhook WHERE id = {}", 200 + index_of(later[0]))).await;
    becomes(&reader, later[0], key(index_of(later[0])), &rows[later[0]]).await;
    let disabled = index_of(later[1]);
    s.sql(&format!("UPDATE environments_webhook SET enabled = false WHERE id = {}", 200 + disabled)).await;
    s.set_value("not for the disabled one").await;
    s.receiver.answer("/row-disabled", Answer::status(200));
    daemon.terminate().await.success();

    // A breaker that opens with the next failure, and deliveries that were too old from the beginning.
    let s = s.with("FLAGPOST_DELIVERY_BREAKER_FAILURES", "1").with("FLAGPOST_DELIVERY_BREAKER_AFTER", "0");
    let mut operator = Operator::open(&s.installation.state_dir()).unwrap();
    for row in [later[1], later[2]] {
        operator.resume(key(index_of(row))).unwrap();
    }
    let daemon = Daemon::start(&s.installation).await;
    for row in [later[1], later[2]] {
        becomes(&reader, row, key(index_of(row)), &rows[row]).await;
    }
    let to_disabled = s.receiver.all().iter().filter(|r| r.path == "/row-disabled").count();
    assert_eq!(to_disabled, 2, "the failure and the success of the one change that was for it");
    daemon.terminate().await.success();
    let s = s.with("FLAGPOST_DELIVERY_MAX_AGE", "1ms");
    let daemon = Daemon::start(&s.installation).await;
    becomes(&reader, later[3], key(index_of(later[3])), &rows[later[3]]).await;
    daemon.terminate().await.success();
}
