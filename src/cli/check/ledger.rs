//! The ledger: a place that can be written, and a ledger that belongs to this database.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use super::database::View;
use super::report::{Group, Report};
use crate::change::Lsn;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::ledger::{Identity, Ledger, Reader};

const GROUP: Group = Group::Ledger;
const FILL: &str =
    "\"flagpost run\" fills it at its first start; \"flagpost setup\" does when it makes the slot";
const RESNAPSHOT: &str = "flagpost setup --resnapshot";

/// A ledger that is there.
pub(super) struct Found {
    identity: Option<Identity>,
    /// `None` before the mirror has been filled.
    pub(super) checkpoint: Option<Lsn>,
}

/// What can be said of the ledger without the database.
pub(super) fn check_files(config: &Config, report: &mut Report) -> Option<Found> {
    let place = config.state_dir.display();
    if let Err(error) = probe(&config.state_dir) {
        report.fail(
            GROUP,
            "state-dir",
            Kind::LedgerIo,
            format!("state.dir {place} cannot be written: {error}"),
            "give flagpost a directory that its user may write to: state.dir (FLAGPOST_STATE_DIR)",
        );
    } else {
        report.ok(GROUP, "state-dir", format!("{place} can be written"));
    }
    if !Ledger::exists(&config.state_dir) {
        report.warn(GROUP, "ledger", format!("there is no ledger in {place} yet"), FILL);
        return None;
    }
    let found = match read(&config.state_dir) {
        Ok(found) => found,
        Err(error) => {
            report.error(GROUP, "ledger", &error);
            return None;
        }
    };
    match found.checkpoint {
        None => report.warn(GROUP, "ledger", "the mirror has not been filled yet", FILL),
        Some(checkpoint) => report.ok(GROUP, "ledger", format!("filled, at {checkpoint}")),
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
    Ok(Found { identity: reader.identity()?, checkpoint: reader.checkpoint()? })
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
    if ledger.identity.as_ref() != Some(&expected) {
        let found = ledger.identity.as_ref().map_or_else(
            || "an unknown database".to_owned(),
            |id| format!("cluster {}, database {:?}, slot {:?}", id.system_id, id.database, id.slot),
        );
        report.fail(
            GROUP,
            "ledger-identity",
            Kind::LedgerMismatch,
            format!("the ledger belongs to {found}, this is cluster {}", server.system_id),
            format!("correct database.url, source.slot or state.dir, or begin anew: {RESNAPSHOT}"),
        );
        return;
    }
    report.ok(GROUP, "ledger-identity", "the ledger belongs to this cluster, database and slot");
    let lost = if server.position < checkpoint {
        format!(
            "the database is at {}, behind the ledger ({checkpoint}): it was restored from an older state",
            server.position
        )
    } else if let Some(slot) = view.slot.as_ref().filter(|slot| slot.confirmed > checkpoint) {
        format!(
            "the slot was moved on to {}, the ledger is at {checkpoint}: what lies between cannot be told any more",
            slot.confirmed
        )
    } else {
        return report.ok(GROUP, "ledger-position", "the stream goes on where the ledger ends");
    };
    report.fail(GROUP, "ledger-position", Kind::SlotLost, lost, RESNAPSHOT);
}
