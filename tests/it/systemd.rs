//! What systemd makes of our unit, and what it is told.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use flagpost::demo::cluster::Cluster;
use flagpost::demo::receiver::Receiver;

use crate::cli::flagsmith;
use crate::support::cluster_options;
use crate::support::process::{Daemon, Installation};

const PATIENCE: Duration = Duration::from_secs(40);

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

/// systemd as the first process of namespaces of its own, with the unit as it is shipped and a real journal.
struct Systemd {
    unshare: std::process::Child,
    pid: u32,
}

impl Systemd {
    /// `folder` holds the configuration and the password.
    fn boot(folder: &Path) -> Systemd {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let log = std::fs::File::create(folder.join("systemd.log")).unwrap();
        let mut unshare = Command::new("unshare")
            .args(["--pid", "--mount", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child", "bash"])
            .arg(here.join("tests/it/support/pid1.sh"))
            .arg(env!("CARGO_BIN_EXE_flagpost"))
            .arg(here.join("systemd/flagpost.service"))
            .arg(folder)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("this test needs root: systemd runs as the first process of namespaces of its own");
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let deadline = Instant::now() + PATIENCE;
        let said = || std::fs::read_to_string(folder.join("systemd.log")).unwrap();
        loop {
            let child = std::fs::read_to_string(&children).unwrap_or_default();
            let pid = child.trim().parse().ok();
            // Once it is up it answers.
            if let Some(pid) =
                pid.filter(|pid| Path::new(&format!("/proc/{pid}/root/run/systemd/private")).exists())
            {
                return Systemd { unshare, pid };
            }
            assert!(unshare.try_wait().unwrap().is_none(), "it has ended (does it run as root?): {}", said());
            assert!(Instant::now() < deadline, "it does not start: {}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A file as its processes see it.
    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    /// Runs a command among its processes.
    fn run(&self, command: &[&str]) -> (bool, String) {
        let target = self.pid.to_string();
        let output = Command::new("nsenter")
            .args(["--target", &target, "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--"])
            .args(command)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    fn journal(&self, matches: &[&str]) -> String {
        self.run(&[&["journalctl", "--no-pager", "-o", "cat", "-u", "flagpost"], matches].concat()).1
    }

    fn property(&self, name: &str) -> String {
        self.run(&["systemctl", "show", "--value", "-p", name, "flagpost"]).1.trim().to_owned()
    }

    #[track_caller]
    fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(
                Instant::now() < deadline,
                "{what}: {}\n{}",
                self.run(&["systemctl", "status", "flagpost"]).1,
                self.journal(&[])
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // With the first process of the namespace all others end.
        self.unshare.kill().ok();
        self.unshare.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_real_systemd_it_is_started_heard_reloaded_watched_and_stopped() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let receiver = Receiver::start(0).unwrap();
    let client = flagsmith(&cluster, receiver.addr()).await;
    let url = cluster.url("postgres", "flagsmith");
    // Publication and slot; the ledger is made by the service, where it belongs.
    Installation::new(&url).run(&["setup"]).await.success();
    let folder = tempfile::tempdir().unwrap();
    let configuration = format!(
        "[database]\nurl = \"{url}\"\n[source]\nsettle = \"0\"\n[network]\nallow = [\"127.0.0.0/8\"]\n[ops]\nlisten = \"off\"\n"
    );
    std::fs::write(folder.path().join("flagpost.toml"), &configuration).unwrap();
    std::fs::write(folder.path().join("database-password"), "of-the-credential").unwrap();
    let systemd = Systemd::boot(folder.path());

    // Started: the command returns when READY=1 was said.
    let (is_started, said) = systemd.run(&["systemctl", "start", "flagpost"]);
    assert!(is_started, "{said}\n{}", systemd.journal(&[]));
    assert_eq!(systemd.property("ActiveState"), "active");
    assert!(systemd.property("StatusText").contains("endpoints"), "{}", systemd.property("StatusText"));
    assert!(
        systemd.path("/var/lib/private/flagpost/ledger.sqlite3").exists(),
        "a user of its own has the ledger"
    );

    systemd.until("how it is, in a line", || {
        let line = systemd.property("StatusText");
        line.contains("bytes behind") && line.contains("0 deliveries wait, all endpoints answer")
    });

    // Heard: what happened to one flag, by the journal's own fields.
    client
        .batch_execute("UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1")
        .await
        .unwrap();
    receiver.wait_for(|all| !all.is_empty(), PATIENCE).await.unwrap();
    systemd.until("the flag's story", || {
        let story = systemd.journal(&["FEATURE=dark_mode"]);
        story.contains("an event was recorded") && story.contains("delivered")
    });
    let other = systemd.journal(&["FEATURE=no_such_flag"]);
    assert!(!other.contains("delivered"), "{other}");

    // Reloaded.
    std::fs::write(
        systemd.path("/etc/flagpost/flagpost.toml"),
        format!("{configuration}[log]\nlevel = \"debug\"\n"),
    )
    .unwrap();
    let (is_reloaded, said) = systemd.run(&["systemctl", "reload", "flagpost"]);
    assert!(is_reloaded, "{said}");
    systemd
        .until("the reload", || systemd.journal(&["CHANGED=log.level"]).contains("this holds from now on"));
    assert_eq!(systemd.property("NRestarts"), "0");

    // Watched: a process that does not get on is ended and started again, and goes on where it was.
    let pid = systemd.property("MainPID");
    assert!(systemd.run(&["kill", "-STOP", &pid]).0);
    systemd.until("the watchdog", || systemd.property("NRestarts") == "1");
    systemd.until("the start after it", || systemd.property("SubState") == "running");
    let before = receiver.all().len();
    client
        .batch_execute("UPDATE features_featurestate SET enabled = NOT enabled WHERE id = 1")
        .await
        .unwrap();
    receiver.wait_for(|all| all.len() > before, PATIENCE).await.unwrap();
    // As long as it gets on it is left alone, for longer than the watchdog waits.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(systemd.property("NRestarts"), "1", "{}", systemd.journal(&[]));

    // Stopped.
    assert!(systemd.run(&["systemctl", "stop", "flagpost"]).0);
    assert_eq!(systemd.property("Result"), "success", "{}", systemd.journal(&[]));
    let everything = systemd.journal(&[]);
    assert!(everything.contains("stopped") && !everything.contains("of-the-credential"), "{everything}");
}
