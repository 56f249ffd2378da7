//! What systemd makes of our unit, and what it is told.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flagpost::demo::cluster::Cluster;

use crate::cli::flagsmith;
use crate::support::cluster_options;
use crate::support::process::{Daemon, Installation};

/// The unit with a binary that is there.
fn unit(folder: &Path) -> std::path::PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/flagpost.service");
    let text = std::fs::read_to_string(source).unwrap();
    let path = folder.join("flagpost.service");
    std::fs::write(&path, text.replace("/usr/bin/flagpost", env!("CARGO_BIN_EXE_flagpost"))).unwrap();
    path
}

fn analyze(arguments: &[&str], unit: &Path) -> (bool, String) {
    let output = Command::new("systemd-analyze").args(arguments).arg(unit).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn the_unit_is_valid_and_gives_the_daemon_next_to_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let unit = unit(folder.path());
    let (is_valid, said) = analyze(&["verify"], &unit);
    assert!(is_valid && said.trim().is_empty(), "{said}");
    let (is_tight, said) = analyze(&["security", "--offline=true", "--threshold=15", "--no-pager"], &unit);
    assert!(is_tight, "{said}");
}

#[tokio::test]
async fn the_service_manager_hears_when_it_is_ready_and_when_it_stops() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let hear = || {
        let mut bytes = [0; 1_000];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let installation = Installation::new(&cluster.url("postgres", "flagsmith"))
        .with("NOTIFY_SOCKET", path.to_str().unwrap());
    installation.run(&["setup"]).await.success();
    let daemon = Daemon::start(&installation).await;
    let ready = hear();
    assert!(
        ready.contains("READY=1\n") && ready.contains("STATUS=flagpost ") && ready.contains("endpoints"),
        "{ready}"
    );
    daemon.terminate().await.success();
    assert!(hear().contains("STOPPING=1\n"));
}
