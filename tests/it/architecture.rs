//! Arrows go one way: a module imports only what is to its left in DESIGN.md's picture, and the shared vocabulary.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const VOCABULARY: [&str; 3] = ["change", "schema", "error"];

/// What each stage may import besides the vocabulary and itself. `config` names the types that a key is parsed into; `baseline`,
/// `capture`, `daemon`, `shadow`, `cli` and `demo` put the parts together and may import anything.
const ALLOWED: [(&str, &[&str]); 10] = [
    ("change", &[]),
    ("schema", &[]),
    ("error", &[]),
    ("source", &[]),
    ("mirror", &[]),
    ("event", &["mirror"]),
    ("ledger", &["mirror", "event"]),
    ("delivery", &["event", "ledger"]),
    ("config", &["source", "event", "delivery"]),
    ("ops", &["config"]),
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
