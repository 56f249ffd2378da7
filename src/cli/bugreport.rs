//! `flagpost bugreport`: one file with what somebody needs who is to find a fault from far away. It holds no secret, no value of a
//! flag, no body of an event and no answer of an endpoint; of URLs there is scheme, host and port. Names of flags are in it where
//! the log names them. Everything passes the
//! [`Redactor`] last, whatever wrote it.
//!
//! A plain tar of text files, readable by its owner only. What cannot be read says why in its own file; the rest is there.

mod bundle;
mod database;
mod redactor;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use jiff::{Timestamp, fmt::strtime};
use serde_json::{Value, json};

use super::{check, endpoint, moment, program, status};
use crate::config::Config;
use crate::error::Result;
use crate::ledger::{Ledger, Reader};
use bundle::Bundle;
use redactor::Redactor;

/// The journal may be large, and is asked for its end only.
const JOURNAL_WITHIN: Duration = Duration::from_secs(20);
/// The end of a log file that is read.
const LOG_BYTES: u64 = 4 << 20;
const METRICS_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of metrics that are kept.
const METRICS_BYTES: usize = 1 << 20;
const ATTEMPTS: u32 = 200;

/// What was typed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Where to write it [default: ./flagpost-bugreport-TIME.tar]; a file that is there is not replaced
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Take the log from this file, not from the journal
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// So many lines of the log, the last ones
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    lines: usize,
}

pub(super) async fn bugreport(config: &Config, options: &Options) -> Result<u8> {
    let path = match &options.out {
        Some(path) => path.clone(),
        None => PathBuf::from(format!("flagpost-bugreport-{}.tar", now("%Y%m%dT%H%M%SZ"))),
    };
    let mut bundle = Bundle::create(&path, Redactor::of(config))?;
    for (name, text) in [
        ("version.txt", version()),
        ("configuration.txt", configuration(config)),
        ("check.json", pretty(&check::whole(config, false).await.to_json())),
        ("status.json", status::json(config).await.unwrap_or_else(|error| error.to_string())),
        ("database.json", pretty(&database::facts(config).await)),
        ("ledger.json", pretty(&ledger(config))),
        ("metrics.txt", metrics(config).await),
        ("log.txt", log(options).await),
    ] {
        bundle.add(name, &text)?;
    }
    let names = bundle.finish()?;
    say!("{}", path.display());
    say!("  {}", names.join(", "));
    say!(
        "It holds no passwords, secrets, bodies, answers or values of flags, and of URLs only scheme, host and port."
    );
    say!(
        "It names hosts, roles, endpoints, tables, and in the log flags: look into it before you give it away."
    );
    Ok(0)
}

fn now(pattern: &str) -> String {
    strtime::format(pattern, Timestamp::now()).unwrap_or_default()
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn version() -> String {
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let release = file("/etc/os-release");
    let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown");
    let memory = file("/proc/meminfo");
    let memory = memory.lines().next().unwrap_or_default();
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "flagpost {} ({build}, {}-{})\nsystem    {system}\nkernel    {}\nmachine   {processors} processors, {memory}\nmade at   {}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS,
        file("/proc/sys/kernel/osrelease").trim(),
        now("%Y-%m-%dT%H:%M:%SZ"),
    )
}

/// Every key that is set, and by what.
fn configuration(config: &Config) -> String {
    let written = &config.written;
    let mut text = match &written.file {
        Some(file) => format!("file {}\n", file.display()),
        None => "no file\n".to_owned(),
    };
    for key in &written.keys {
        let by = if key.by_environment { "environment" } else { "file" };
        // Writing to a String does not fail.
        writeln!(text, "{by:<11} {} = {}", key.name, key.shown).ok();
    }
    for variable in &config.unknown_variables {
        writeln!(text, "unknown     {variable}").ok();
    }
    text
}

/// Counts and attempts: nothing of what events say.
fn ledger(config: &Config) -> Value {
    if !Ledger::exists(&config.state_dir) {
        return json!({ "exists": false });
    }
    let read = || -> Result<Value> {
        let reader = Reader::open(&config.state_dir)?;
        let tried: Vec<Value> = reader
            .tried(ATTEMPTS)?
            .into_iter()
            .map(|tried| {
                json!({
                    "endpoint": tried.endpoint,
                    "at": moment::exact(tried.at),
                    "number": tried.number,
                    "http_status": tried.http_status,
                    "milliseconds": tried.milliseconds,
                    "failed": tried.has_failed,
                })
            })
            .collect();
        let endpoints: Vec<Value> = endpoint::all(config, &reader)?
            .into_iter()
            .map(|(key, endpoint)| {
                json!({
                    "endpoint": key.to_string(),
                    "url": redactor::place(&endpoint.url),
                    "enabled": endpoint.enabled,
                    "signed": !endpoint.secret.is_empty(),
                })
            })
            .collect();
        Ok(json!({ "statistics": reader.statistics()?, "endpoints": endpoints, "attempts": tried }))
    };
    read().unwrap_or_else(|error| json!({ "error": error.to_string() }))
}

/// What the daemon tells that runs.
async fn metrics(config: &Config) -> String {
    let Some(addr) = config.ops_listen else { return "ops.listen is off\n".into() };
    let ask = async {
        let client = reqwest::Client::builder().no_proxy().timeout(METRICS_WITHIN).build()?;
        let mut answer = client.get(format!("http://{addr}/metrics")).send().await?.error_for_status()?;
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            text.extend(chunk.iter().take(METRICS_BYTES.saturating_sub(text.len())));
        }
        Ok::<_, reqwest::Error>(String::from_utf8_lossy(&text).into_owned())
    };
    ask.await.unwrap_or_else(|error| format!("there are no metrics at {addr}: {}\n", error.without_url()))
}

/// The end of the log, without what a debugging level wrote: libraries may show there what they send.
async fn log(options: &Options) -> String {
    let text = match &options.log {
        Some(path) => bundle::tail(path, LOG_BYTES)
            .unwrap_or_else(|e| format!("{} cannot be read: {e}", path.display())),
        None => {
            let lines = options.lines.to_string();
            let arguments = [
                "-u",
                "flagpost.service",
                "-n",
                lines.as_str(),
                "-o",
                "short-iso-precise",
                "--no-pager",
                "--utc",
            ];
            let asked = program::ask("journalctl", &arguments, JOURNAL_WITHIN).await;
            asked.unwrap_or_else(|| "the journal cannot be read: give a file with --log FILE".into())
        }
    };
    let lines: Vec<&str> = text.lines().filter(|line| !is_fine_grained(line)).collect();
    let from = lines.len().saturating_sub(options.lines);
    lines.get(from..).unwrap_or_default().iter().map(|line| format!("{line}\n")).collect()
}

fn is_fine_grained(line: &str) -> bool {
    ["DEBUG", "TRACE"].iter().any(|level| line.contains(level))
}
