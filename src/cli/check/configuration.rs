//! The configuration as it was written: who can read it, what means nothing, and what it opens.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::TcpListener;

use super::code::Code;
use super::report::Report;
use crate::config::Config;
use crate::ledger::Ledger;

pub(super) async fn check(config: &Config, report: &mut Report) {
    check_file(config, report);
    check_secrets(config, report);
    check_variables(config, report);
    if let Some(addr) = config.ops_listen {
        check_listen(config, addr, report).await;
    }
}

/// The mode of a file that everybody on this machine may read.
fn open_mode(path: &Path) -> Option<u32> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o004 != 0).then_some(mode)
}

fn check_file(config: &Config, report: &mut Report) {
    let (code, written) = (Code::ConfigFile, &config.written);
    let Some(file) = &written.file else {
        return report.ok(code, "the environment alone; there is no configuration file");
    };
    match open_mode(file).filter(|_| !written.secrets_in_file.is_empty()) {
        None => report.ok(code, format!("{} is read", file.display())),
        Some(mode) => report.warn(
            code,
            format!(
                "{} holds a secret ({}), and everybody on this machine may read it (mode {mode:o})",
                file.display(),
                written.secrets_in_file.join(", ")
            ),
            format!(
                "chmod o-rwx '{}'  -- the daemon's account must be its owner or in its group; or put the secret into a file of its \
                 own (database.password_file), or a systemd credential",
                file.display()
            ),
        ),
    }
}

fn check_secrets(config: &Config, report: &mut Report) {
    let code = Code::ConfigSecrets;
    let files = &config.written.secret_files;
    let mut is_well = true;
    for (key, path) in files {
        let Some(mode) = open_mode(path) else { continue };
        is_well = false;
        report.warn(
            code,
            format!("{key}: everybody on this machine may read {} (mode {mode:o})", path.display()),
            format!(
                "chmod o-rwx '{}'  -- the daemon's account must be its owner or in its group",
                path.display()
            ),
        );
    }
    if is_well && !files.is_empty() {
        report.ok(code, "the files with secrets are not for everybody");
    }
}

fn check_variables(config: &Config, report: &mut Report) {
    let code = Code::ConfigVariables;
    match config.unknown_variables.as_slice() {
        [] => report.ok(code, "every variable FLAGPOST_… is known"),
        unknown => report.warn(
            code,
            format!("{} mean nothing to flagpost", unknown.join(", ")),
            "correct them (flagpost.example.toml names every key), or remove them",
        ),
    }
}

async fn check_listen(config: &Config, addr: SocketAddr, report: &mut Report) {
    let code = Code::OpsListen;
    // A daemon that runs has the address itself.
    if !Ledger::is_in_use(&config.state_dir)
        && let Err(error) = TcpListener::bind(addr).await
    {
        return report.warn(
            code,
            format!("{addr} cannot be listened at ({error}): there would be no metrics"),
            "choose another address for ops.listen (FLAGPOST_OPS_LISTEN), or \"off\"",
        );
    }
    if addr.ip().is_loopback() {
        return report.ok(code, format!("{addr}, for this machine only"));
    }
    report.warn(
        code,
        format!(
            "{addr} can be reached from other machines, and whoever reaches it can read metrics and status"
        ),
        "ops.listen = \"127.0.0.1:9464\", or a firewall that lets only your monitoring through",
    );
}
