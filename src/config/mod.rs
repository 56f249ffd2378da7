//! Configuration: what was written (`raw`) and what it means ([`Config`]), parsed into types that cannot be wrong.
//!
//! Every key of the TOML file can be given as `FLAGPOST_SECTION_KEY`, which wins over the file. Secrets come from the URL,
//! from `database.password_file`, or from systemd's credential `database-password`; they never show in `Debug` or errors.

mod changes;
mod endpoints;
mod notices;
mod page;
mod raw;
mod written;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};

use crate::delivery::{
    BreakerPolicy, DatabasePlace, EndpointOptions, Guard, Schedule, Settings, Targets, Timeouts, Trust,
};
use crate::error::{Error, Result};
use crate::event::{EndpointKey, Formats, Routing, Settle, Subscription};
use crate::ledger::Retention;
use crate::notify::Settings as NotifySettings;
use crate::source::{ConnInfo, Host, Limit, Names, Outbox};
pub use written::{Key, Written};

pub use changes::{Changes, Digests};

pub use page::StatusPage;

/// Where the file is looked for when `--config` names none.
pub const DEFAULT_FILE: &str = "/etc/flagpost/flagpost.toml";
/// systemd's name of the database password (`LoadCredential=database-password:…`).
const PASSWORD_CREDENTIAL: &str = "database-password";

/// Where changes are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Logical replication.
    Replication,
    /// Triggers that write to an outbox.
    Outbox,
}

impl Mode {
    /// The value of `source.mode`.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Replication => "replication",
            Mode::Outbox => "outbox",
        }
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// The journal's where standard error is systemd's journal, else for people.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// Entries of systemd's journal, with fields.
    Journald,
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The Flagsmith database.
    pub database: ConnInfo,
    /// Where changes are read from.
    pub mode: Mode,
    /// The outbox, where changes are read from it.
    pub outbox: Outbox,
    /// Between two looks at the outbox when nothing is notified.
    pub poll: Duration,
    /// Between two heartbeats in the server's log; `None` for none.
    pub heartbeat: Option<Duration>,
    /// What the server may keep of its log for the replication slot.
    pub retained: Limit,
    /// The replication slot, the publication, and the schema of Flagsmith's tables.
    pub names: Names,
    /// How changes are grouped into events.
    pub settle: Settle,
    /// Directory of the ledger.
    pub state_dir: PathBuf,
    /// What of the ledger is kept, and how long.
    pub retention: Retention,
    /// Which body an endpoint gets.
    pub formats: Formats,
    /// What the configuration's own endpoints get.
    pub subscriptions: Vec<Subscription>,
    /// The configuration's own endpoints, and how single ones are called.
    pub targets: Arc<Targets>,
    /// Whether a change of a feature's own metadata is an event.
    pub metadata_events: bool,
    /// Networks that the guard lets through.
    pub allow: Vec<IpNet>,
    /// Whether plain HTTP is refused.
    pub https_only: bool,
    /// Issuers of certificates that are trusted beside the system's.
    pub trust: Trust,
    /// Limits of one call.
    pub timeouts: Timeouts,
    /// When failed deliveries are tried again.
    pub schedule: Schedule,
    /// Calls in flight to one endpoint.
    pub max_in_flight: usize,
    /// When an endpoint's breaker opens, and how it probes.
    pub breaker: BreakerPolicy,
    /// How long a secret that was replaced signs as well.
    pub secret_rotation: Duration,
    /// Who is told of an endpoint's troubles.
    pub notify: NotifySettings,
    /// Address of metrics and status; `None` for `off`.
    pub ops_listen: Option<SocketAddr>,
    /// Base URL of the collector that traces go to.
    pub traces: Option<String>,
    /// The status page there.
    pub status_page: StatusPage,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// What is logged: a `tracing` filter (`info`, `flagpost=debug`).
    pub log_level: String,
    /// Environment variables that begin with `FLAGPOST_` and mean nothing: probably misspelt.
    pub unknown_variables: Vec<String>,
    /// Which values were written, to tell what a reload changes.
    pub digests: Digests,
    /// Which keys are set where.
    pub written: Written,
}

impl Config {
    /// Reads the file (the default one if it exists, where none is named) and the environment.
    pub fn load(file: Option<&Path>, environment: &BTreeMap<String, String>) -> Result<Config> {
        let default = Path::new(DEFAULT_FILE);
        let file = file.or_else(|| Some(default).filter(|path| path.exists()));
        let text = file.map_or_else(|| Ok(String::new()), read)?;
        let written = raw::parse(&text, file.unwrap_or(default), environment)?;
        let config = check(written, environment)?;
        Ok(Config { written: Written::of(file, &text, environment), ..config })
    }

    /// What webhooks may reach.
    pub fn guard(&self) -> Guard {
        let host = match &self.database.host {
            // An IPv6 address stands in brackets in a URL.
            Host::Tcp(host) => Some(host.trim_matches(['[', ']']).to_owned()),
            Host::Unix(_) => None,
        };
        Guard::new(self.allow.clone())
            .with_https_only(self.https_only)
            .with_database(DatabasePlace { host, port: self.database.port })
    }

    /// What the HTTP client is made of.
    pub fn client_settings(&self) -> Settings {
        Settings {
            trust: self.trust.clone(),
            targets: Arc::clone(&self.targets),
            ..Settings::new(self.guard(), self.timeouts)
        }
    }

    /// Who gets what.
    pub fn routing(&self) -> Routing {
        Routing { formats: self.formats.clone(), subscriptions: self.subscriptions.clone() }
    }

    /// How the endpoint with this key and URL is called, where it is not called like all others.
    pub fn endpoint_options(&self, key: EndpointKey, url: &str) -> Option<&EndpointOptions> {
        self.targets.options(key, url)
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|e| Error::config(format!("the configuration {} cannot be read: {e}", path.display())))
}

fn check(written: raw::Written, environment: &BTreeMap<String, String>) -> Result<Config> {
    let raw::Written { raw, unknown_variables, digests } = written;
    let url = raw.database.url.as_ref().ok_or_else(|| {
        Error::config(
            "database.url is missing: set it in the configuration or as FLAGPOST_DATABASE_URL (postgresql://user@host/flagsmith)",
        )
    })?;
    let password = password(raw.database.password_file.as_deref(), environment)?;
    let defaults = (Timeouts::default(), Schedule::default());
    let max_in_flight = raw.delivery.max_in_flight.unwrap_or(16);
    if max_in_flight == 0 {
        return Err(Error::config("delivery.max_in_flight is 0: nothing would be sent; use 1 or more"));
    }
    let https_only = raw.network.https_only.unwrap_or(false);
    let ops_listen = listen(raw.ops.listen.as_deref())?;
    let metadata_events = raw.webhooks.feature_metadata_events.unwrap_or(false);
    let endpoints = endpoints::parse(raw.webhooks, https_only, environment)?;
    let mut config = Config {
        database: ConnInfo::parse(url.expose_secret(), password)?,
        mode: mode(raw.source.mode.as_deref())?,
        outbox: Outbox {
            cap: bytes("source.outbox_max_size", raw.source.outbox_max_size, Outbox::default().cap)?,
            ..Outbox::default()
        },
        poll: duration("source.outbox_poll", raw.source.outbox_poll, Duration::from_secs(1))?,
        heartbeat: heartbeat(raw.source.heartbeat)?,
        retained: Limit {
            bytes: bytes("source.max_retained_wal", raw.source.max_retained_wal, Limit::default().bytes)?,
            gives_up: gives_up(raw.source.max_retained_wal_action.as_deref())?,
        },
        names: Names {
            slot: name("source.slot", raw.source.slot)?,
            publication: name("source.publication", raw.source.publication)?,
            schema: raw.source.schema.unwrap_or_else(|| "public".into()),
        },
        settle: Settle {
            quiet: duration("source.settle", raw.source.settle, Duration::from_millis(100))?,
            max: duration("source.settle_max", raw.source.settle_max, Duration::from_secs(1))?,
        },
        state_dir: state_dir(raw.state.dir, environment),
        formats: endpoints.formats,
        subscriptions: endpoints.subscriptions,
        targets: Arc::new(endpoints.targets),
        metadata_events,
        retention: Retention {
            age: duration("state.retention", raw.state.retention, Retention::default().age)?,
            max_bytes: bytes("state.max_size", raw.state.max_size, Retention::default().max_bytes)?,
        },
        allow: networks(&raw.network.allow)?,
        https_only,
        trust: trust(raw.network.ca_file.as_deref())?,
        timeouts: Timeouts {
            connect: duration("delivery.connect_timeout", raw.delivery.connect_timeout, defaults.0.connect)?,
            whole: duration("delivery.timeout", raw.delivery.timeout, defaults.0.whole)?,
        },
        schedule: Schedule {
            waits: waits(&raw.delivery.retry, defaults.1.waits)?,
            max_age: duration("delivery.max_age", raw.delivery.max_age, defaults.1.max_age)?,
        },
        max_in_flight,
        breaker: breaker(
            raw.delivery.breaker_failures,
            raw.delivery.breaker_after,
            raw.delivery.breaker_probe,
        )?,
        secret_rotation: duration(
            "delivery.secret_rotation",
            raw.delivery.secret_rotation,
            Duration::from_secs(24 * 3600),
        )?,
        notify: notices::check(raw.notify)?,
        ops_listen,
        status_page: page::check(raw.ops, ops_listen, environment)?,
        log_format: log_format(raw.log.format.as_deref())?,
        traces: traces(raw.traces.endpoint)?,
        log_level: raw.log.level.unwrap_or_else(|| "info".into()),
        unknown_variables,
        digests,
        written: Written::default(),
    };
    if config.settle.max < config.settle.quiet {
        config.settle.max = config.settle.quiet;
    }
    Ok(config)
}

fn password(file: Option<&str>, environment: &BTreeMap<String, String>) -> Result<Option<SecretString>> {
    let credential = environment
        .get("CREDENTIALS_DIRECTORY")
        .map(|dir| Path::new(dir).join(PASSWORD_CREDENTIAL))
        .filter(|path| path.exists());
    let Some(path) = file.map(PathBuf::from).or(credential) else { return Ok(None) };
    read_secret("the database password in", &path).map(Some)
}

/// What a file holds, without the line's end. `what` begins the error.
fn read_secret(what: &str, path: &Path) -> Result<SecretString> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::config(format!("{what} {} cannot be read: {e}", path.display())))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned().into())
}

fn trust(file: Option<&str>) -> Result<Trust> {
    let Some(path) = file else { return Ok(Trust::default()) };
    let bad = |what: String| {
        Error::config(format!(
            "network.ca_file {path} cannot be used: {what}: give a readable PEM file with the issuers' certificates"
        ))
    };
    let pem = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    Trust::from_pem(&pem).map_err(bad)
}

fn mode(text: Option<&str>) -> Result<Mode> {
    match text {
        None | Some("replication") => Ok(Mode::Replication),
        Some("outbox") => Ok(Mode::Outbox),
        Some(other) => {
            Err(Error::config(format!("source.mode is {other:?}: use \"replication\" or \"outbox\"")))
        }
    }
}

fn gives_up(action: Option<&str>) -> Result<bool> {
    match action {
        None | Some("warn") => Ok(false),
        Some("drop-slot") => Ok(true),
        Some(other) => Err(Error::config(format!(
            "source.max_retained_wal_action is {other:?}: use \"warn\" or \"drop-slot\""
        ))),
    }
}

/// Slot names are lower-case letters, digits and underscores (PostgreSQL manual, "Replication Slots"); the publication
/// keeps to the same, so that neither ever needs quoting in somebody's script.
fn name(key: &str, text: Option<String>) -> Result<String> {
    let name = text.unwrap_or_else(|| "flagpost".into());
    let is_good = (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if is_good {
        Ok(name)
    } else {
        Err(Error::config(format!(
            "{key} is {name:?}: use 1 to 63 lower-case letters, digits and underscores"
        )))
    }
}

fn state_dir(configured: Option<String>, environment: &BTreeMap<String, String>) -> PathBuf {
    // systemd may list several directories, separated by colons: ours is the first.
    let from_systemd = environment.get("STATE_DIRECTORY").and_then(|dirs| dirs.split(':').next());
    configured.as_deref().or(from_systemd).unwrap_or("./flagpost-state").into()
}

fn networks(texts: &[String]) -> Result<Vec<IpNet>> {
    let parse = |text: &String| {
        let single = text.parse::<std::net::IpAddr>().map(IpNet::from).ok();
        text.parse::<IpNet>().ok().or(single).ok_or_else(|| {
            Error::config(format!(
                "network.allow: {text:?} is no network: write it as 10.0.0.0/8 or fd00::/8"
            ))
        })
    };
    texts.iter().map(parse).collect()
}

fn waits(texts: &[String], default: Vec<Duration>) -> Result<Vec<Duration>> {
    if texts.is_empty() {
        return Ok(default);
    }
    texts.iter().map(|text| parse_duration("delivery.retry", text)).collect()
}

fn breaker(failures: Option<usize>, after: Option<String>, probe: Option<String>) -> Result<BreakerPolicy> {
    let default = BreakerPolicy::default();
    let longest_probe = duration("delivery.breaker_probe", probe, default.longest_probe)?;
    if longest_probe.is_zero() {
        return Err(Error::config(
            "delivery.breaker_probe is 0: an endpoint that is down would be asked without a pause; use 1s or more, \
             or turn breakers off with delivery.breaker_failures = 0",
        ));
    }
    Ok(BreakerPolicy {
        failures: failures.map_or(default.failures, |n| u32::try_from(n).unwrap_or(u32::MAX)),
        sustained: duration("delivery.breaker_after", after, default.sustained)?,
        first_probe: default.first_probe.min(longest_probe),
        longest_probe,
    })
}

/// A size: a number of bytes, or one with KiB, MiB or GiB.
fn bytes(key: &str, text: Option<String>, default: u64) -> Result<u64> {
    let Some(text) = text else { return Ok(default) };
    let (number, unit) =
        text.trim().split_at(text.trim().find(|c: char| !c.is_ascii_digit()).unwrap_or(text.trim().len()));
    let shift = match unit.trim() {
        "" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        _ => None,
    };
    let factor = shift.map(|shift| 1_u64 << shift);
    factor
        .and_then(|factor| number.parse::<u64>().ok()?.checked_mul(factor))
        .ok_or_else(|| Error::config(format!("{key} is {text:?}: write a size as 500MiB or 4GiB")))
}

fn listen(text: Option<&str>) -> Result<Option<SocketAddr>> {
    match text.unwrap_or("127.0.0.1:9464") {
        "off" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            Error::config(format!("ops.listen is {text:?}: write it as 127.0.0.1:9464, or \"off\""))
        }),
    }
}

fn traces(text: Option<String>) -> Result<Option<String>> {
    let Some(text) = text else { return Ok(None) };
    // The URL is no secret: it may stand in a message.
    let is_plain = url::Url::parse(&text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
    });
    if is_plain {
        return Ok(Some(text));
    }
    Err(Error::config(
        "traces.endpoint is no http or https URL without user and query: write it as http://localhost:4318, the base URL of a \
         collector that takes OTLP over HTTP",
    ))
}

fn log_format(text: Option<&str>) -> Result<LogFormat> {
    match text {
        None | Some("auto") => Ok(LogFormat::Auto),
        Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some("journald") => Ok(LogFormat::Journald),
        Some(other) => Err(Error::config(format!(
            "log.format is {other:?}: use \"auto\", \"text\", \"json\" or \"journald\""
        ))),
    }
}

fn heartbeat(text: Option<String>) -> Result<Option<Duration>> {
    let every = duration("source.heartbeat", text, Duration::ZERO)?;
    if every.is_zero() {
        return Ok(None);
    }
    if every < Duration::from_secs(1) {
        return Err(Error::config(format!(
            "source.heartbeat is {every:?}: use 1s or more, or 0 for none (the server's own keepalives suffice)"
        )));
    }
    Ok(Some(every))
}

fn duration(key: &str, text: Option<String>, default: Duration) -> Result<Duration> {
    text.map_or(Ok(default), |text| parse_duration(key, &text))
}

fn parse_duration(key: &str, text: &str) -> Result<Duration> {
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|d| Duration::try_from(d).ok())
        .ok_or_else(|| Error::config(format!("{key} is {text:?}: write a duration as 100ms, 5s, 2m or 12h")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::event::Format;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn load(toml: &str, pairs: &[(&str, &str)]) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flagpost.toml");
        std::fs::write(&path, toml).unwrap();
        Config::load(Some(&path), &environment(pairs))
    }

    const URL: (&str, &str) = ("FLAGPOST_DATABASE_URL", "postgresql://flagpost:pw@db/flagsmith");

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = load("", &[URL]).unwrap();
        assert_eq!((config.names.slot.as_str(), config.names.publication.as_str()), ("flagpost", "flagpost"));
        assert_eq!(config.settle.quiet, Duration::from_millis(100));
        assert_eq!(config.settle.max, Duration::from_secs(1));
        assert_eq!(config.state_dir, PathBuf::from("./flagpost-state"));
        assert_eq!(config.formats.default, Format::Classic);
        assert!(config.allow.is_empty());
        assert_eq!(config.ops_listen, Some("127.0.0.1:9464".parse().unwrap()));
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let toml = "[source]\nsettle = \"1s\"\nslot = \"from_file\"\n[network]\nallow = [\"10.0.0.0/8\"]\n";
        let config = load(
            toml,
            &[
                URL,
                ("FLAGPOST_SOURCE_SETTLE", "0"),
                ("FLAGPOST_NETWORK_ALLOW", "127.0.0.0/8, ::1/128"),
                ("FLAGPOST_WEBHOOKS_FORMAT", "current"),
                ("FLAGPOST_DELIVERY_MAX_IN_FLIGHT", "3"),
                ("FLAGPOST_OPS_LISTEN", "off"),
                ("STATE_DIRECTORY", "/var/lib/flagpost"),
            ],
        )
        .unwrap();
        assert_eq!(config.settle.quiet, Duration::ZERO);
        assert_eq!(config.names.slot, "from_file");
        assert_eq!(config.allow.len(), 2);
        assert_eq!(config.formats.default, Format::Current);
        assert_eq!(config.max_in_flight, 3);
        assert_eq!(config.ops_listen, None);
        assert_eq!(config.state_dir, PathBuf::from("/var/lib/flagpost"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_mend() {
        for (toml, part) in [
            ("[source]\nslott = \"x\"\n", "slott"),
            ("[sauce]\n", "sauce"),
            ("[source\n", "TOML"),
            ("[source]\nsettle = \"soon\"\n", "source.settle"),
            ("[source]\nslot = \"No Good\"\n", "source.slot"),
            ("[webhooks]\nformat = \"modern\"\n", "classic"),
            ("[network]\nallow = [\"everything\"]\n", "network.allow"),
            ("[ops]\nlisten = \"here\"\n", "ops.listen"),
            ("[delivery]\nmax_in_flight = 0\n", "max_in_flight"),
            ("[delivery]\nbreaker_probe = \"0\"\n", "breaker_failures"),
            ("[notify]\nsmtp = \"mail.example.com\"\nfrom = \"f@example.com\"\n", "notify.smtp"),
            ("[notify]\nsmtp = \"smtp://mail.example.com\"\n", "notify.from"),
            ("[notify]\nto = [\"ops@example.com\"]\n", "notify.smtp"),
            ("[notify]\nwebhook = \"ftp://example.com\"\n", "notify.webhook"),
            ("[source]\nmax_retained_wal_action = \"panic\"\n", "drop-slot"),
            ("[source]\nheartbeat = \"10ms\"\n", "1s or more"),
            ("[traces]\nendpoint = \"http://user:pw@collector:4318\"\n", "traces.endpoint"),
            ("[state]\nmax_size = \"4 elephants\"\n", "state.max_size"),
            ("[state]\nmax_size = \"99999999999GiB\"\n", "state.max_size"),
        ] {
            let error = load(toml, &[URL]).unwrap_err();
            assert_eq!(error.kind().exit_code(), 2);
            let text = error.to_string();
            assert!(text.contains(part), "{text:?} does not name {part:?}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
        assert!(load("", &[]).unwrap_err().to_string().contains("FLAGPOST_DATABASE_URL"));
    }

    #[test]
    fn the_example_names_every_key_and_shows_its_default() {
        let example = include_str!("../../flagpost.example.toml");
        // A key is a comment without a space; prose has one.
        let uncommented: String = example
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let table: toml::Table = uncommented.parse().unwrap();
        let shown_keys: BTreeSet<(&str, &str)> = table
            .iter()
            .flat_map(|(section, keys)| keys.as_table().unwrap().keys().map(move |key| (&**section, &**key)))
            .collect();
        let known_keys = raw::KEYS.iter().copied().chain([("webhooks", "endpoint")]).collect();
        assert_eq!(shown_keys, known_keys);
        let endpoints = table["webhooks"]["endpoint"].as_array().unwrap();
        let shown_keys: BTreeSet<&str> =
            endpoints.iter().flat_map(|entry| entry.as_table().unwrap().keys().map(|key| &**key)).collect();
        assert_eq!(shown_keys, raw::ENDPOINT_KEYS.iter().copied().collect());
        // The files that it names.
        let folder = tempfile::tempdir().unwrap();
        let pair = rcgen::generate_simple_self_signed(["example".to_owned()]).unwrap();
        let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        for (name, text) in [
            ("password", "pw"),
            ("client.pem", &certificate),
            ("client.key", &key),
            ("issuers.pem", &certificate),
            ("audit-log.secret", "s"),
            ("banner-secret", "s"),
            ("smtp-password", "s"),
            ("ops-token", "0123456789abcdef"),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let credentials = ("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap());
        let uncommented = uncommented.replace("/etc/flagpost", credentials.1);
        let shown = load(&uncommented, &[credentials]).unwrap();
        assert_eq!((shown.subscriptions.len(), shown.targets.configured().len()), (2, 2));
        let default = load("", &[URL]).unwrap();
        assert_eq!((shown.mode, shown.settle), (default.mode, default.settle));
        assert_eq!(
            (shown.timeouts.connect, shown.timeouts.whole),
            (default.timeouts.connect, default.timeouts.whole)
        );
        assert_eq!(
            (shown.metadata_events, shown.ops_listen, shown.log_format, &shown.log_level),
            (default.metadata_events, default.ops_listen, default.log_format, &default.log_level)
        );
        assert_eq!((shown.https_only, shown.retained), (default.https_only, default.retained));
        assert_eq!((shown.heartbeat, default.heartbeat), (None, None));
        assert_eq!((&shown.schedule, shown.max_in_flight), (&default.schedule, default.max_in_flight));
        assert_eq!(
            (shown.breaker, shown.secret_rotation, shown.retention, shown.notify.after),
            (default.breaker, default.secret_rotation, default.retention, default.notify.after)
        );
        assert_eq!((&shown.names, shown.formats.default), (&default.names, default.formats.default));
        assert_eq!(load(example, &[URL]).unwrap().names, default.names);
    }

    #[test]
    fn no_secret_is_shown() {
        let config = load("", &[URL]).unwrap();
        assert!(!format!("{config:?}").contains("pw"));
    }

    #[test]
    fn a_misspelt_variable_is_noticed() {
        let config = load("", &[URL, ("FLAGPOST_SOURCE_SLOTT", "x")]).unwrap();
        assert_eq!(config.unknown_variables, ["FLAGPOST_SOURCE_SLOTT"]);
    }
}
