//! Asking another program of this machine (`systemctl`, `timedatectl`, `journalctl`): what it prints, or nothing.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// What the program printed, if it is there, succeeded and ended in time.
pub(super) async fn ask(program: &str, arguments: &[&str], within: Duration) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(within, output).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
