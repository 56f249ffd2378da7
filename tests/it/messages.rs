//! Every line that can stand in the log is in `docs/messages.md`, with what to do about it, and no other is.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use flagpost::fact::ALL;

const HEAD: &str = "# Messages

Every line that flagpost can write to its log, by level and in the order of its parts. A test compares this page to the code.
The same names stand in all three formats: `level` and `message` are fields of JSON; in systemd's journal they are `PRIORITY` and
`MESSAGE`, and a field's name is in capitals, so that `journalctl -u flagpost FEATURE=dark_mode` shows a flag's story and
`journalctl -u flagpost EVENT_ID=…` an event's. Fields without a value are left out. Lines of level `debug` are written where `log.level`
is `debug`. What ends a command is an error and no line of the log: see [operations](operations.md).

";

fn page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str("| level | message | fields | what to do |\n| --- | --- | --- | --- |\n");
    for message in ALL {
        let fields: Vec<String> = message.fields.iter().map(|field| format!("`{field}`")).collect();
        writeln!(
            page,
            "| {} | {} | {} | {} |",
            message.level.name(),
            message.text.replace('|', "\\|"),
            fields.join(", "),
            message.mend
        )
        .unwrap();
    }
    page
}

#[test]
fn the_page_has_every_message_and_what_to_do_about_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/messages.md");
    if std::env::var_os("FLAGPOST_WRITE_DOCS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page(),
        "FLAGPOST_WRITE_DOCS=1 cargo test --test it messages writes docs/messages.md anew"
    );
}

#[test]
fn no_two_messages_are_alike_and_each_says_what_to_do() {
    for (number, message) in ALL.iter().enumerate() {
        assert!(message.mend.ends_with('.'), "{message:?}");
        assert!(ALL.iter().skip(number + 1).all(|other| other.text != message.text), "{message:?}");
    }
}

fn sources(path: &Path, all: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            sources(&entry.unwrap().path(), all);
        }
    } else {
        all.push(path.to_owned());
    }
}

/// Whoever writes a line without a fact would not be on the page.
#[test]
fn only_facts_write_lines() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    sources(&source, &mut all);
    let writers: Vec<PathBuf> = all
        .into_iter()
        .filter(|path| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            [
                "use tracing::",
                "tracing::info",
                "tracing::warn",
                "tracing::error",
                "tracing::debug",
                "tracing::trace",
            ]
            .iter()
            .any(|call| text.contains(call))
        })
        .map(|path| path.strip_prefix(&source).unwrap().to_owned())
        .filter(|path| !path.starts_with("fact"))
        .collect();
    assert!(writers.is_empty(), "{writers:?}");
}
