//! Who is told of an endpoint's troubles: by mail through a real SMTP server, and by an operator's own webhook.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flagpost::demo::receiver::Answer;
use serde_json::Value as Json;

use crate::delivery::{PATIENCE, Scene, at};
use crate::support::process::Daemon;

/// aiosmtpd, which prints every mail that it takes.
struct MailServer {
    process: Child,
    addr: SocketAddr,
    printed: Arc<Mutex<String>>,
}

impl MailServer {
    async fn start() -> MailServer {
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // Debian's: an interpreter of the developer's own, earlier in PATH, may not have the package.
        let mut process = Command::new("/usr/bin/python3")
            .args(["-u", "-m", "aiosmtpd", "-n", "-l", &addr.to_string()])
            .args(["-c", "aiosmtpd.handlers.Debugging", "stdout"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let printed = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&printed);
        let mut output = process.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                kept.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(addr).is_err() {
            assert!(Instant::now() < deadline, "the mail server does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        MailServer { process, addr, printed }
    }

    fn mails(&self) -> Vec<String> {
        let printed = self.printed.lock().unwrap();
        let all = printed.split("---------- MESSAGE FOLLOWS ----------").skip(1);
        all.filter(|mail| mail.contains("END MESSAGE")).map(str::to_owned).collect()
    }

    async fn wait_for(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        while self.mails().len() < count {
            assert!(Instant::now() < deadline, "{} of {count} mails", self.mails().len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.mails()
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A breaker that opens with the first failure, and is told at once.
async fn scene(server: &MailServer) -> Scene {
    let s = Scene::new().await;
    s.sql("UPDATE organisations_organisation SET webhook_notification_email = 'owner@example.com'").await;
    s.installation.run(&["setup", "--resnapshot"]).await.success();
    s.with("FLAGPOST_DELIVERY_BREAKER_FAILURES", "1")
        .with("FLAGPOST_DELIVERY_BREAKER_AFTER", "0")
        .with("FLAGPOST_NOTIFY_SMTP", &format!("smtp://{}", server.addr))
        .with("FLAGPOST_NOTIFY_FROM", "flagpost@example.com")
        .with("FLAGPOST_NOTIFY_TO", "ops@example.com, second@example.com")
        .with("FLAGPOST_NOTIFY_AFTER", "0")
}

#[tokio::test]
async fn an_outage_is_told_once_to_the_organisation_and_the_operators_and_so_over_a_restart() {
    let server = MailServer::start().await;
    let s = scene(&server).await;
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.answer("/dev-plain", Answer::status(500));
    s.set_value("a").await;
    let mail = server.wait_for(1).await.remove(0);
    for part in ["owner@example.com", "ops@example.com", "second@example.com", "From: flagpost@example.com"] {
        assert!(mail.contains(part), "{part} is not in {mail}");
    }
    assert!(mail.contains("/dev-plain keeps failing"), "{mail}");
    assert!(mail.contains("HTTP 500") && mail.contains("Development"), "{mail}");
    assert!(mail.contains("flagpost replay --failed --endpoint environment:2"), "{mail}");
    daemon.terminate().await.success();
    let daemon = Daemon::start(&s.installation).await;
    s.set_value("b").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(server.mails().len(), 1, "told twice");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn what_is_given_up_and_who_is_gone_is_told_by_the_operators_webhook_too() {
    let server = MailServer::start().await;
    let s = scene(&server).await;
    let alerts = s.receiver.url("/alerts");
    let s = s
        .with("FLAGPOST_NOTIFY_WEBHOOK", &alerts)
        .with("FLAGPOST_NOTIFY_ORGANISATIONS", "false")
        .with("FLAGPOST_DELIVERY_MAX_AGE", "1ms");
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.answer("/dev-plain", Answer::status(500));
    s.receiver.answer("/dev-signed", Answer::status(410));
    // What cannot be told is told later: the alerts' endpoint fails at first, and the mail goes out all the same.
    s.set_value("a").await;
    let mails = server.wait_for(2).await;
    assert!(
        mails.iter().any(|mail| mail.contains("did not get some events") || mail.contains("given up")),
        "{mails:?}"
    );
    assert!(mails.iter().any(|mail| mail.contains("410 Gone")), "{mails:?}");
    assert!(mails.iter().all(|mail| !mail.contains("owner@example.com")), "{mails:?}");
    let all = s.receiver.wait_for(|all| at(all, "/alerts").len() >= 2, PATIENCE).await.unwrap();
    let bodies: Vec<Json> =
        at(&all, "/alerts").iter().map(|r| serde_json::from_slice(&r.body).unwrap()).collect();
    assert!(bodies.iter().all(|body| body["type"] == "flagpost.endpoint_trouble"), "{bodies:?}");
    let troubles = |endpoint: &str| {
        let body = bodies.iter().find(|body| body["endpoint"] == endpoint).unwrap();
        let kinds: Vec<&str> =
            body["troubles"].as_array().unwrap().iter().map(|t| t["kind"].as_str().unwrap()).collect();
        kinds.join(",")
    };
    assert!(troubles("environment:2").contains("given_up"), "{bodies:?}");
    assert!(bodies.iter().any(|body| body["troubles"][0]["kind"] == "gone"), "{bodies:?}");
    daemon.terminate().await.success();
}

#[tokio::test]
async fn a_mail_server_that_is_down_delays_nothing_and_is_said() {
    let server = MailServer::start().await;
    let s = scene(&server).await;
    drop(server);
    let daemon = Daemon::start(&s.installation).await;
    s.receiver.answer("/dev-plain", Answer::status(500));
    s.set_value("a").await;
    let deadline = Instant::now() + PATIENCE;
    while !daemon.stderr().contains("nobody could be told") {
        assert!(Instant::now() < deadline, "{}", daemon.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    s.set_value("b").await;
    s.wait_for("/dev-signed", 2).await;
    daemon.terminate().await.success();
}
