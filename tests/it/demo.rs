//! `flagpost demo` shows what it promises, and leaves nothing behind.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Parts of the made-up secrets and of the user's password hash in the demo's database.
const SECRETS: &[&str] = &["made-up", "pbkdf2", "never-leaves", "-secret"];

/// Where the demo puts everything. PostgreSQL's account must get in: a test that runs as root has another one.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// The demo, among settings that would mislead it if it took them for its own.
fn demo(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flagpost"));
    command
        .arg("demo")
        .env("TMPDIR", folder)
        .env("FLAGPOST_CONFIG", "/nonexistent/flagpost.toml")
        .env("FLAGPOST_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
        .env("FLAGPOST_STATE_DIR", "/nonexistent")
        .env("FLAGPOST_SOURCE_SETTLE", "nonsense")
        .env("STATE_DIRECTORY", "/nonexistent")
        .stdin(Stdio::null());
    command
}

fn assert_nothing_is_left(folder: &Path) {
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.is_empty(), "{files:?}");
    // Every process of the demo has the folder in its command line.
    let folder = folder.display().to_string();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        assert!(!line.contains(&folder), "{} runs: {line}", entry.path().display());
    }
}

#[test]
fn the_demo_shows_every_change_loses_nothing_and_leaves_nothing() {
    let folder = folder();
    let started = Instant::now();
    let output = demo(folder.path()).output().unwrap();
    let took = started.elapsed();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    eprintln!("{text}{errors}");
    assert_eq!(output.status.code(), Some(0));
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_nothing_is_left(folder.path());

    assert!(text.contains("lost 0: every change arrived"));
    for shown in [
        "enabled: false → true",
        "feature_state_value: \"hello\" → \"good day\"",
        "feature_state_value: 25 → 50",
        "created;scope=segment",
        "removed;scope=identity",
        "\"red\" 30 %, \"blue\" 20 % → \"red\" 10 %, \"blue\" 60 %",
        "FLAG_DELETED",
        "no webhook: nothing is different",
        "changed_by is empty",
        "settle window of 100 ms",
        "kill -9",
    ] {
        assert!(text.contains(shown), "{shown}");
    }
    assert!(!text.contains("SIGNATURE WRONG") && !text.contains('\x1b'));
    for line in text.lines() {
        assert!(line.chars().count() <= 110, "{line}");
    }
    for secret in SECRETS {
        assert!(!text.contains(secret) && !errors.contains(secret), "{secret}");
    }
}

#[test]
fn ctrl_c_takes_everything_away_again() {
    let folder = folder();
    let mut child = demo(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    // By now there are a cluster, a receiver and a daemon that has sent something.
    assert!(lines.any(|line| line.contains("FLAG_UPDATED")));
    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), Signal::INT).unwrap();
    lines.for_each(drop);
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("nothing is left behind"), "{errors}");
    assert_nothing_is_left(folder.path());
}

#[test]
fn a_reader_that_goes_away_ends_the_demo() {
    let folder = folder();
    let mut child = demo(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("the output cannot be written"), "{errors}");
    assert_nothing_is_left(folder.path());
}

#[test]
fn without_the_server_binaries_the_demo_says_what_to_do() {
    let folder = folder();
    let output = demo(folder.path()).env("FLAGPOST_PG_BINDIR", "/nonexistent").output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_ne!(output.status.code(), Some(0));
    assert!(errors.contains("lacks initdb or postgres"), "{errors}");
    assert_nothing_is_left(folder.path());
}
