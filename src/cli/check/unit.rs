//! systemd: whether the unit is there, starts with the machine, runs, and is watched. Left out where systemd does not run.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::code::Code;
use super::report::Report;
use crate::cli::printable::one_line;
use crate::cli::program;

const UNIT: &str = "flagpost.service";
const ASK_WITHIN: Duration = Duration::from_secs(3);
/// Restarts since it was started by hand from which on something is wrong with it.
const RESTARTS: u64 = 3;
const PROPERTIES: &str =
    "--property=LoadState,UnitFileState,ActiveState,Result,NRestarts,WatchdogUSec,LoadCredential";

pub(super) async fn check(report: &mut Report) {
    let Some(said) = program::ask("systemctl", &["show", UNIT, PROPERTIES], ASK_WITHIN).await else {
        return report.ok(
            Code::Systemd,
            "systemd does not run here: whatever starts flagpost must start it again when it ends",
        );
    };
    report.ok(Code::Systemd, "systemd runs here");
    tell(&properties(&said), |path| path.exists(), report);
}

/// `NAME=VALUE`, a line each; a property with several values has several lines.
fn properties(said: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in said.lines().filter_map(|line| line.split_once('=')) {
        all.entry(name).or_default().push(value);
    }
    all
}

fn tell(properties: &BTreeMap<&str, Vec<&str>>, exists: impl Fn(&Path) -> bool, report: &mut Report) {
    let one =
        |name: &str| properties.get(name).and_then(|values| values.first()).copied().unwrap_or_default();
    if one("LoadState") != "loaded" {
        return report.warn(
            Code::Unit,
            format!("systemd knows no {UNIT}: is flagpost started in some other way?"),
            "install systemd/flagpost.service as /etc/systemd/system/flagpost.service, then: systemctl daemon-reload",
        );
    }
    report.ok(Code::Unit, format!("{UNIT} is installed"));
    match one("UnitFileState") {
        "enabled" | "enabled-runtime" | "static" | "indirect" | "generated" | "alias" => {
            report.ok(Code::UnitEnabled, "it starts with the machine");
        }
        state => report.warn(
            Code::UnitEnabled,
            format!("it does not start with the machine ({})", one_line(state)),
            format!("systemctl enable {UNIT}"),
        ),
    }
    tell_active(one("ActiveState"), one("Result"), one("NRestarts").parse().unwrap_or(0), report);
    match one("WatchdogUSec") {
        "" | "0" | "infinity" => report.warn(
            Code::UnitWatchdog,
            "systemd does not notice a daemon that hangs",
            format!(
                "take the unit that comes with this flagpost, or set WatchdogSec=: systemctl edit {UNIT}"
            ),
        ),
        time => report
            .ok(Code::UnitWatchdog, format!("a daemon that hangs for {} is started again", one_line(time))),
    }
    tell_credentials(properties.get("LoadCredential").map(Vec::as_slice).unwrap_or_default(), exists, report);
}

fn tell_active(state: &str, result: &str, restarts: u64, report: &mut Report) {
    let code = Code::UnitActive;
    let look = format!("journalctl -u {UNIT} -n 50");
    match state {
        "active" | "reloading" if restarts >= RESTARTS => report.warn(
            code,
            format!("it runs, and systemd has had to start it again {restarts} times"),
            look,
        ),
        "active" | "reloading" => report.ok(code, "it runs"),
        // As `ExecStartPre=` it is asked while the unit starts.
        "activating" => report.ok(code, "it is being started"),
        "failed" => report.warn(
            code,
            format!("it has failed ({})", one_line(result)),
            format!("{look}  -- says why; then: systemctl start {UNIT}"),
        ),
        state => report.warn(
            code,
            format!("it does not run ({})", one_line(state)),
            format!("systemctl start {UNIT}"),
        ),
    }
}

/// `NAME:FILE`, separated by spaces; a name alone is looked for in systemd's own places.
fn tell_credentials(values: &[&str], exists: impl Fn(&Path) -> bool, report: &mut Report) {
    let code = Code::UnitCredential;
    let files =
        values.iter().flat_map(|value| value.split_whitespace()).filter_map(|one| one.split_once(':'));
    let files: Vec<(&str, &str)> = files.filter(|(_, file)| file.starts_with('/')).collect();
    let mut is_well = true;
    for (name, file) in files.iter().filter(|(_, file)| !exists(Path::new(file))) {
        is_well = false;
        report.warn(
            code,
            format!("the unit's credential {name:?} is to be read from {file}, and that file is not there: the unit cannot start"),
            format!("install -m 0600 /dev/stdin '{file}'  -- then type the secret, and Ctrl-D; or remove LoadCredential={name}"),
        );
    }
    if is_well && !files.is_empty() {
        report.ok(code, format!("the files of {} credentials are there", files.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(said: &str, there: bool) -> Vec<String> {
        let mut report = Report::default();
        tell(&properties(said), |_| there, &mut report);
        let json = report.to_json();
        let all = json["checks"].as_array().into_iter().flatten();
        all.map(|check| format!("{} {}", check["code"], check["status"]).replace('"', "")).collect()
    }

    #[test]
    fn a_unit_is_told_by_its_properties() {
        let well = "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nResult=success\nNRestarts=0\n\
                    WatchdogUSec=1min\nLoadCredential=database-password:/etc/flagpost/database-password\n";
        assert_eq!(
            told(well, true),
            ["unit ok", "unit-enabled ok", "unit-active ok", "unit-watchdog ok", "unit-credential ok"]
        );
        assert_eq!(told(well, false).last().map(String::as_str), Some("unit-credential warn"));
        let ill = "LoadState=loaded\nUnitFileState=disabled\nActiveState=failed\nResult=exit-code\nWatchdogUSec=0\n";
        assert_eq!(
            told(ill, true),
            ["unit ok", "unit-enabled warn", "unit-active warn", "unit-watchdog warn"]
        );
        let restarted = well.replace("NRestarts=0", "NRestarts=7");
        assert!(told(&restarted, true).contains(&"unit-active warn".to_owned()));
        assert_eq!(told("LoadState=not-found\nActiveState=inactive\n", true), ["unit warn"]);
    }
}
