//! The documents: every command in them is one that there is, with options that it has, and every link leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A document with its path from the project's root.
struct Document {
    path: PathBuf,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<Document> {
    let listed = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let all = listed.chain([root().join("README.md")]);
    all.filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .map(|path| Document { text: std::fs::read_to_string(&path).unwrap(), path })
        .collect()
}

/// What stands as code: whole lines of blocks, and what is between backticks in a line.
fn code(document: &str) -> Vec<&str> {
    let mut all = Vec::new();
    let mut is_fenced = false;
    for line in document.lines() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        } else if is_fenced || line.starts_with("    ") {
            all.push(line);
        } else {
            all.extend(line.split('`').skip(1).step_by(2));
        }
    }
    all
}

/// The subcommand of a line that calls flagpost, and the long options that it is given.
fn call(line: &str) -> Option<(&str, Vec<&str>)> {
    let mut words = line
        .split_whitespace()
        .skip_while(|word| *word == "$" || word.starts_with("FLAGPOST_"))
        .take_while(|word| !["|", ">", "#", "&&", "--", "||"].contains(word));
    words.next().filter(|program| *program == "flagpost")?;
    let mut words = words.peekable();
    if words.next_if_eq(&"--config").is_some() {
        words.next();
    }
    let subcommand = words.next()?;
    let is_one = subcommand.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let options = words.filter(|word| word.starts_with("--")).map(|word| word.split('=').next().unwrap());
    (is_one && !subcommand.starts_with('-')).then(|| (subcommand, options.collect()))
}

/// What `flagpost SUBCOMMAND --help` says; `None` where there is no such subcommand.
fn help(subcommand: &str) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_flagpost")).args([subcommand, "--help"]).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The anchors of a document's headings, as GitHub makes them.
pub(crate) fn anchors(document: &str) -> BTreeSet<String> {
    let headings = document.lines().filter_map(|line| line.strip_prefix('#'));
    headings
        .map(|heading| {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
        })
        .collect()
}

/// The targets of a document's links, but for those into the web.
fn links(document: &str) -> Vec<&str> {
    let targets = document.split("](").skip(1).filter_map(|after| after.split(')').next());
    targets.filter(|target| !target.contains("://") && !target.contains(char::is_whitespace)).collect()
}

#[test]
fn every_command_is_one_that_there_is_with_options_that_it_has() {
    let mut helps: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for document in documents() {
        for line in code(&document.text) {
            let Some((subcommand, options)) = call(line) else { continue };
            let help = helps.entry(subcommand.to_owned()).or_insert_with(|| help(subcommand));
            let is_right =
                help.as_ref().is_some_and(|help| options.iter().all(|option| help.contains(option)));
            if !is_right {
                wrong.push(format!("{}: {}", document.path.display(), line.trim()));
            }
        }
    }
    assert!(helps.len() > 10, "{:?}", helps.keys());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_command_that_is_none_would_be_found() {
    assert_eq!(call("$ flagpost replay --failed --since 2h"), Some(("replay", vec!["--failed", "--since"])));
    assert_eq!(
        call("FLAGPOST_A='x' flagpost --config f setup --mode=outbox > x"),
        Some(("setup", vec!["--mode"]))
    );
    assert_eq!(call("flagpost 0.1.0 ready: reading"), None);
    assert_eq!(call("systemctl reload flagpost"), None);
    assert_eq!(help("rewind"), None);
}

#[test]
fn every_link_leads_to_a_file_and_a_heading_that_are_there() {
    let mut broken = Vec::new();
    for document in documents() {
        let folder = document.path.parent().unwrap();
        for link in links(&document.text) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = if file.is_empty() { document.path.clone() } else { folder.join(file) };
            let is_there = path.exists()
                && (anchor.is_empty() || anchors(&std::fs::read_to_string(&path).unwrap()).contains(anchor));
            if !is_there {
                broken.push(format!("{}: {link}", document.path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
