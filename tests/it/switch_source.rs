//! Changing the source of a running installation: nothing is lost, nothing comes twice, whatever interrupts it.

use std::time::Duration;

use flagpost::demo::cluster::Options;
use serde_json::Value as Json;

use crate::cli::{count, dump};
use crate::crash::Scene;
use crate::support::Source;
use crate::support::process::Daemon;

fn options() -> Options {
    // Room for a slot more, for a moment, and no more than that.
    Options::default().set("max_replication_slots", "2")
}

async fn switch(scene: &mut Scene, to: Source) {
    let said = scene.installation.run(&["switch-source", to.mode()]).await.success();
    assert!(said.contains("done:"), "{said}");
    scene.installation.set("FLAGPOST_SOURCE_MODE", to.mode());
}

#[tokio::test]
async fn there_and_back_while_flagsmith_writes() {
    let mut scene = Scene::on(Source::Replication, options(), "0").await;
    let clean = {
        // What the database is like without flagpost.
        scene.installation.run(&["uninstall", "--purge"]).await.success();
        let clean = dump(&scene.cluster);
        scene.installation.run(&["setup"]).await.success();
        clean
    };
    let (stop, writer) = scene.write(Duration::from_millis(3));
    for to in [Source::Outbox, Source::Replication, Source::Outbox] {
        let daemon = Daemon::start(&scene.installation).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        // Killed or told to stop: it makes no difference.
        if to == Source::Outbox {
            daemon.kill()
        } else {
            drop(daemon.terminate().await.success())
        }
        switch(&mut scene, to).await;
        let slots = count(&scene.client, "pg_replication_slots").await;
        let publications = count(&scene.client, "pg_publication").await;
        let schemas = count(&scene.client, "pg_namespace WHERE nspname = 'flagpost'").await;
        let expected = if to == Source::Outbox { (0, 0, 1) } else { (1, 1, 0) };
        assert_eq!((slots, publications, schemas), expected, "only the new source is there");
        // Again: there is nothing to do.
        let again = scene.installation.run(&["switch-source", to.mode()]).await.success();
        assert!(again.contains("already"), "{again}");
    }
    let daemon = Daemon::start(&scene.installation).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.send(()).unwrap();
    let commits = writer.await.unwrap();
    scene.assert_told(&commits).await;
    assert!(commits.len() > 100, "only {} commits", commits.len());
    daemon.terminate().await.success();
    scene.installation.run(&["uninstall"]).await.success();
    assert_eq!(dump(&scene.cluster), clean);
}

#[tokio::test]
async fn killed_at_any_moment_the_same_command_does_the_rest() {
    let mut scene = Scene::on(Source::Replication, options(), "0").await;
    let (stop, writer) = scene.write(Duration::from_millis(3));
    let mut killed = 0;
    for to in [Source::Outbox, Source::Replication, Source::Outbox, Source::Replication] {
        for n in 1..6_u64 {
            // What it takes differs from machine to machine: from its beginning to beyond its end.
            let command = Daemon::at_once(&scene.installation, &["switch-source", to.mode()]);
            tokio::time::sleep(Duration::from_millis(n * n * 17)).await;
            killed += u32::from(!command.stdout().contains("done:"));
            command.kill();
        }
        // A session of the killed one may still hold a slot for a moment.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let output = scene.installation.run(&["switch-source", to.mode()]).await;
            if output.code == 0 {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{output:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        scene.installation.set("FLAGPOST_SOURCE_MODE", to.mode());
        let daemon = Daemon::start(&scene.installation).await;
        daemon.terminate().await.success();
    }
    assert!(killed > 4, "it was always faster");
    let daemon = Daemon::start(&scene.installation).await;
    stop.send(()).unwrap();
    let commits = writer.await.unwrap();
    scene.assert_told(&commits).await;
    daemon.terminate().await.success();
}

#[tokio::test]
async fn it_is_refused_while_a_daemon_runs_and_the_wrong_mode_names_it() {
    let mut scene = Scene::on(Source::Replication, options(), "0").await;
    let daemon = Daemon::start(&scene.installation).await;
    let refused = scene.installation.run(&["switch-source", "outbox"]).await;
    assert!(refused.code == 4 && refused.stderr.contains("another flagpost works"), "{refused:?}");
    daemon.terminate().await.success();
    assert_eq!(count(&scene.client, "pg_namespace WHERE nspname = 'flagpost'").await, 0, "nothing was made");
    scene.installation.set("FLAGPOST_SOURCE_MODE", "outbox");
    let setup = scene.installation.run(&["setup"]).await;
    assert!(setup.code == 4 && setup.stderr.contains("flagpost switch-source outbox"), "{setup:?}");
    scene.installation.set("FLAGPOST_SOURCE_MODE", "replication");
    switch(&mut scene, Source::Outbox).await;
    scene.installation.set("FLAGPOST_SOURCE_MODE", "replication");
    let run = Daemon::try_start(&scene.installation).await.err().unwrap();
    assert!(run.code == 4 && run.stderr.contains("switch-source replication"), "{run:?}");
    let setup = scene.installation.run(&["setup"]).await;
    assert!(setup.code == 4 && setup.stderr.contains("flagpost switch-source replication"), "{setup:?}");
    let empty = Source::Outbox.installation(&scene.cluster.url("postgres", "flagsmith"));
    let refused = empty.run(&["switch-source", "outbox"]).await;
    assert!(refused.code == 4 && refused.stderr.contains("flagpost setup"), "{refused:?}");
    scene.installation.set("FLAGPOST_SOURCE_MODE", "outbox");
    let check: Json = scene.installation.run(&["check", "--json"]).await.json();
    assert!(!check.to_string().contains("\"fail\""), "{check:#}");
}
