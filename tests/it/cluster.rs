//! The scratch cluster does what the tests rely on.

use std::io::{Read, Write};
use std::process::Command;

use flagpost::demo::cluster::{Auth, Cluster, Options, StopMode, Tls};
use tokio_postgres::{Client, NoTls};

async fn setting(client: &Client, name: &str) -> String {
    client.query_one("SELECT current_setting($1)", &[&name]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_cluster_answers_with_the_settings_asked_for() {
    let started = std::time::Instant::now();
    let cluster = Cluster::start(Options::default().set("work_mem", "5MB")).await.unwrap();
    eprintln!("started after {:?}", started.elapsed());
    let client = cluster.connect("postgres").await.unwrap();
    for (name, value) in [
        ("work_mem", "5MB"),
        ("wal_level", "logical"),
        ("fsync", "off"),
        ("synchronous_commit", "on"),
        ("server_encoding", "UTF8"),
    ] {
        assert_eq!(setting(&client, name).await, value, "{name}");
    }
}

#[tokio::test]
async fn a_database_is_reached_by_its_url_over_tcp() {
    let cluster = Cluster::start(Options::default()).await.unwrap();
    cluster.create_database("with space").await.unwrap();
    let url = cluster.url("postgres", "with space");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let row = client.query_one("SELECT current_database(), inet_server_port()", &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), ("with space", i32::from(cluster.port())));
}

#[tokio::test]
async fn with_scram_only_the_right_password_opens() {
    let auth = Auth::Scram { password: "p@ss/wörd".into() };
    let cluster = Cluster::start(Options { auth, ..Options::default() }).await.unwrap();
    cluster.connect("postgres").await.unwrap();
    assert!(tokio_postgres::connect(&cluster.url("postgres", "postgres"), NoTls).await.is_ok());
    let wrong = cluster.url_with_password("postgres", "guess", "postgres");
    let error = tokio_postgres::connect(&wrong, NoTls).await.err().unwrap();
    assert_eq!(error.as_db_error().unwrap().code().code(), "28P01");
}

#[tokio::test]
async fn rows_and_port_stay_over_restart_immediate_stop_and_kill() {
    let mut cluster = Cluster::start(Options::default()).await.unwrap();
    let port = cluster.port();
    let client = cluster.connect("postgres").await.unwrap();
    client.batch_execute("CREATE TABLE kept (n int)").await.unwrap();
    for n in 0..4_i32 {
        let client = cluster.connect("postgres").await.unwrap();
        assert_eq!(client.execute("INSERT INTO kept VALUES ($1)", &[&n]).await.unwrap(), 1);
        match n {
            0 => {}
            1 => cluster.stop(StopMode::Immediate).await.unwrap(),
            2 => cluster.kill(),
            _ => cluster.stop(StopMode::Fast).await.unwrap(),
        }
        cluster.restart().await.unwrap();
        assert!(client.query("SELECT 1", &[]).await.is_err(), "the session ended with the server");
    }
    let client = cluster.connect("postgres").await.unwrap();
    let row = client.query_one("SELECT count(*) FROM kept", &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), cluster.port()), (4, port));
}

#[tokio::test]
async fn a_stopped_cluster_refuses_and_says_so_in_its_log() {
    let mut cluster = Cluster::start(Options::default()).await.unwrap();
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.stop(StopMode::Fast).await.unwrap();
    assert!(cluster.connect("postgres").await.is_err());
    assert!(cluster.log_tail().contains("database system is shut down"), "{}", cluster.log_tail());
    assert_eq!(cluster.pid(), None);
}

#[tokio::test]
async fn nothing_is_left_of_a_dropped_cluster() {
    let cluster = Cluster::start(Options::default()).await.unwrap();
    let (folder, pid, port) = (cluster.folder().to_owned(), cluster.pid().unwrap(), cluster.port());
    // A session that its client keeps open must not hold the end up.
    let client = cluster.connect("postgres").await.unwrap();
    assert!(folder.join("data/postmaster.pid").exists());
    let dropped = std::time::Instant::now();
    drop(cluster);
    eprintln!("dropped after {:?}", dropped.elapsed());
    assert!(!folder.exists());
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    assert!(!status.contains("postgres"), "{status}");
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(client.query("SELECT 1", &[]).await.is_err());
}

#[tokio::test]
async fn clusters_beside_each_other_do_not_meet() {
    let (a, b) = tokio::join!(Cluster::start(Options::default()), Cluster::start(Options::default()));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_ne!(a.port(), b.port());
    a.create_database("only_in_a").await.unwrap();
    assert!(b.connect("only_in_a").await.is_err());
}

/// A key and a certificate that the key itself signed.
fn self_signed() -> Tls {
    let folder = tempfile::tempdir().unwrap();
    let (key, certificate) = (folder.path().join("key"), folder.path().join("certificate"));
    let mut command = Command::new("openssl");
    command.args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split(' '));
    command.args(["-subj", "/CN=localhost"]).arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    assert!(command.output().unwrap().status.success());
    let read = |path| std::fs::read_to_string(path).unwrap();
    Tls { certificate: read(certificate), key: read(key) }
}

#[tokio::test]
async fn with_a_certificate_the_server_speaks_tls() {
    for (tls, answer) in [(None, b'N'), (Some(self_signed()), b'S')] {
        let cluster = Cluster::start(Options { tls, ..Options::default() }).await.unwrap();
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", cluster.port())).unwrap();
        // SSLRequest: length 8, code 80877103; the answer is one byte.
        stream.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]).unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [answer]);
    }
}
