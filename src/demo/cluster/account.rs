//! The account that the server runs under: PostgreSQL refuses to run as root.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, Result};

/// User and group of the server process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Account {
    pub(super) uid: u32,
    gid: u32,
    /// Whether it is another one than this process has.
    switch: bool,
}

impl Account {
    /// This process's own; for root, the user `postgres`, else `nobody`.
    pub(super) fn for_server() -> Result<Account> {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if !uid.is_root() {
            return Ok(Account { uid: uid.as_raw(), gid: gid.as_raw(), switch: false });
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let ids = ["postgres", "nobody"].iter().find_map(|name| ids_in(&passwd, name));
        let (uid, gid) = ids.ok_or_else(|| {
            Error::config(
                "postgres refuses to run as root and /etc/passwd has neither postgres nor nobody: run this as \
                 another user",
            )
        })?;
        Ok(Account { uid, gid, switch: true })
    }

    /// Lets `command` run under this account.
    pub(super) fn apply(self, command: &mut Command) {
        if self.switch {
            command.uid(self.uid).gid(self.gid);
        }
    }

    /// Gives a file or folder to this account.
    pub(super) fn own(self, path: &Path) -> std::io::Result<()> {
        if self.switch { chown(path, Some(self.uid), Some(self.gid)) } else { Ok(()) }
    }
}

/// User and group id of `name` in the text of `/etc/passwd` (`name:password:uid:gid:…`).
fn ids_in(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::ids_in;

    #[test]
    fn ids_come_from_the_line_of_that_very_name() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\npostgres2:x:7:8::/:/bin/sh\npostgres:x:101:104:,,,:/:/bin/sh\n";
        assert_eq!(ids_in(passwd, "postgres"), Some((101, 104)));
        assert_eq!(ids_in(passwd, "nobody"), None);
    }
}
