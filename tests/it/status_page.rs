//! The status page, in a real browser: what it shows of a daemon at work, that nothing from outside runs in it, and that it changes
//! something only for who has the token.

use std::time::{Duration, Instant};

use flagpost::demo::receiver::Answer;
use serde_json::{Value as Json, json};

use crate::delivery::{PATIENCE, Scene};
use crate::support::browser::Browser;
use crate::support::process::{Daemon, Installation};

const PLAIN: &str = "/dev-plain";
const TOKEN: &str = "0123456789abcdef-token-of-the-test";
/// A name that would run if it were taken for HTML.
const HOSTILE: &str = "<img src=x onerror=\"window.hostile=1\">";

/// A scene whose page is served; with a token if it has one.
async fn scene(token: Option<&str>) -> Scene {
    let mut s = Scene::new().await;
    s.installation = s.installation.with_ops();
    if let Some(token) = token {
        let path = s.installation.folder().join("ops-token");
        std::fs::write(&path, token).unwrap();
        let path = path.to_str().unwrap().to_owned();
        s = s.with("FLAGPOST_OPS_TOKEN_FILE", &path);
    }
    s
}

fn url(installation: &Installation) -> String {
    format!("http://{}/", installation.variable("FLAGPOST_OPS_LISTEN"))
}

async fn api(installation: &Installation, path: &str) -> Json {
    let (code, text) = installation.ops(path).await;
    assert_eq!(code, 200, "{path}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// Waits until an endpoint in the status is so.
async fn until(installation: &Installation, endpoint: &str, is_so: impl Fn(&Json) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = api(installation, "/api/status").await;
        let all = status["told"]["status"]["endpoints"].as_array().unwrap().clone();
        let found = all.iter().find(|one| one["endpoint"] == endpoint).unwrap();
        if is_so(found) {
            return;
        }
        assert!(Instant::now() < deadline, "{found:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn it_shows_lag_failing_endpoints_and_what_became_of_a_delivery() {
    let s = scene(None)
        .await
        .with("FLAGPOST_DELIVERY_RETRY", "1h")
        .with("FLAGPOST_DELIVERY_BREAKER_FAILURES", "1")
        .with("FLAGPOST_DELIVERY_BREAKER_AFTER", "0");
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.answer(PLAIN, Answer::status(503));
    s.set_value("before").await;
    s.wait_for("/dev-signed", 1).await;
    s.set_value("after").await;
    s.wait_for("/dev-signed", 2).await;
    until(&s.installation, "environment:2", |endpoint| endpoint["breaker"].is_object()).await;
    let browser = Browser::start(1280, 1000, false).await;
    browser.open(&url(&s.installation)).await;
    // In words, first.
    let verdict = browser.wait_for("#verdict", "keeps failing").await;
    assert!(verdict.starts_with("1 thing is wrong."), "{verdict}");
    assert!(verdict.contains("environment:2") && verdict.contains("HTTP 503"), "{verdict}");
    let figures = browser.text("#figures").await;
    assert!(figures.contains("behind the database") && figures.contains(" s, "), "{figures}");
    let row = browser.text("[data-endpoint='environment:2']").await;
    assert!(row.starts_with("failing") && row.contains("0 % of"), "{row}");
    let row = browser.text("[data-endpoint='environment:1']").await;
    assert!(row.starts_with("well") && row.contains("100 % of"), "{row}");
    // The charts have axes with units, and a line.
    let lag = browser.text("figure[data-name=Lag]").await;
    assert!(lag.contains("behind the database"), "{lag}");
    let drawn =
        "return [...document.querySelectorAll('figure')].map(f => f.querySelectorAll('svg text').length)";
    let labels = browser.run(drawn).await;
    assert!(labels.as_array().unwrap().iter().all(|count| count.as_u64() >= Some(6)), "{labels}");
    // For whoever wants to look: target/tmp/status-page.png.
    let picture = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("status-page.png");
    std::fs::write(picture, browser.screenshot().await).unwrap();
    // Only what was asked for.
    browser.click("//table[@id='endpoints']//button[text()='environment:2']").await;
    browser.wait_for("#deliveries tbody", "environment:2").await;
    let other = "return [...document.querySelectorAll('#deliveries tbody tr')].filter(r => r.innerText.includes('environment:1')).length";
    let deadline = Instant::now() + PATIENCE;
    while browser.run(other).await != 0 {
        assert!(Instant::now() < deadline, "the filter lets others through");
    }
    // One delivery: previous → new, and the attempt.
    browser.click("(//table[@id='deliveries']/tbody/tr)[1]").await;
    let event = browser.wait_for("#event", "Previous → new").await;
    assert!(event.contains("before → after"), "{event}");
    browser.wait_for("#event .old", "before").await;
    browser.wait_for("#event .new", "after").await;
    let first = "(//table[@id='deliveries']/tbody/tr)[last()]";
    browser.click("//button[@id='event-close']").await;
    browser.click(first).await;
    let event = browser.wait_for("#event", "HTTP 503").await;
    assert!(event.contains(" ms"), "{event}");
    // There is nothing to be changed.
    assert_eq!(browser.run("return document.querySelectorAll('td.act button').length").await, 0);
    assert!(browser.text("footer").await.contains("ops.token_file"));
    // It says when it cannot reach the daemon any more.
    daemon.terminate().await.success();
    browser.wait_for("#verdict", "cannot reach the daemon").await;
}

#[tokio::test]
async fn nothing_that_comes_from_outside_runs_in_the_page() {
    let s = scene(None).await;
    s.sql(&format!("UPDATE features_feature SET name = '{HOSTILE}'")).await;
    s.sql("UPDATE environments_environment SET name = '</script><script>window.hostile=2</script>'").await;
    s.installation.run(&["setup", "--resnapshot"]).await.success();
    s.receiver.answer(PLAIN, Answer::status(500).body("<script>window.hostile=3</script>"));
    let daemon = Daemon::start(&s.installation).await;
    s.set_value("<b onmouseover=\"window.hostile=4\">x</b>").await;
    s.wait_for("/dev-signed", 1).await;
    until(&s.installation, "environment:2", |endpoint| endpoint["retrying"] == 1).await;
    let browser = Browser::start(1280, 1000, false).await;
    browser.open(&url(&s.installation)).await;
    browser.wait_for("#deliveries", HOSTILE).await;
    browser.click("(//table[@id='deliveries']/tbody/tr)[1]").await;
    let event = browser.wait_for("#event", "<b onmouseover").await;
    assert!(event.contains(HOSTILE) && event.contains("<script>window.hostile=3</script>"), "{event}");
    let foreign = "return [window.hostile ?? null, document.images.length, document.scripts.length]";
    assert_eq!(browser.run(foreign).await, json!([null, 0, 1]));
    // And if the page were to make HTML of it, the policy would not let it.
    let inject = "try { document.body.innerHTML = '<img src=x onerror=\"window.hostile=5\">'; return 'made'; } \
                  catch (error) { return error.name; }";
    assert_eq!(browser.run(inject).await, "TypeError");
    let script = "const s = document.createElement('script'); try { s.textContent = 'window.hostile=6'; document.body.append(s); } \
                  catch (error) {} return window.hostile ?? null";
    assert_eq!(browser.run(script).await, Json::Null);
    daemon.terminate().await.success();
}

#[tokio::test]
async fn with_the_token_it_pauses_resumes_and_sends_again() {
    let s = scene(Some(TOKEN)).await;
    let daemon = Daemon::start(&s.installation).await;
    s.set_value("a").await;
    s.wait_for(PLAIN, 1).await;
    let browser = Browser::start(1280, 1000, true).await;
    browser.open(&url(&s.installation)).await;
    browser.wait_for("#verdict", "All is well.").await;
    let pause = "//tr[@data-endpoint='environment:2']//button[text()='Pause']";
    // Not with a token that is another.
    let unlock = async |token: &str| {
        browser.click("//button[@id='unlock']").await;
        browser.type_into("//input[@id='ask-input']", token).await;
        browser.click("//button[@id='ask-yes']").await;
    };
    let pause_it = async || {
        browser.click(pause).await;
        browser.type_into("//input[@id='ask-input']", "it moves").await;
        browser.click("//button[@id='ask-yes']").await;
    };
    unlock("a guess of sixteen").await;
    pause_it().await;
    browser.wait_for("#said", "not the token").await;
    unlock(TOKEN).await;
    pause_it().await;
    browser.wait_for("[data-endpoint='environment:2']", "by the status page: it moves").await;
    let status = s.installation.run(&["status"]).await.success();
    assert!(status.contains("PAUSED by the status page since") && status.contains("it moves"), "{status}");
    assert_eq!(browser.run("return sessionStorage.length + localStorage.length").await, 1);
    s.set_value("b").await;
    s.wait_for("/dev-signed", 2).await;
    browser.wait_for("[data-endpoint='environment:2'] td[data-name=waiting]", "1").await;
    browser.click("//tr[@data-endpoint='environment:2']//button[text()='Resume']").await;
    s.wait_for(PLAIN, 2).await;
    // One of them again.
    browser.click("(//table[@id='deliveries']/tbody/tr)[last()]").await;
    browser.wait_for("#event", "Send again").await;
    browser.click("(//dialog[@id='event']//div[@class='delivery'][.//strong='environment:2']//button)").await;
    browser.click("//button[@id='ask-yes']").await;
    let got = s.wait_for(PLAIN, 3).await;
    assert_eq!(got[2].header("x-flagpost-replay"), Some("true"));
    browser.wait_for("#event", "asked for again").await;
    daemon.terminate().await.success();
}

/// What a request from elsewhere is answered.
async fn request(installation: &Installation, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let client = reqwest::Client::new();
    let url = format!("http://{}{path}", installation.variable("FLAGPOST_OPS_LISTEN"));
    let request = client.post(url).body("{}");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let mut answer = request.send().await.unwrap();
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await.unwrap() {
        text.extend_from_slice(&chunk);
    }
    (answer.status().as_u16(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn nobody_else_changes_anything_and_no_other_site_reads_it() {
    let s = scene(Some(TOKEN)).await;
    let daemon = Daemon::start(&s.installation).await;
    let bearer = format!("Bearer {TOKEN}");
    let good = [("content-type", "application/json"), ("authorization", &*bearer)];
    let paths = [
        "/api/endpoints/environment:2/pause",
        "/api/endpoints/environment:2/resume",
        "/api/events/ab/replay",
    ];
    for path in paths {
        for (change, code) in [
            (("authorization", "Bearer guess"), 401),
            (("content-type", "text/plain"), 415),
            (("origin", "http://evil.example"), 403),
            (("host", "evil.example"), 421),
        ] {
            let others = good.into_iter().filter(|(name, _)| *name != change.0);
            let headers: Vec<(&str, &str)> = others.chain([change]).collect();
            let (got, text) = request(&s.installation, path, &headers).await;
            assert_eq!(got, code, "{path} {change:?}: {text}");
        }
    }
    assert!(!s.installation.run(&["status"]).await.success().contains("PAUSED"));
    let (code, text) = request(&s.installation, paths[0], &good).await;
    assert_eq!(code, 200, "{text}");
    assert!(s.installation.run(&["status"]).await.success().contains("PAUSED by the status page"));
    let (code, text) = request(&s.installation, paths[2], &good).await;
    assert!(code == 400 && text.contains("no event begins with ab"), "{code} {text}");
    // Reading by a name that is not known is refused too; health and metrics are for whoever asks.
    let client = reqwest::Client::new();
    let base = url(&s.installation);
    for (path, code) in
        [("", 421), ("api/status", 421), ("api/deliveries", 421), ("readyz", 200), ("metrics", 200)]
    {
        let answer = client.get(format!("{base}{path}")).header("host", "evil.example").send().await.unwrap();
        assert_eq!(answer.status().as_u16(), code, "{path}");
    }
    assert!(!daemon.stderr().contains(TOKEN));
    daemon.terminate().await.success();
}

#[tokio::test]
async fn the_api_tells_what_the_commands_tell() {
    let s = scene(None).await;
    let daemon = Daemon::start(&s.installation).await;
    for value in ["a", "b", "c"] {
        s.set_value(value).await;
    }
    s.wait_for("/dev-signed", 3).await;
    s.wait_for(PLAIN, 3).await;
    until(&s.installation, "environment:1", |endpoint| endpoint["delivered"] == 3).await;
    until(&s.installation, "environment:2", |endpoint| endpoint["delivered"] == 3).await;
    let told = api(&s.installation, "/api/status").await["told"]["status"].take();
    let mut printed = s.installation.run(&["status", "--json"]).await.json();
    assert_eq!(told["endpoints"], printed["endpoints"].take());
    // The newest first, a part at a time.
    let first = api(&s.installation, "/api/deliveries?limit=2&kind=FLAG_UPDATED").await;
    let second =
        api(&s.installation, &format!("/api/deliveries?limit=2&kind=FLAG_UPDATED&before={}", first["next"]))
            .await;
    assert_eq!((first["events"].as_array().unwrap().len(), second["next"].clone()), (2, Json::Null));
    let listed: Vec<Json> =
        [&first, &second].into_iter().flat_map(|part| part["events"].as_array().unwrap().clone()).collect();
    let log = s.installation.run(&["log", "--json", "--kind", "FLAG_UPDATED"]).await.success();
    let logged: Vec<Json> = log.lines().rev().map(|line| serde_json::from_str(line).unwrap()).collect();
    let without_number = |mut event: Json| {
        event.as_object_mut().unwrap().remove("seq").unwrap();
        event
    };
    assert_eq!(listed.into_iter().map(without_number).collect::<Vec<_>>(), logged);
    let id = logged[0]["id"].as_str().unwrap();
    let shown = s.installation.run(&["show", "--json", id]).await.json();
    assert_eq!(api(&s.installation, &format!("/api/events/{id}")).await, shown);
    let of_one = api(&s.installation, "/api/deliveries?endpoint=environment:2&state=delivered").await;
    for event in of_one["events"].as_array().unwrap() {
        assert_eq!(event["deliveries"].as_array().unwrap().len(), 1, "{event}");
    }
    // What means nothing is told, not passed over.
    for path in [
        "/api/deliveries?state=fine",
        "/api/deliveries?feture=x",
        "/api/deliveries?endpoint=environment:99",
        "/api/events/zz",
    ] {
        assert_eq!(s.installation.ops(path).await.0, 400, "{path}");
    }
    let samples = api(&s.installation, "/api/samples").await;
    assert_eq!(samples["every_seconds"], 10);
    let sample = &samples["samples"][0];
    assert!(sample["lag_bytes"].is_i64() && sample["pending"].is_u64() && sample["at"].is_i64(), "{sample}");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn it_is_not_served_to_a_network_unless_somebody_says_so() {
    let mut s = Scene::new().await;
    s.installation = s.installation.with_ops();
    let port = s.installation.variable("FLAGPOST_OPS_LISTEN").rsplit(':').next().unwrap().to_owned();
    let base = format!("http://127.0.0.1:{port}");
    for (page, code) in [(None, 404), (Some("true"), 200)] {
        s.installation.set("FLAGPOST_OPS_LISTEN", &format!("0.0.0.0:{port}"));
        if let Some(page) = page {
            s.installation.set("FLAGPOST_OPS_PAGE", page);
        }
        let daemon = Daemon::start(&s.installation).await;
        assert_eq!(reqwest::get(&base).await.unwrap().status().as_u16(), code);
        let api = reqwest::get(format!("{base}/api/status")).await.unwrap();
        assert_eq!(api.status().as_u16(), code);
        assert_eq!(reqwest::get(format!("{base}/readyz")).await.unwrap().status().as_u16(), 200);
        // Without a token nobody changes anything.
        if code == 200 {
            let headers = [("content-type", "application/json"), ("authorization", "Bearer ")];
            let (code, text) = request(&s.installation, "/api/endpoints/environment:2/pause", &headers).await;
            assert!(code == 403 && text.contains("ops.token_file"), "{code} {text}");
        }
        daemon.terminate().await.success();
    }
}
