//! `/readyz` and `/livez` tell what is true: of a database that goes, falls silent and comes back, and of a daemon that starts.

use std::time::Instant;

use flagpost::demo::cluster::StopMode;
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::site;
use crate::delivery::PATIENCE;
use crate::support::process::{Daemon, Installation};
use crate::support::{Source, on_both_sources};

const WELL: (u16, &str) = (200, "ready\n");

/// Waits until `/readyz` answers so; returns what it says.
async fn until(installation: &Installation, code: u16, says: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (got, text) = installation.ops("/readyz").await;
        if got == code && text.contains(says) {
            return text;
        }
        assert!(Instant::now() < deadline, "not {code} with {says:?} within {PATIENCE:?}: {got} {text}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The server's restart is nothing that a restart of ours would mend.
async fn require_live(installation: &Installation) {
    assert_eq!(installation.ops("/livez").await, (200, "alive\n".to_owned()));
}

on_both_sources!(it_is_ready_only_while_the_database_is_there);

async fn it_is_ready_only_while_the_database_is_there(source: Source) {
    let (mut cluster, _client, _receiver, installation) = site(source, source.options()).await;
    let installation = installation.with_ops();
    installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&installation).await;
    assert_eq!(installation.ops("/readyz").await, (WELL.0, WELL.1.to_owned()));
    for mode in [StopMode::Fast, StopMode::Immediate] {
        cluster.stop(mode).await.unwrap();
        let text = until(&installation, 503, "source: down").await;
        assert!(text.starts_with("not ready\n") && text.lines().count() == 2, "{text}");
        require_live(&installation).await;
        cluster.restart().await.unwrap();
        until(&installation, WELL.0, WELL.1).await;
    }
    daemon.terminate().await.success();
}

#[tokio::test]
async fn it_is_not_ready_while_the_server_is_silent() {
    // As long as the server waits for us we wait for it.
    let options = Source::Replication.options().set("wal_sender_timeout", "6s");
    let (_cluster, client, _receiver, installation) = site(Source::Replication, options).await;
    let installation = installation.with_ops();
    installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&installation).await;
    let sql = "SELECT active_pid FROM pg_replication_slots WHERE active";
    let walsender = client.query_one(sql, &[]).await.unwrap().get::<_, i32>(0);
    let walsender = Pid::from_raw(walsender).unwrap();
    kill_process(walsender, Signal::STOP).unwrap();
    let text = until(&installation, 503, "source: the database has said nothing for").await;
    kill_process(walsender, Signal::CONT).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    until(&installation, WELL.0, WELL.1).await;
    // And it stays so, though nothing happens.
    let quiet = Instant::now();
    while quiet.elapsed().as_secs() < 8 {
        until(&installation, WELL.0, WELL.1).await;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    daemon.terminate().await.success();
}

#[tokio::test]
async fn it_is_alive_and_not_ready_while_it_starts() {
    let (_cluster, mut client, _receiver, installation) =
        site(Source::Replication, Source::Replication.options()).await;
    let installation = installation.with_ops();
    installation.run(&["setup", "--no-mirror"]).await.success();
    // The mirror cannot be filled meanwhile.
    let lock = client.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE features_feature IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let daemon = Daemon::at_once(&installation, &["run"]);
    let deadline = Instant::now() + PATIENCE;
    while !daemon.stderr().contains("/readyz") {
        assert!(Instant::now() < deadline, "{}", daemon.stderr());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let text = until(&installation, 503, "daemon: it starts").await;
    assert_eq!(text.lines().count(), 2, "{text}");
    require_live(&installation).await;
    lock.rollback().await.unwrap();
    until(&installation, WELL.0, WELL.1).await;
    daemon.terminate().await.success();
}
