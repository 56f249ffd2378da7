//! The HTTP receiver does what the tests rely on.

use std::time::{Duration, Instant};

use flagpost::demo::receiver::{Answer, Received, Receiver};

/// Far more than anything here takes; only a failing test waits so long.
const LONG: Duration = Duration::from_secs(20);

async fn post(receiver: &Receiver, path: &str, body: &str) -> Result<reqwest::Response, reqwest::Error> {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client.post(receiver.url(path)).header("X-Flagsmith-Signature", "abc").body(body.to_owned()).send().await
}

fn bodies(received: &[Received]) -> Vec<&str> {
    received.iter().map(|r| std::str::from_utf8(&r.body).unwrap()).collect()
}

#[tokio::test]
async fn every_request_is_recorded_as_it_came() {
    let receiver = Receiver::start(0).unwrap();
    let before = jiff::Timestamp::now();
    assert_eq!(post(&receiver, "/a/b?c=d", "{\"é\": 1}").await.unwrap().status(), 200);
    let all = receiver.all();
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].path.as_str(), all[0].body.as_slice()), ("/a/b?c=d", "{\"é\": 1}".as_bytes()));
    assert_eq!(all[0].header("x-flagsmith-signature"), Some("abc"));
    assert!(all[0].headers.iter().all(|(name, _)| *name == name.to_lowercase()));
    assert!(
        all[0].at.duration_since(before).as_millis() < 20_000 && all[0].at.subsec_nanosecond() % 1000 == 0
    );
    receiver.clear();
    assert!(receiver.all().is_empty());
}

#[tokio::test]
async fn a_script_of_answers_is_used_up_one_by_one() {
    let receiver = Receiver::start(0).unwrap();
    receiver.answer("/x", Answer::status(204));
    receiver.script(
        "/x",
        [Answer::status(500), Answer::status(429).header("retry-after", "7").body("slow down")],
    );
    assert_eq!(post(&receiver, "/x?query", "1").await.unwrap().status(), 500);
    assert_eq!(post(&receiver, "/y", "2").await.unwrap().status(), 200);
    let answer = post(&receiver, "/x", "3").await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (429, &"7".parse().unwrap()));
    assert_eq!(post(&receiver, "/x", "4").await.unwrap().status(), 204);
    assert_eq!(bodies(&receiver.all()), ["1", "2", "3", "4"]);
    receiver.answer_others(Answer::status(503));
    assert_eq!(post(&receiver, "/y", "5").await.unwrap().status(), 503);
}

#[tokio::test]
async fn a_delayed_answer_comes_after_its_delay_but_is_recorded_before() {
    let receiver = Receiver::start(0).unwrap();
    let delay = Duration::from_millis(300);
    receiver.answer("/slow", Answer::status(200).after(delay));
    let started = Instant::now();
    let (answer, recorded) = tokio::join!(post(&receiver, "/slow", ""), async {
        receiver.wait_for(|all| all.len() == 1, LONG).await.unwrap();
        started.elapsed()
    });
    assert_eq!(answer.unwrap().status(), 200);
    assert!(started.elapsed() >= delay);
    assert!(recorded < started.elapsed());
}

#[tokio::test]
async fn waiting_ends_with_the_request_that_is_waited_for() {
    let receiver = Receiver::start(0).unwrap();
    let (all, ()) = tokio::join!(receiver.wait_for(|all| all.iter().any(|r| r.path == "/3"), LONG), async {
        for n in 1..=3 {
            post(&receiver, &format!("/{n}"), "").await.unwrap();
        }
    });
    assert_eq!(all.unwrap().len(), 3);
    let all = receiver.wait_for(|all| all.len() > 3, Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(all.len(), 3, "what came is told after the timeout too");
}

#[tokio::test]
async fn a_stopped_receiver_hangs_up_on_those_it_never_answers_and_comes_back_on_its_port() {
    let mut receiver = Receiver::start(0).unwrap();
    let addr = receiver.addr();
    receiver.answer("/never", Answer::never());
    let url = receiver.url("/never");
    let unanswered = tokio::spawn(async move {
        reqwest::Client::builder().no_proxy().build().unwrap().post(url).body("1").send().await
    });
    receiver.wait_for(|all| all.len() == 1, LONG).await.unwrap();
    receiver.stop();
    assert!(unanswered.await.unwrap().is_err());
    assert!(post(&receiver, "/x", "lost").await.unwrap_err().is_connect());

    receiver.restart().unwrap();
    assert_eq!(post(&receiver, "/x", "2").await.unwrap().status(), 200);
    assert_eq!(bodies(&receiver.all()), ["1", "2"]);
    drop(receiver);
    let another = Receiver::start(addr.port()).unwrap();
    assert_eq!((another.addr(), another.all().len()), (addr, 0));
    assert_eq!(post(&another, "/x", "3").await.unwrap().status(), 200);
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    let receiver = Receiver::start(0).unwrap();
    let error = Receiver::start(receiver.addr().port()).err().unwrap();
    assert!(error.to_string().contains(&receiver.addr().to_string()), "{error}");
}
