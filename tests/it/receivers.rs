//! The receivers that the documents show, run as a reader would run them: they verify, drop repeats and keep order.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flagpost::demo::cluster::Cluster;

use crate::cli::flagsmith;
use crate::support::cluster_options;
use crate::support::process::{Daemon, Installation};

/// A running example, killed at the end.
struct Example {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Drop for Example {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Example {
    fn start(program: &str, file: &str, port: u16) -> Example {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(file);
        let mut child = Command::new(program)
            .arg(path)
            .arg(port.to_string())
            .env("SECRET", "s3cr3t")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}: tools/needs installs it"));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::sync_channel(100);
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Example { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(20)).expect("a line of the example")
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn the_examples_in_both_languages_verify_drop_repeats_and_keep_order() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let client = flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let (python, node) = (free_port(), free_port());
    client
        .batch_execute(&format!(
            "UPDATE environments_webhook SET url = 'http://127.0.0.1:{python}/', secret = 's3cr3t' WHERE id = 1;
             UPDATE environments_webhook SET url = 'http://127.0.0.1:{node}/', secret = 's3cr3t' WHERE id = 2"
        ))
        .await
        .unwrap();
    let examples =
        [Example::start("python3", "receiver.py", python), Example::start("node", "receiver.mjs", node)];
    let installation = Installation::new(&cluster.url("postgres", "flagsmith"))
        .with("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8")
        .with("FLAGPOST_SOURCE_SETTLE", "0")
        .with("FLAGPOST_DELIVERY_RETRY", "100ms");
    installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&installation).await;
    for enabled in [true, false, true] {
        let sql = format!("UPDATE features_featurestate SET enabled = {enabled} WHERE id = 1");
        client.batch_execute(&sql).await.unwrap();
    }
    for example in &examples {
        let lines: Vec<String> = (0..3).map(|_| example.line().to_lowercase()).collect();
        let expected = ["true", "false", "true"].iter().zip(1..);
        let expected: Vec<String> = expected
            .map(|(enabled, number)| format!("dark_mode {number} updated;scope=default {enabled}"))
            .collect();
        assert_eq!(lines, expected);
    }
    daemon.terminate().await.success();

    // A repeat is accepted and not told again; a forged body is refused.
    let body = r#"{"data": {"new_state": {"enabled": true, "environment": 9, "feature": {"id": 9, "name": "by hand"}}}}"#;
    let signature = flagpost::delivery::flagsmith_signature("s3cr3t", body.as_bytes()).unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for (example, port) in examples.iter().zip([python, node]) {
        let post = |id: &str, number: u32, body: &str| {
            let request = http.post(format!("http://127.0.0.1:{port}/")).header("x-flagpost-event-id", id);
            let request =
                request.header("x-flagpost-sequence", number).header("x-flagsmith-signature", &signature);
            request.header("x-flagpost-action", "created;scope=default").body(body.to_owned()).send()
        };
        for (id, number) in [("a", 1), ("a", 1), ("b", 2)] {
            assert_eq!(post(id, number, body).await.unwrap().status(), 204);
        }
        assert_eq!(post("c", 3, &body.replace("true", "false")).await.unwrap().status(), 401);
        assert!(example.line().starts_with("by hand 1"));
        assert!(example.line().starts_with("by hand 2"));
        assert!(example.lines.recv_timeout(Duration::from_millis(200)).is_err(), "more than two were told");
    }
}
