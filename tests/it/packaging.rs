//! What a package is made of: man pages and completions that know every command and option, the list of what stays in the
//! database when the package is removed, and a container's health check. The package itself is tested by tools/test-deb.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use flagpost::demo::cluster::Cluster;
use flagpost::demo::receiver::{Answer, Receiver};

use crate::cli::flagsmith;
use crate::support::process::Installation;
use crate::support::{Source, cluster_options};

/// Without any configuration in the environment.
fn flagpost(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_flagpost")).args(arguments).env_clear().output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The commands in `flagpost --help`.
fn commands() -> Vec<String> {
    let help = flagpost(&["--help"]);
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let names =
        list.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// The long options in a command's help.
fn options(arguments: &[&str]) -> BTreeSet<String> {
    let help = flagpost(arguments);
    let lines = help.lines().filter(|line| line.trim_start().starts_with('-'));
    let option =
        |line: &str| line.split([' ', '=', ',']).find(|word| word.starts_with("--")).map(str::to_owned);
    lines.filter_map(option).collect()
}

/// A page as it is read: without the escapes of its markup.
fn page(folder: &Path, name: &str) -> String {
    let text = std::fs::read_to_string(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    ["\\fB", "\\fI", "\\fR"].iter().fold(text, |text, font| text.replace(font, "")).replace("\\-", "-")
}

#[test]
fn every_command_and_option_has_its_place_in_a_man_page() {
    let folder = tempfile::tempdir().unwrap();
    flagpost(&["manuals", folder.path().to_str().unwrap()]);
    let first = page(folder.path(), "flagpost.1");
    let commands = commands();
    assert!(commands.len() > 12, "{commands:?}");
    let mut count = 0;
    for command in &commands {
        assert!(first.contains(&format!("flagpost-{command}(1)")), "flagpost(1) names no {command}: {first}");
        let page = page(folder.path(), &format!("flagpost-{command}.1"));
        for option in options(&[command, "--help"]) {
            assert!(page.contains(&option), "flagpost-{command}(1) lacks {option}");
            count += 1;
        }
    }
    assert!(count > 40, "the test sees no options: {count}");
    for part in ["EXIT STATUS", "flagpost.toml(5)", "FLAGPOST_CONFIG"] {
        assert!(first.contains(part), "{part:?}: {first}");
    }
}

#[test]
fn every_key_has_its_place_in_the_configurations_man_page() {
    let folder = tempfile::tempdir().unwrap();
    flagpost(&["manuals", folder.path().to_str().unwrap()]);
    let page = page(folder.path(), "flagpost.toml.5");
    let example = include_str!("../../flagpost.example.toml");
    let mut section = "";
    let mut count = 0;
    let mut rest = page.as_str();
    for line in example.lines() {
        let part = match line.strip_prefix('#') {
            Some(key) if key.starts_with(char::is_alphabetic) => key.to_owned(),
            None if line.starts_with('[') => {
                section = line;
                format!(".SH {line}")
            }
            _ => continue,
        };
        // In the order of the file: so each key is in its section.
        let at = rest.find(&part).unwrap_or_else(|| panic!("{section} {part:?} in {rest}"));
        rest = &rest[at + part.len()..];
        count += 1;
    }
    assert!(count > 45, "the test sees no keys: {count}");
}

#[test]
fn a_shell_completes_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("flagpost");
    std::fs::write(&script, flagpost(&["completions", "bash"])).unwrap();
    let complete = r#"source "$1"; COMP_WORDS=(flagpost "$2"); COMP_CWORD=1; _flagpost flagpost "$2" flagpost; echo "${COMPREPLY[@]}""#;
    for command in commands() {
        let output = Command::new("bash")
            .args(["-c", complete, "bash", script.to_str().unwrap(), &command])
            .output()
            .unwrap();
        let replies = String::from_utf8(output.stdout).unwrap();
        assert!(
            replies.split_whitespace().any(|reply| reply == command),
            "{command}: {replies:?} {:?}",
            output.stderr
        );
    }
    for shell in ["zsh", "fish"] {
        assert!(flagpost(&["completions", shell]).contains("switch-source"), "{shell}");
    }
}

#[tokio::test]
async fn what_stays_in_the_database_is_listed_and_how_it_goes() {
    let cluster = Cluster::start(cluster_options()).await.unwrap();
    let client = flagsmith(&cluster, "127.0.0.1:1".parse().unwrap()).await;
    let url = cluster.url("postgres", "flagsmith");
    let (replication, outbox) = (Installation::new(&url), Source::Outbox.installation(&url));
    assert_eq!(
        replication.run(&["uninstall", "--list"]).await.success(),
        "",
        "nothing is there, nothing is said"
    );

    replication.run(&["setup"]).await.success();
    outbox.run(&["setup"]).await.success();
    let listed = replication.run(&["uninstall", "--list"]).await.success();
    for part in [
        "replication slot \"flagpost\": nobody reads it; the server keeps ",
        "SELECT pg_drop_replication_slot('flagpost');",
        "publication \"flagpost\"\n",
        "outbox (",
    ] {
        assert!(listed.contains(part), "{part:?}: {listed}");
    }
    // Each line of SQL does what it says.
    for statement in listed.lines().filter_map(|line| line.strip_prefix("    ")) {
        client.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e}"));
    }
    assert_eq!(replication.run(&["uninstall", "--list"]).await.success(), "", "it is all gone");
}

#[tokio::test]
async fn a_container_hears_whether_its_daemon_is_ready() {
    let daemon = Receiver::start(0).unwrap();
    let installation = Installation::new("postgresql://nobody@127.0.0.1:1/none")
        .with("FLAGPOST_OPS_LISTEN", &format!("0.0.0.0:{}", daemon.addr().port()));
    daemon.answer("/readyz", Answer::status(200));
    assert_eq!(installation.run(&["healthcheck"]).await.success(), "ready\n");
    daemon.answer("/readyz", Answer::status(503));
    let output = installation.run(&["healthcheck"]).await;
    assert!(output.code == 1 && output.stderr.contains("503"), "{output:?}");
    drop(daemon);
    let output = installation.run(&["healthcheck"]).await;
    assert!(output.code == 1 && output.stderr.contains("does not answer"), "{output:?}");
    let output = installation.with("FLAGPOST_OPS_LISTEN", "off").run(&["healthcheck"]).await;
    assert!(output.code == 2 && output.stderr.contains("ops.listen"), "{output:?}");
}
