//! Arrows go one way: a module imports only what is to its left in DESIGN.md's picture, and the shared vocabulary.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const VOCABULARY: [&str; 5] = ["change", "schema", "error", "fact", "pulse"];

/// They put the parts together and may import anything.
const WIRING: [&str; 12] = [
    "baseline",
    "capture",
    "cli",
    "daemon",
    "demo",
    "housekeeping",
    "prepare",
    "recover",
    "reload",
    "room",
    "shadow",
    "stage",
];

/// What each stage may import besides the vocabulary and itself, from left to right. `config` names the types that a key is
/// parsed into, so it stands to the right of the stages, and no stage reads it.
const ALLOWED: [(&str, &[&str]); 13] = [
    ("change", &[]),
    ("fact", &[]),
    ("schema", &[]),
    ("error", &[]),
    ("pulse", &[]),
    ("source", &[]),
    ("mirror", &[]),
    ("event", &["mirror"]),
    ("ledger", &["mirror", "event"]),
    ("delivery", &["event", "ledger"]),
    ("notify", &["event", "ledger", "delivery"]),
    ("config", &["source", "event", "ledger", "delivery", "notify"]),
    ("ops", &["source", "event", "ledger", "config"]),
];

fn files(path: &Path, all: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            files(&entry.unwrap().path(), all);
        }
    } else if path.extension().is_some_and(|e| e == "rs") {
        all.push(path.to_owned());
    }
}

/// The modules of this crate that a module's files name.
fn imports(module: &str) -> BTreeSet<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&source.join(module), &mut all);
    files(&source.join(format!("{module}.rs")), &mut all);
    let mut found = BTreeSet::new();
    for path in all.iter().filter(|path| path.exists()) {
        let text = std::fs::read_to_string(path).unwrap();
        for part in text.split("crate::").skip(1) {
            found
                .insert(part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>());
        }
    }
    found.remove(module);
    found
}

#[test]
fn a_stage_imports_only_stages_to_its_left() {
    for (module, allowed) in ALLOWED {
        let foreign: Vec<String> = imports(module)
            .into_iter()
            .filter(|name| !VOCABULARY.contains(&name.as_str()) && !allowed.contains(&name.as_str()))
            .collect();
        assert!(foreign.is_empty(), "src/{module} imports {foreign:?}");
    }
    assert!(imports("delivery").contains("ledger"), "the test sees no imports at all");
}

#[test]
fn what_is_pure_has_no_clock_and_does_no_io() {
    const IMPURE: [&str; 8] =
        ["tokio", "Instant", "SystemTime", "::now(", "std::fs", "std::net", "std::env", "rand::"];
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    for place in [
        "mirror",
        "event",
        "source/pgoutput.rs",
        "source/outbox/order.rs",
        "delivery/retry.rs",
        "delivery/breaker.rs",
        "delivery/pace.rs",
        "delivery/sign.rs",
        "notify/policy.rs",
        "notify/notice.rs",
    ] {
        files(&source.join(place), &mut all);
    }
    assert!(all.len() > 15, "only {} files were there to look into", all.len());
    for path in all.iter().filter(|path| !path.to_string_lossy().ends_with("_tests.rs")) {
        let text = std::fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let found: Vec<&&str> = IMPURE.iter().filter(|word| line.contains(**word)).collect();
            assert!(found.is_empty(), "{} has {found:?}: {line}", path.display());
        }
    }
}

#[test]
fn arrows_make_no_circle() {
    for (place, (module, allowed)) in ALLOWED.iter().enumerate() {
        for name in *allowed {
            assert!(
                ALLOWED.iter().take(place).any(|(left, _)| left == name),
                "{module} may import {name}, which is not to its left"
            );
        }
    }
}

#[test]
fn every_module_has_its_place() {
    let library = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let there: BTreeSet<&str> = library
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    let known: BTreeSet<&str> = ALLOWED.iter().map(|(module, _)| *module).chain(WIRING).collect();
    assert_eq!(there, known);
}
