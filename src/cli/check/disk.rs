//! Where the ledger lies: whose it is, who may look into it, and whether the disk keeps what it is given.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::code::Code;
use super::fix::Fix;
use super::report::Report;
use crate::config::Config;
use crate::ledger::Ledger;

/// A disk that takes longer than this for a small write slows every event down.
const SLOW: Duration = Duration::from_millis(50);
/// So often it is tried; the fastest counts, for others use the disk too.
const TRIES: usize = 3;
/// Opens whatever belongs to others.
const ROOT: u32 = 0;
/// File systems by the number that statfs(2) tells, with what is wrong with them.
const UNFIT: [(u64, &str); 9] = [
    (0x6969, "on NFS: SQLite's locks do not hold there"),
    (0x517b, "on SMB: SQLite's locks do not hold there"),
    (0xff53_4d42, "on SMB: SQLite's locks do not hold there"),
    (0xfe53_4d42, "on SMB: SQLite's locks do not hold there"),
    (0x0102_1997, "on 9P: SQLite's locks do not hold there"),
    (0x00c3_6400, "on Ceph: other machines can reach the same files"),
    (0x0102_1994, "on tmpfs: it is gone when the machine starts again"),
    (0x8584_58f6, "on ramfs: it is gone when the machine starts again"),
    (0x794c_7630, "in a container's own layer: it is gone when the container is replaced"),
];

pub(super) fn check(config: &Config, report: &mut Report) {
    let directory = &config.state_dir;
    if !directory.is_dir() {
        return;
    }
    check_mode(directory, report);
    check_disk(directory, report);
    check_owner(directory, report);
    check_sync(directory, report);
}

fn check_mode(directory: &Path, report: &mut Report) {
    let code = Code::StateDirMode;
    let Ok(facts) = fs::metadata(directory) else { return };
    let mode = facts.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return report.ok(code, "only its owner can look into the state directory");
    }
    report.warn_fixable(
        code,
        format!("others may look into {} (mode {mode:o})", directory.display()),
        format!("chmod 700 '{}'", directory.display()),
        Fix::Mode(vec![directory.to_owned()], 0o700),
    );
}

fn check_disk(directory: &Path, report: &mut Report) {
    let Ok(facts) = rustix::fs::statfs(directory) else { return };
    // The field's type differs from one machine to the next; the numbers have 32 bits.
    let kind = u64::try_from(facts.f_type).unwrap_or(0) & 0xffff_ffff;
    tell_disk(directory, kind, report);
}

fn tell_disk(directory: &Path, kind: u64, report: &mut Report) {
    let code = Code::StateDirDisk;
    match UNFIT.iter().find(|(known, _)| *known == kind) {
        None => report.ok(code, "the state directory is on a local disk"),
        Some((_, why)) => report.warn(
            code,
            format!("{} is {why}", directory.display()),
            "give flagpost a directory on a local disk, or a volume: state.dir (FLAGPOST_STATE_DIR); move the files there while it \
             is stopped",
        ),
    }
}

/// Who ran `setup` as root has left files that the daemon cannot open.
fn check_owner(directory: &Path, report: &mut Report) {
    let Ok(expected) = fs::metadata(directory).map(|facts| (facts.uid(), facts.gid())) else { return };
    let owners: BTreeMap<PathBuf, u32> = Ledger::files(directory)
        .into_iter()
        .filter_map(|path| fs::metadata(&path).ok().map(|facts| (path, facts.uid())))
        .collect();
    if !owners.is_empty() {
        tell_owner(expected, &owners, rustix::process::geteuid().as_raw(), report);
    }
}

/// `expected` are the directory's account and group, `us` is the account that this is run by.
fn tell_owner(expected: (u32, u32), owners: &BTreeMap<PathBuf, u32>, us: u32, report: &mut Report) {
    let code = Code::LedgerOwner;
    let foreign: Vec<&PathBuf> =
        owners.iter().filter(|(_, uid)| **uid != expected.0).map(|(path, _)| path).collect();
    if !foreign.is_empty() {
        let names: Vec<String> = foreign.iter().map(|path| format!("'{}'", path.display())).collect();
        return report.warn(
            code,
            format!("{} belong to another account than the directory (uid {})", names.join(", "), expected.0),
            format!("chown {}:{} {}", expected.0, expected.1, names.join(" ")),
        );
    }
    if us != expected.0 && us != ROOT {
        return report.warn(
            code,
            format!("the ledger belongs to uid {}, and this is run by uid {}", expected.0, us),
            format!("sudo -u '#{}' flagpost check", expected.0),
        );
    }
    report.ok(code, format!("ledger and key belong to uid {}", expected.0));
}

fn check_sync(directory: &Path, report: &mut Report) {
    if let Some(fastest) = (0..TRIES).filter_map(|_| time_of_sync(directory).ok()).min() {
        tell_sync(fastest, report);
    }
}

fn tell_sync(fastest: Duration, report: &mut Report) {
    let code = Code::LedgerSync;
    let micros = fastest.as_micros();
    let message = format!("a small write is durable after {}.{} ms", micros / 1_000, micros / 100 % 10);
    if fastest > SLOW {
        report.warn(
            code,
            format!("{message}: every event waits for one"),
            "give flagpost a faster disk: state.dir (FLAGPOST_STATE_DIR)",
        );
    } else {
        report.ok(code, message);
    }
}

fn time_of_sync(directory: &Path) -> io::Result<Duration> {
    let path = directory.join(format!(".flagpost-sync-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    let begun = Instant::now();
    let written = file.write_all(&[0; 4_096]).and_then(|()| file.sync_all());
    let took = begun.elapsed();
    fs::remove_file(&path)?;
    written.map(|()| took)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(check: impl FnOnce(&mut Report)) -> (String, String) {
        let mut report = Report::default();
        check(&mut report);
        let found = &report.to_json()["checks"][0];
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        (format!("{} {}", text("code"), text("status")), format!("{}: {}", text("message"), text("mend")))
    }

    #[test]
    fn a_disk_whose_locks_or_files_do_not_last_is_told_by_its_kind() {
        let of = |kind| told(|report| tell_disk(Path::new("/state"), kind, report));
        for (kind, why) in UNFIT {
            let (what, text) = of(kind);
            assert_eq!(what, "state-dir-disk warn");
            assert!(
                text.contains(&format!("/state is {why}")) && text.contains("state.dir (FLAGPOST_STATE_DIR)"),
                "{text}"
            );
        }
        let ext4 = 0xef53;
        assert_eq!(of(ext4).0, "state-dir-disk ok");
    }

    #[test]
    fn files_of_another_account_are_told_with_whom_to_give_them_to() {
        let owners = |key: u32| {
            BTreeMap::from([(PathBuf::from("/s/ledger.key"), key), (PathBuf::from("/s/ledger.sqlite3"), 7)])
        };
        let of = |key, us| told(|report| tell_owner((7, 8), &owners(key), us, report));
        assert_eq!(of(7, 7).0, "ledger-owner ok");
        assert_eq!(of(7, ROOT).0, "ledger-owner ok", "root may look");
        // Who ran setup as root.
        let (what, text) = of(ROOT, 7);
        assert!(
            what == "ledger-owner warn" && text.ends_with(": chown 7:8 '/s/ledger.key'"),
            "{what} {text}"
        );
        let (what, text) = of(7, 9);
        assert!(
            what == "ledger-owner warn" && text.ends_with(": sudo -u '#7' flagpost check"),
            "{what} {text}"
        );
    }

    #[test]
    fn a_disk_that_is_slow_to_keep_a_write_is_told() {
        let (what, text) = told(|report| tell_sync(SLOW, report));
        assert!(
            what == "ledger-sync ok" && text.starts_with("a small write is durable after 50.0 ms"),
            "{text}"
        );
        let (what, text) = told(|report| tell_sync(SLOW + Duration::from_micros(1_250), report));
        assert!(what == "ledger-sync warn" && text.contains("51.2 ms: every event waits"), "{text}");
        assert!(text.ends_with("give flagpost a faster disk: state.dir (FLAGPOST_STATE_DIR)"), "{text}");
    }
}
