//! SIGHUP: what can change while the daemon runs holds at once, what cannot is named, and what is wrong changes nothing.

use std::time::{Duration, Instant};

use flagpost::demo::receiver::Answer;

use crate::endpoints::Scene;
use crate::support::process::Daemon;

const PATIENCE: Duration = Duration::from_secs(20);
const TWO: &str = "
[delivery]
retry = [\"100ms\"]
[[webhooks.endpoint]]
name = \"kept\"
url = \"http://RECEIVER/kept\"
kinds = [\"FLAG_UPDATED\"]
[[webhooks.endpoint]]
name = \"left\"
url = \"http://RECEIVER/left\"
kinds = [\"FLAG_UPDATED\"]
";

/// Tells the daemon to reload and waits for this line, which it has not written before.
async fn reload(daemon: &Daemon, line: &str) {
    let before = daemon.stderr().matches(line).count();
    daemon.hang_up();
    let deadline = Instant::now() + PATIENCE;
    while daemon.stderr().matches(line).count() == before {
        assert!(Instant::now() < deadline, "no {line:?} in {}", daemon.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const FLIP: &str = "UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1";

#[tokio::test]
async fn endpoints_come_change_and_go_without_a_restart_and_nothing_is_lost_meanwhile() {
    let mut s = Scene::new().await;
    s.installation = s.installation.with_ops();
    s.configure(TWO);
    s.installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.sql(FLIP).await;
    s.wait_for("/kept", 1).await;
    s.wait_for("/left", 1).await;
    s.receiver.answer("/left", Answer::status(500));
    s.sql(FLIP).await;
    s.wait_for("/left", 2).await;

    // One goes with what waits for it, one stays, one comes.
    s.configure(&TWO.replace("\"left\"", "\"new\"").replace("/left", "/new"));
    reload(&daemon, "this holds from now on").await;
    s.sql(FLIP).await;
    let new = s.wait_for("/new", 1).await;
    let kept = s.wait_for("/kept", 3).await;
    assert_eq!(new.len(), 1, "what was before it came is not sent to it");
    assert_eq!(kept.len(), 3);
    // The status page knows them too.
    let (_, shown) = s.installation.ops("/api/status").await;
    assert!(shown.contains("/new\"") && shown.contains("/kept\"") && !shown.contains("/left\""), "{shown}");
    let said = daemon.stderr();
    for part in [
        "webhooks.endpoint \\\"left\\\"",
        "webhooks.endpoint \\\"new\\\"",
        "what was queued for it is dropped",
    ] {
        assert!(said.contains(part) || said.contains(&part.replace("\\\"", "\"")), "{part}: {said}");
    }
    assert!(!said.contains("webhooks.endpoint \"kept\""), "{said}");
    let calls = s.receiver.all().iter().filter(|call| call.path == "/left").count();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let later = s.receiver.all().iter().filter(|call| call.path == "/left").count();
    assert_eq!(calls, later, "who is no more is not called");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn what_needs_a_restart_is_named_and_what_is_wrong_changes_nothing() {
    let s = Scene::new().await;
    s.configure(TWO);
    s.installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    reload(&daemon, "nothing that can be reloaded has changed").await;

    s.configure(&format!("[source]\nslot = \"another\"\n{TWO}"));
    reload(&daemon, "need a restart").await;
    assert!(daemon.stderr().contains("source.slot"), "{}", daemon.stderr());

    s.configure(&format!("{TWO}\n[state]\nmax_size = \"4 elephants\"\n"));
    reload(&daemon, "the old one still holds").await;
    assert!(daemon.stderr().contains("state.max_size"), "{}", daemon.stderr());
    s.sql(FLIP).await;
    s.wait_for("/kept", 1).await;

    // The level of the log, and a secret file with the same name.
    s.configure(&format!("{TWO}\n[log]\nlevel = \"debug\"\n"));
    reload(&daemon, "log.level").await;
    s.sql(FLIP).await;
    let deadline = Instant::now() + PATIENCE;
    while !daemon.stderr().contains("a transaction was captured") {
        assert!(Instant::now() < deadline, "{}", daemon.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    daemon.terminate().await.success();
}

#[tokio::test]
async fn a_secret_that_its_file_has_anew_signs_after_a_reload() {
    let s = Scene::new().await;
    let secret = s.installation.folder().join("secret");
    std::fs::write(&secret, "first").unwrap();
    s.configure("[[webhooks.endpoint]]\nname = \"mine\"\nurl = \"http://RECEIVER/mine\"\nsecret_file = \"DIR/secret\"\nkinds = [\"FLAG_UPDATED\"]\n");
    s.installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&s.installation).await;
    for (number, name) in ["first", "second"].into_iter().enumerate() {
        if number > 0 {
            std::fs::write(&secret, name).unwrap();
            reload(&daemon, "this holds from now on").await;
        }
        s.sql(FLIP).await;
        let received = s.wait_for("/mine", number + 1).await;
        let last = received.last().unwrap();
        let signature = flagpost::delivery::flagsmith_signature(name, &last.body);
        assert_eq!(last.header("x-flagsmith-signature"), signature.as_deref(), "{name}");
    }
    assert!(!daemon.stderr().contains("second"), "{}", daemon.stderr());
    daemon.terminate().await.success();
}
