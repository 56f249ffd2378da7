//! What systemd makes of our unit, and what it is told.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flagpost::demo::cluster::Cluster;

use crate::cli::flagsmith;
use crate::support::cluster_options;
use crate::support::process::{Daemon, Installation};

const UNIT: &str = "flagpost.service";
const TEMPLATE: &str = "flagpost@.service";

fn text(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)).unwrap()
}

/// What a unit says, without comments.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// The unit with a binary that is there.
fn unit(folder: &Path, name: &str) -> std::path::PathBuf {
    let text = text(name);
    // A template is looked at as an instance.
    let path = folder.join(name.replace('@', "@eu-1"));
    std::fs::write(&path, text.replace("/usr/bin/flagpost", env!("CARGO_BIN_EXE_flagpost"))).unwrap();
    path
}

fn analyze(arguments: &[&str], unit: &Path) -> (bool, String) {
    let output = Command::new("systemd-analyze").args(arguments).arg(unit).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn the_units_are_valid_and_give_the_daemon_next_to_nothing() {
    for name in [UNIT, TEMPLATE] {
        let folder = tempfile::tempdir().unwrap();
        let unit = unit(folder.path(), name);
        let (is_valid, said) = analyze(&["verify"], &unit);
        assert!(is_valid && said.trim().is_empty(), "{said}");
        let (is_tight, said) =
            analyze(&["security", "--offline=true", "--threshold=15", "--no-pager"], &unit);
        assert!(is_tight, "{said}");
    }
}

#[test]
fn an_instance_is_the_unit_with_names_of_its_own() {
    let (unit, template) = (text(UNIT), text(TEMPLATE));
    // What the unit says, and what the template says in its place.
    let own = [
        (
            "Description=flagpost: durable webhooks for Flagsmith",
            "Description=flagpost: durable webhooks for Flagsmith (%i)",
        ),
        ("StateDirectory=flagpost", "StateDirectory=flagpost-%i"),
        (
            "LoadCredential=database-password:/etc/flagpost/database-password",
            "LoadCredential=database-password:/etc/flagpost/%i.password",
        ),
    ];
    // What the template says besides.
    let besides = ["Environment=FLAGPOST_CONFIG=/etc/flagpost/%i.toml", "User=flagpost-%i"];
    let expected: Vec<&str> = lines(&unit)
        .into_iter()
        .map(|line| {
            own.iter().find(|(of_unit, _)| *of_unit == line).map_or(line, |(_, of_template)| of_template)
        })
        .collect();
    let mut found = lines(&template);
    for line in besides {
        assert!(found.contains(&line), "systemd/{TEMPLATE} lacks {line:?}");
    }
    found.retain(|line| !besides.contains(line));
    let missing: Vec<&&str> = expected.iter().filter(|line| !found.contains(line)).collect();
    let surplus: Vec<&&str> = found.iter().filter(|line| !expected.contains(line)).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "systemd/{TEMPLATE} is not systemd/{UNIT}: it lacks {missing:#?} and has {surplus:#?}"
    );
    assert_eq!(found, expected, "the same lines in another order");
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
