//! The ledger: a place that can be written, and a ledger that belongs to this database.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use super::code::Code;
use super::database::View;
use super::report::{AGAIN, Report};
use crate::change::Lsn;
use crate::cli::printable::one_line;
use crate::config::{Config, Mode};
use crate::error::{Error, Kind, Result};
use crate::ledger::{Identity, Ledger, Reader};
use crate::prepare::mode_of;
use crate::source::{OutboxFacts, Place, reader_name};

const FILL: &str =
    "\"flagpost run\" fills it at its first start; \"flagpost setup\" does when it makes what is read";
const RESNAPSHOT: &str = "flagpost setup --resnapshot";

/// A ledger that is there.
pub(super) struct Found {
    identity: Option<Identity>,
    /// `None` before the mirror has been filled.
    pub(super) checkpoint: Option<Lsn>,
    /// Where the outbox goes on.
    cursor: Option<String>,
    /// Why it cannot go on: changes are known to have been missed.
    broken: Option<String>,
}

/// What can be said of the ledger without the database.
pub(super) fn check_files(config: &Config, report: &mut Report) -> Option<Found> {
    let place = config.state_dir.display();
    if let Err(error) = probe(&config.state_dir) {
        report.fail(
            Code::StateDir,
            Kind::LedgerIo,
            format!("state.dir {place} cannot be written: {error}"),
            "give flagpost a directory that its user may write to: state.dir (FLAGPOST_STATE_DIR)",
        );
    } else {
        report.ok(Code::StateDir, format!("{place} can be written"));
    }
    if !Ledger::exists(&config.state_dir) {
        report.warn(Code::Ledger, format!("there is no ledger in {place} yet"), FILL);
        return None;
    }
    if let Some(format) = Ledger::older_format(&config.state_dir) {
        report.warn(
            Code::Ledger,
            format!("an older flagpost wrote the ledger (format {format}): the rest of it was not looked at"),
            "flagpost run  -- brings it up to date when it starts",
        );
        return None;
    }
    let found = match read(&config.state_dir) {
        Ok(found) => found,
        Err(error) => {
            report.error(Code::Ledger, &error);
            return None;
        }
    };
    match found.checkpoint {
        None => report.warn(Code::Ledger, "the mirror has not been filled yet", FILL),
        Some(checkpoint) => report.ok(Code::Ledger, format!("filled, at {checkpoint}")),
    }
    if let Some(reason) = &found.broken {
        report.fail(
            Code::LedgerBroken,
            Kind::SlotLost,
            format!("the daemon has stopped for good, since it has missed changes: {}", one_line(reason)),
            AGAIN,
        );
    }
    Some(found)
}

fn read(directory: &Path) -> Result<Found> {
    let reader = Reader::open(directory)?;
    if !reader.fits_columns()? {
        return Err(Error::new(
            Kind::LedgerMismatch,
            format!(
                "this flagpost reads other columns than the one that filled the ledger: run \"{RESNAPSHOT}\""
            ),
        ));
    }
    Ok(Found {
        identity: reader.identity()?,
        checkpoint: reader.checkpoint()?,
        cursor: reader.meta("cursor")?,
        broken: reader.meta("broken")?,
    })
}

/// Whether files can be made in `directory`, or, where it is not there, in the nearest folder above it that is.
fn probe(directory: &Path) -> io::Result<()> {
    let here = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    if !here.exists() {
        return here.parent().map_or(Ok(()), probe);
    }
    let file = here.join(format!(".flagpost-check-{}", std::process::id()));
    OpenOptions::new().write(true).create_new(true).open(&file)?;
    fs::remove_file(&file)
}

/// Whether a ledger that is filled can go on with this database.
pub(super) fn check_fit(config: &Config, ledger: Option<&Found>, view: &View, report: &mut Report) {
    let (Some(ledger), Some(server)) = (ledger, &view.server) else { return };
    let Some(checkpoint) = ledger.checkpoint else { return };
    let expected = Identity {
        system_id: server.system_id.clone(),
        database: config.database.database.clone(),
        slot: config.names.slot.clone(),
    };
    if !check_identity(config, ledger, &expected, report) {
        return;
    }
    let lost = if server.position < checkpoint {
        format!(
            "the database is at {}, behind the ledger ({checkpoint}): it was restored from an older state",
            server.position
        )
    } else if let Some(slot) =
        view.slot.as_ref().filter(|slot| slot.confirmed > later(config).0.unwrap_or(checkpoint))
    {
        format!(
            "the slot was moved on to {}, the ledger is at {checkpoint}: what lies between cannot be told any more",
            slot.confirmed
        )
    } else {
        return report.ok(Code::LedgerPosition, "the stream goes on where the ledger ends");
    };
    report.fail(Code::LedgerPosition, Kind::SlotLost, lost, AGAIN);
}

/// Whether a ledger that is filled can go on with this outbox.
pub(super) fn check_outbox_fit(
    config: &Config,
    ledger: Option<&Found>,
    system_id: &str,
    facts: &OutboxFacts,
    report: &mut Report,
) {
    let code = Code::OutboxReader;
    let filled = ledger.filter(|ledger| ledger.checkpoint.is_some());
    let Some(ledger) = filled else {
        return match &facts.reader {
            None => report.ok(code, "the outbox belongs to no ledger yet"),
            Some(_) => report.fail(
                code,
                Kind::LedgerMismatch,
                "the outbox belongs to another ledger, and the one here is not filled",
                format!(
                    "correct state.dir, or take the outbox over, which stops the other one: {RESNAPSHOT}"
                ),
            ),
        };
    };
    let slot = ledger.identity.as_ref().map(|identity| identity.slot.clone()).unwrap_or_default();
    let expected =
        Identity { system_id: system_id.to_owned(), database: config.database.database.clone(), slot };
    if !check_identity(config, ledger, &expected, report) {
        return;
    }
    if reader_name(facts.reader.as_deref().unwrap_or_default()) != expected.slot {
        let whose = if facts.reader.is_some() { "another ledger" } else { "no ledger" };
        report.fail(
            code,
            Kind::SlotLost,
            format!(
                "the outbox belongs to {whose}: what was taken out of it since cannot be told by this one"
            ),
            format!("-- correct state.dir or database.url, or take the outbox over:\n{AGAIN}"),
        );
        return;
    }
    report.ok(code, "the outbox belongs to this ledger");
    check_place(config, ledger, facts, report);
}

/// Checkpoint and cursor as they are now: a daemon that runs has moved them on since the ledger was looked at, and the server
/// was told after that.
fn later(config: &Config) -> (Option<Lsn>, Option<String>) {
    let found =
        Reader::open(&config.state_dir).and_then(|reader| Ok((reader.checkpoint()?, reader.meta("cursor")?)));
    found.unwrap_or_default()
}

/// The same that the daemon's reader asks when it connects.
fn check_place(config: &Config, ledger: &Found, facts: &OutboxFacts, report: &mut Report) {
    let highest = |cursor: Option<&str>| Some(cursor?.parse::<Place>().ok()?.highest());
    let Some(known) = highest(ledger.cursor.as_deref()) else {
        return report.fail(
            Code::LedgerPosition,
            Kind::LedgerMismatch,
            "the ledger does not tell where it is in the outbox",
            AGAIN,
        );
    };
    let later = highest(later(config).1.as_deref()).unwrap_or(known);
    let lost = if facts.given < known {
        format!(
            "the outbox is at {}, behind the ledger ({known}): the database was restored from an older state",
            facts.given
        )
    } else if facts.consumed > later {
        "the outbox was read further than this ledger has (by a copy of it, or before it was set back): what lies between cannot \
         be told any more"
            .to_owned()
    } else {
        return report.ok(Code::LedgerPosition, "the outbox goes on where the ledger ends");
    };
    report.fail(Code::LedgerPosition, Kind::SlotLost, lost, AGAIN);
}

/// Whether the ledger belongs to this database, and to the source that is configured.
fn check_identity(config: &Config, ledger: &Found, expected: &Identity, report: &mut Report) -> bool {
    let code = Code::LedgerIdentity;
    let found = ledger.identity.as_ref();
    let mode = found.map_or(Mode::Replication, mode_of);
    if mode != config.mode {
        let (mode, configured) = (mode.name(), config.mode.name());
        report.fail(
            code,
            Kind::LedgerMismatch,
            format!(
                "the ledger was filled with source.mode = \"{mode}\", and \"{configured}\" is configured"
            ),
            format!("set source.mode = \"{mode}\", or change over: flagpost switch-source {configured}"),
        );
        return false;
    }
    if found == Some(expected) {
        let what = match mode {
            Mode::Outbox => "cluster and database",
            Mode::Replication => "cluster, database and slot",
        };
        report.ok(code, format!("the ledger belongs to this {what}"));
        return true;
    }
    let found = found.map_or_else(
        || "an unknown database".to_owned(),
        |id| format!("cluster {}, database {:?}, slot {:?}", id.system_id, id.database, id.slot),
    );
    report.fail(
        code,
        Kind::LedgerMismatch,
        format!("the ledger belongs to {found}, this is cluster {}", expected.system_id),
        format!(
            "-- correct database.url, source.slot or state.dir, or, if the database was moved:\nflagpost recover --moved\n-- or begin \
             anew: {RESNAPSHOT}"
        ),
    );
    false
}
