//! Shadow mode's listener and its reports, live: who is heard, what is told, and when.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use flagpost::demo::cluster::Cluster;
use serde_json::{Value as Json, json};
use tokio_postgres::Client;

use super::free_address;
use crate::support::flagsmith::{self, Schema};
use crate::support::process::{Daemon, Installation, LONG};
use crate::support::{cluster_options, golden};

const POLL: Duration = Duration::from_millis(20);

/// A Flagsmith with a database and without webhooks to us.
struct Scene {
    schema: Schema,
    client: Client,
    listen: SocketAddr,
    installation: Installation,
    http: reqwest::Client,
    _cluster: Cluster,
}

impl Scene {
    async fn new() -> Scene {
        let cluster = Cluster::start(cluster_options()).await.unwrap();
        let schema = Schema::read(&golden().join("schema.json"));
        let (listen, elsewhere) = (free_address(), free_address());
        let client = flagsmith::database(&cluster, &schema, elsewhere).await;
        let installation = Installation::new(&cluster.url("postgres", "flagsmith"));
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        Scene { schema, client, listen, installation, http, _cluster: cluster }
    }

    /// A webhook row of environment 1.
    async fn webhook(&self, id: i32, url: &str, secret: &str) {
        let row = json!({
            "id": id, "url": url, "enabled": true, "environment_id": 1, "secret": secret,
            "uuid": format!("9d1c5c1e-0000-4000-8000-{id:012}"), "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        });
        let sql = self.schema.insert("environments_webhook", row.as_object().unwrap());
        self.client.batch_execute(&sql).await.unwrap();
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }

    /// The mirror is filled at the first start.
    async fn shadow(&self, options: &[&str]) -> Daemon {
        if !self.installation.state_dir().exists() {
            self.installation.run(&["setup"]).await.success();
        }
        let listen = self.listen.to_string();
        let arguments = [&["shadow", "--listen", &listen], options].concat();
        Daemon::start_as(&self.installation, &arguments).await
    }

    /// Sends a request without a signature.
    async fn post(&self, path: &str, body: &str) {
        let sent = self.http.post(self.url(path)).body(body.to_owned()).send().await.unwrap();
        assert_eq!(sent.status(), 200);
    }
}

/// Waits until so many lines of its report are there.
async fn reported(daemon: &Daemon, part: &str, count: usize) {
    let deadline = Instant::now() + LONG;
    while daemon.stdout().lines().filter(|line| line.contains(part)).count() < count {
        assert!(Instant::now() < deadline, "{count} of {part}: {}", daemon.stdout());
        tokio::time::sleep(POLL).await;
    }
}

#[tokio::test]
async fn the_listener_takes_anything_and_a_wrong_signature_is_told() {
    let scene = Scene::new().await;
    let url = scene.url("/signed?token=sekrit-path");
    scene.webhook(900, &url, "sekrit-key").await;
    let daemon = scene.shadow(&["--grace", "1"]).await;
    let http = &scene.http;
    let post = |body: Vec<u8>| http.post(&url).header("x-flagsmith-signature", "wrong").body(body).send();
    assert_eq!(post(b"{}".to_vec()).await.unwrap().status(), 200);
    assert_eq!(post(vec![0xff; 1024 * 1024]).await.unwrap().status(), 200);
    // Refused before its end, so the sender may see no answer but a closed connection.
    assert!(post(vec![b'['; 2 * 1024 * 1024]).await.map_or(true, |answer| answer.status() == 413));
    assert_eq!(http.get(&url).send().await.unwrap().status(), 405);
    assert_eq!(http.post(scene.url("/nobody's")).send().await.unwrap().status(), 200);

    let output = daemon.terminate().await;
    let text = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code, 0, "{text}");
    assert_eq!(output.stdout.lines().filter(|l| l.starts_with("bad_signature")).count(), 2, "{text}");
    assert!(output.stdout.contains("1 requests were not compared"), "{text}");
    assert!(!text.contains("sekrit"), "{text}");
}

#[tokio::test]
async fn an_address_that_is_taken_is_said_so() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let installation = Installation::new("postgresql://nobody@127.0.0.1:1/none");
    let output = installation.run(&["shadow", "--listen", &taken.local_addr().unwrap().to_string()]).await;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(output.stderr.contains("give another address"), "{output:?}");
}

#[tokio::test]
async fn a_row_that_was_replaced_by_one_with_a_secret_lets_nothing_unsigned_through() {
    let scene = Scene::new().await;
    scene.webhook(900, &scene.url("/hook"), "").await;
    let daemon = scene.shadow(&["--grace", "1", "--json"]).await;
    scene.post("/hook", "unsigned, as the row asks").await;
    scene.client.batch_execute("DELETE FROM environments_webhook WHERE id = 900").await.unwrap();
    scene.webhook(901, &scene.url("/hook"), "sekrit").await;
    let deadline = Instant::now() + LONG;
    while !daemon.stdout().contains("bad_signature") {
        assert!(Instant::now() < deadline, "unsigned requests pass for ever");
        scene.post("/hook", "unsigned").await;
        tokio::time::sleep(POLL).await;
    }
    let output = daemon.terminate().await.success();
    let first = output.lines().find(|line| line.contains("bad_signature")).unwrap();
    assert!(first.contains("environment:901") && !output.contains("sekrit"), "{output}");
}

#[tokio::test]
async fn a_name_means_the_listener_only_if_that_was_said() {
    let scene = Scene::new().await;
    let port = scene.listen.port();
    scene.webhook(900, &scene.url("/by-address"), "").await;
    scene.webhook(901, &format!("http://flagpost:{port}/by-name"), "").await;
    let ready = async |options: &[&str]| {
        let output = scene.shadow(&[options, &["--json"]].concat()).await.terminate().await.success();
        let ready: Json = serde_json::from_str(output.lines().next().unwrap()).unwrap();
        [ready["endpoints_here"].as_u64().unwrap(), ready["endpoints_doubtful"].as_u64().unwrap()]
    };
    assert_eq!(ready(&[]).await, [1, 1]);
    let name = format!("http://flagpost:{port}");
    assert_eq!(ready(&["--as", &name]).await, [1, 1]);
    assert_eq!(ready(&["--as", &name, "--as", &scene.url("/")]).await, [2, 0]);

    let output = scene.shadow(&[]).await.terminate().await.success();
    assert!(output.contains(&format!("--as http://HOST:{port}")), "{output}");
    let listen = scene.listen.to_string();
    let refused = scene.installation.run(&["shadow", "--listen", &listen, "--as", "flagpost"]).await;
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("such as http://flagpost:8000"), "{refused:?}");
}

#[tokio::test]
async fn summaries_come_by_the_clock_and_one_at_the_end_also_after_ctrl_c() {
    let scene = Scene::new().await;
    let daemon = scene.shadow(&["--report", "1", "--json"]).await;
    let started = Instant::now();
    reported(&daemon, r#""type":"summary""#, 2).await;
    assert!(started.elapsed() > Duration::from_millis(1_500), "they come too fast: {}", daemon.stdout());
    scene.post("/nobody's", "not in the summaries before").await;
    let output = daemon.interrupt().await.success();
    let last: Json = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    assert_eq!((&last["type"], &last["total"]["unjudged"]), (&"summary".into(), &1.into()), "{output}");
}
