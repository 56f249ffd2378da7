//! One trace for each event, from the commit to each call, as a collector of OpenTelemetry gets it.

use std::time::{Duration, Instant};

use flagpost::demo::receiver::{Answer, Receiver};
use serde_json::Value as Json;

use crate::endpoints::Scene;
use crate::support::process::Daemon;

const PATIENCE: Duration = Duration::from_secs(20);

fn spans(collector: &Receiver) -> Vec<Json> {
    let requests = collector.all();
    requests
        .iter()
        .filter(|request| request.path == "/v1/traces")
        .flat_map(|request| {
            let body: Json = serde_json::from_slice(&request.body).unwrap();
            body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone()
        })
        .collect()
}

#[tokio::test]
async fn a_trace_leads_from_the_commit_to_each_attempt_and_the_receiver_is_told_of_it() {
    let s = Scene::new().await;
    let collector = Receiver::start(0).unwrap();
    s.configure(&format!(
        "[traces]\nendpoint = \"http://{}\"\n[[webhooks.endpoint]]\nname = \"mine\"\nurl = \"http://RECEIVER/mine?token=hidden\"\nkinds = [\"FLAG_UPDATED\"]\n",
        collector.addr()
    ));
    s.receiver.script("/mine", [Answer::status(503)]);
    s.installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.sql("UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1").await;
    let calls = s.wait_for("/mine", 2).await;
    let id = calls[0].header("x-flagpost-event-id").unwrap().to_owned();
    let trace = id.replace('-', "");
    let deadline = Instant::now() + PATIENCE;
    let of_mine = |spans: &[Json]| -> Vec<Json> {
        spans
            .iter()
            .filter(|span| span["traceId"] == trace.as_str())
            .filter(|span| {
                span["name"] == "change"
                    || span["attributes"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|a| a["value"]["stringValue"] == "configured:mine")
            })
            .cloned()
            .collect()
    };
    while of_mine(&spans(&collector)).len() < 3 {
        assert!(Instant::now() < deadline, "{:#?}\n{}", spans(&collector), daemon.stderr());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let found = of_mine(&spans(&collector));
    let root = found.iter().find(|span| span["name"] == "change").unwrap();
    assert!(root["parentSpanId"].is_null(), "{root:#}");
    let attempts: Vec<&Json> = found.iter().filter(|span| span["name"] == "attempt").collect();
    assert_eq!(attempts.len(), 2, "{found:#?}");
    for (attempt, call) in attempts.iter().zip(&calls) {
        assert_eq!(attempt["parentSpanId"], root["spanId"], "{attempt:#}");
        let told = format!("00-{trace}-{}-01", attempt["spanId"].as_str().unwrap());
        assert_eq!(call.header("traceparent"), Some(told.as_str()));
    }
    assert_eq!(attempts[0]["status"]["code"], 2, "{:#}", attempts[0]);
    assert!(attempts[1]["status"].is_null(), "{:#}", attempts[1]);
    let all = format!("{:?}", spans(&collector));
    assert!(!all.contains("hidden"), "{all}");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn without_a_collector_there_is_no_trace_and_one_that_is_away_delays_nothing() {
    let s = Scene::new().await;
    let mine = "[[webhooks.endpoint]]\nname = \"mine\"\nurl = \"http://RECEIVER/mine\"\nkinds = [\"FLAG_UPDATED\"]\n";
    s.configure(mine);
    s.installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.sql("UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1").await;
    assert_eq!(s.wait_for("/mine", 1).await[0].header("traceparent"), None);
    daemon.terminate().await.success();

    s.configure(&format!("[traces]\nendpoint = \"http://127.0.0.1:1\"\n{mine}"));
    let daemon = Daemon::start(&s.installation).await;
    s.sql("UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1").await;
    assert!(s.wait_for("/mine", 2).await[1].header("traceparent").is_some());
    let deadline = Instant::now() + PATIENCE;
    while !daemon.stderr().contains("traces cannot be sent") {
        assert!(Instant::now() < deadline, "{}", daemon.stderr());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    daemon.terminate().await.success();
}
