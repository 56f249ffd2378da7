//! What is wrong, in words, and what to do about it: what somebody reads first on a bad night.

use std::time::Duration;

use serde::Serialize;

use super::endpoints::EndpointPart;
use super::outbox::Whose;
use super::{DatabasePart, LedgerPart, Status};
use crate::cli::size;
use crate::config::{Config, Mode};
use crate::pulse::Trouble;

/// So far behind is no moment's matter any more.
const BEHIND: Duration = Duration::from_secs(60);
/// Endpoints that are told one by one.
const TOLD: usize = 8;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum Weight {
    /// Webhooks are not sent, or will be missing.
    Bad,
    /// Something waits for somebody.
    Warning,
    /// Worth knowing.
    Note,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::cli) struct Wrong {
    weight: Weight,
    /// What.
    says: String,
    /// What to do.
    mend: String,
    /// The endpoint that it is about.
    endpoint: Option<String>,
}

fn wrong_with(weight: Weight, says: impl Into<String>, mend: impl Into<String>) -> Wrong {
    Wrong { weight, says: says.into(), mend: mend.into(), endpoint: None }
}

fn missed(since: &str) -> String {
    format!(
        "What changed since {since} was missed: run \"flagpost check\", then \"flagpost recover\", which tells receivers the \
         difference."
    )
}

/// The worst first. `troubles` is what the daemon's stages tell.
pub(in crate::cli) fn wrong(config: &Config, status: &Status, troubles: &[Trouble]) -> Vec<Wrong> {
    let mut all: Vec<Wrong> = troubles.iter().map(|trouble| of_daemon(config, trouble)).collect();
    of_ledger(&status.ledger, &mut all);
    let is_source_told = troubles.iter().any(|trouble| trouble.part == "source");
    of_database(config, &status.database, is_source_told, &mut all);
    of_endpoints(&status.endpoints, &mut all);
    all.sort_by_key(|wrong| wrong.weight);
    all
}

fn of_daemon(config: &Config, trouble: &Trouble) -> Wrong {
    let Trouble { part, says } = trouble;
    match *part {
        "source" => wrong_with(
            Weight::Bad,
            format!("Changes are not read. {}", sentence(says)),
            format!(
                "Check that PostgreSQL at {} is up and can be reached from here. flagpost connects again by itself and goes on where \
                 it was: nothing is lost.",
                config.database.shown()
            ),
        ),
        "daemon" if says.contains("no room") => wrong_with(
            Weight::Bad,
            sentence(says),
            format!("Make room on the disk of {}: it goes on by itself.", config.state_dir.display()),
        ),
        "daemon" => {
            wrong_with(Weight::Warning, sentence(says), "Wait a moment; if it stays so, the log says why.")
        }
        stage => wrong_with(
            Weight::Bad,
            format!("The stage \"{stage}\" is stuck: {says}."),
            "Look into the log and at the disk of state.dir. If it stays so, restart flagpost: nothing is lost.",
        ),
    }
}

/// It begins with a capital and ends with a full stop.
fn sentence(text: &str) -> String {
    let mut chars = text.trim_end_matches('.').chars();
    let first: String = chars.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}

fn of_ledger(ledger: &LedgerPart, all: &mut Vec<Wrong>) {
    if let Some(reason) = &ledger.missed {
        all.push(wrong_with(
            Weight::Bad,
            format!("Changes were missed. {}", sentence(reason)),
            "Run \"flagpost check\": it says what to do.",
        ));
    }
    if let Some(error) = &ledger.error {
        all.push(wrong_with(
            Weight::Bad,
            format!("The ledger cannot be read. {}", sentence(error)),
            "Check the disk of state.dir, and run \"flagpost check\".",
        ));
    }
}

fn of_database(config: &Config, database: &DatabasePart, is_source_told: bool, all: &mut Vec<Wrong>) {
    if let Some(error) = &database.error {
        // That the source is down says it already.
        if !is_source_told {
            all.push(wrong_with(
                Weight::Warning,
                format!("The database cannot be asked how far we are. {}", sentence(error)),
                "Changes are read over another connection and may go on. \"flagpost check\" says what stands in the way.",
            ));
        }
        return;
    }
    match config.mode {
        Mode::Replication => of_slot(config, database, all),
        Mode::Outbox => of_outbox(database, all),
    }
}

fn of_slot(config: &Config, database: &DatabasePart, all: &mut Vec<Wrong>) {
    let Some(slot) = &database.slot else {
        all.push(wrong_with(
            Weight::Bad,
            format!("The replication slot {:?} is gone.", config.names.slot),
            missed("it went"),
        ));
        return;
    };
    match slot.wal_status.as_str() {
        "lost" => all.push(wrong_with(
            Weight::Bad,
            "The server has given up the replication slot: it needed log that is not there any more.",
            missed("then"),
        )),
        "unreserved" => all.push(wrong_with(
            Weight::Bad,
            "The server is about to give up the replication slot: it may drop the log that we still need at any moment.",
            "Raise max_slot_wal_keep_size on the server now, then find out why we are behind.",
        )),
        _ => {}
    }
    behind(slot.lag_seconds, all);
}

fn of_outbox(database: &DatabasePart, all: &mut Vec<Wrong>) {
    let Some(outbox) = &database.outbox else {
        all.push(wrong_with(Weight::Bad, "The outbox is not there.", missed("it went")));
        return;
    };
    if outbox.full {
        all.push(wrong_with(
            Weight::Bad,
            format!("The outbox is full ({}): changes are not captured any more.", size::bytes(outbox.bytes)),
            "Run \"flagpost check\": it says how to go on.",
        ));
    }
    if outbox.failures > 0 {
        let first = outbox.failure.as_deref().unwrap_or("the server's log has it");
        all.push(wrong_with(
            Weight::Bad,
            format!(
                "{} of Flagsmith's could not be captured; the first reason: {first}",
                size::counted(outbox.failures, "statement")
            ),
            "Mend the cause, then run \"flagpost recover\", which tells receivers the difference.",
        ));
    }
    if outbox.reader == Whose::AnotherLedger {
        all.push(wrong_with(
            Weight::Bad,
            "The outbox belongs to another ledger, which takes away what it reads.",
            "Run \"flagpost check\": it says who reads it, and how to take it over.",
        ));
    }
    behind(outbox.oldest_seconds, all);
}

fn behind(seconds: Option<f64>, all: &mut Vec<Wrong>) {
    let span = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    if let Some(span) = span.filter(|span| *span > BEHIND) {
        all.push(wrong_with(
            Weight::Warning,
            format!("We are {} behind the database.", size::span(span)),
            "The chart shows whether it gets less. If it does not, look into the log, and at the load of server and disk.",
        ));
    }
}

fn of_endpoints(endpoints: &[EndpointPart], all: &mut Vec<Wrong>) {
    let mut of_them: Vec<Wrong> = endpoints.iter().flat_map(EndpointPart::wrong).collect();
    of_them.sort_by_key(|wrong| wrong.weight);
    let rest = of_them.split_off(of_them.len().min(TOLD));
    all.extend(of_them);
    if let Some(weight) = rest.iter().map(|wrong| wrong.weight).min() {
        all.push(wrong_with(
            weight,
            format!("{} more of this kind.", rest.len()),
            "See the endpoints below.",
        ));
    }
}

impl EndpointPart {
    fn wrong(&self) -> Vec<Wrong> {
        // What was deleted in Flagsmith needs nobody.
        let Some(url) = &self.url else { return Vec::new() };
        let mut all = Vec::new();
        let mut add = |weight, says: String, mend: String| {
            all.push(Wrong { endpoint: Some(self.endpoint.clone()), ..wrong_with(weight, says, mend) });
        };
        let (key, pending) = (&self.endpoint, deliveries(self.pending));
        let error = self.last_error.as_deref().map(|error| format!(" Last error: {}", sentence(error)));
        let error = error.unwrap_or_default();
        if let Some(paused) = &self.paused {
            add(
                Weight::Warning,
                format!("{key} ({url}) is paused by the {}: {}. {pending} wait.", paused.by, paused.why),
                format!("Resume it when its receiver is ready: here, or \"flagpost resume {key}\"."),
            );
        } else if let Some(breaker) = &self.breaker {
            let next = breaker.next_probe_seconds.map(Duration::from_secs).map(size::span);
            let next = next.map(|span| format!(" in {span}")).unwrap_or_default();
            add(
                Weight::Bad,
                format!("{key} ({url}) keeps failing. {pending} wait.{error}"),
                format!(
                    "Mend the receiver. It is tried again{next} by itself, and everything goes out once it answers; \"flagpost \
                     resume {key}\" tries at once."
                ),
            );
        } else if self.retrying > 0 {
            add(
                Weight::Warning,
                format!(
                    "{} to {key} ({url}) failed and will be tried again.{error}",
                    deliveries(self.retrying)
                ),
                "If it goes on, mend the receiver. Nothing is lost meanwhile.".into(),
            );
        }
        if self.dead > 0 {
            add(
                Weight::Note,
                format!("{} to {key} ({url}) were given up.", deliveries(self.dead)),
                format!(
                    "Once the receiver is well: \"flagpost replay --failed --endpoint {key}\" sends them again."
                ),
            );
        }
        if !self.tls_verified {
            add(
                Weight::Note,
                format!("The certificate of {key} ({url}) is not verified."),
                "Name its issuer in network.ca_file instead of verify = false.".into(),
            );
        }
        all
    }
}

fn deliveries(count: u64) -> String {
    if count == 1 { "1 delivery".into() } else { format!("{count} deliveries") }
}
