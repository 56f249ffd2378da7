//! What a reload changes: which keys have other values, and which of them hold without a restart.
//!
//! Values are compared by their digests, so that no secret is kept a second time; a key that names a file is another one when
//! the file's content is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use sha2::{Digest as _, Sha256};

use super::Config;

/// SHA-256 of each value that was written, by key. `Debug` shows none: what is short can be guessed by its digest.
#[derive(Clone, Default)]
pub struct Digests(BTreeMap<String, [u8; 32]>);

impl fmt::Debug for Digests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Keys that a restart only changes, by how they begin; all others hold at once.
const RESTART: [&str; 6] = ["database.", "source.", "state.dir", "ops.", "log.format", "traces."];
/// Keys that name files.
const FILES: [&str; 3] = ["_file", "client_certificate", "client_key"];

/// Keys whose values are others than before, in alphabetical order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those that hold at once.
    pub live: Vec<String>,
    /// Those that need a restart.
    pub restart: Vec<String>,
}

impl Config {
    /// What `new` changes.
    pub fn changes(&self, new: &Config) -> Changes {
        let (old, written) = (&self.digests.0, &new.digests.0);
        let keys: BTreeSet<&String> = old.keys().chain(written.keys()).collect();
        let changed = keys.into_iter().filter(|key| old.get(*key) != written.get(*key));
        let (restart, live) = changed.cloned().partition(|key| needs_restart(key));
        Changes { live, restart }
    }

    /// This configuration with what holds at once of `new`.
    #[must_use]
    pub fn reloaded(&self, new: &Config) -> Config {
        let kept = self.digests.0.iter().filter(|(key, _)| needs_restart(key));
        let taken = new.digests.0.iter().filter(|(key, _)| !needs_restart(key));
        let digests = kept.chain(taken).map(|(key, digest)| (key.clone(), *digest)).collect();
        // Named one by one, so that a new key is not forgotten here.
        Config {
            database: self.database.clone(),
            mode: self.mode,
            outbox: self.outbox.clone(),
            poll: self.poll,
            names: self.names.clone(),
            settle: self.settle,
            state_dir: self.state_dir.clone(),
            ops_listen: self.ops_listen,
            status_page: self.status_page.clone(),
            heartbeat: self.heartbeat,
            retained: self.retained,
            log_format: self.log_format,
            traces: self.traces.clone(),
            digests: Digests(digests),
            ..new.clone()
        }
    }
}

fn needs_restart(key: &str) -> bool {
    RESTART.iter().any(|start| key.starts_with(start))
}

/// The digests of what was written.
pub(super) fn digests(table: &toml::Table) -> Digests {
    let mut digests = BTreeMap::new();
    for (section, keys) in table {
        for (key, value) in keys.as_table().into_iter().flatten() {
            match value.as_array().filter(|_| key == "endpoint") {
                Some(entries) => {
                    for (number, entry) in entries.iter().enumerate() {
                        digests
                            .insert(format!("{section}.{key} {}", shown(entry, number)), digest(key, entry));
                    }
                }
                None => {
                    digests.insert(format!("{section}.{key}"), digest(key, value));
                }
            }
        }
    }
    Digests(digests)
}

/// An entry by its name, or by its number: its URL may hold a secret.
fn shown(entry: &toml::Value, number: usize) -> String {
    let name = entry.get("name").and_then(toml::Value::as_str);
    name.map_or_else(|| format!("#{}", number + 1), |name| format!("{name:?}"))
}

fn digest(key: &str, value: &toml::Value) -> [u8; 32] {
    let mut hash = Sha256::new();
    add(key, value, &mut hash);
    hash.finalize().into()
}

fn add(key: &str, value: &toml::Value, hash: &mut Sha256) {
    if let Some(table) = value.as_table() {
        for (key, value) in table {
            hash.update(key);
            add(key, value, hash);
        }
        return;
    }
    hash.update(value.to_string());
    let path = value.as_str().filter(|_| FILES.iter().any(|end| key.ends_with(end)));
    // What cannot be read is told by whoever needs it.
    if let Some(content) = path.and_then(|path| std::fs::read(path).ok()) {
        hash.update(content);
    }
}
