//! The state of the ledger's files, and of what is queued in it: is the file sound, can others read it, is anything held back?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::code::Code;
use super::fix::Fix;
use super::report::Report;
use crate::cli::moment;
use crate::cli::printable::one_line;
use crate::cli::size;
use crate::config::Config;
use crate::error::{Kind, Result};
use crate::ledger::{Ledger, Reader};
use crate::room::ENOUGH;

/// A ledger up to this size is read through in a few seconds; a larger one only when asked to.
const QUICK_BYTES: u64 = 1 << 30;

pub(super) fn check(config: &Config, full: bool, report: &mut Report) {
    check_modes(&config.state_dir, report);
    let result = Reader::open(&config.state_dir).and_then(|reader| {
        check_size(&reader, config.retention.max_bytes, report)?;
        check_integrity(&reader, full, report)?;
        check_dead(&reader, report)?;
        check_lanes(&reader, report)
    });
    if let Err(error) = result {
        report.error(Code::LedgerIntegrity, &error);
    }
}

/// Secrets are sealed in the ledger, and the key lies beside it: neither is for others to read.
fn check_modes(directory: &Path, report: &mut Report) {
    let open: Vec<PathBuf> = Ledger::files(directory)
        .into_iter()
        .filter(|path| fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0))
        .collect();
    if open.is_empty() {
        return report.ok(Code::LedgerModes, "ledger and key can be read by their owner only");
    }
    let names: Vec<String> = open.iter().map(|path| path.display().to_string()).collect();
    report.warn_fixable(
        Code::LedgerModes,
        format!("others may read {}", names.join(", ")),
        names.iter().map(|name| format!("chmod 600 '{name}'")).collect::<Vec<_>>().join("\n"),
        Fix::Mode(open, 0o600),
    );
}

/// Also before there is a ledger: there would be none on a full disk.
pub(super) fn check_room(directory: &Path, report: &mut Report) {
    let Some(free) = Ledger::room(directory) else { return };
    let shown = size::bytes(i64::try_from(free).unwrap_or(i64::MAX));
    if free >= ENOUGH {
        return report.ok(Code::LedgerRoom, format!("{shown} are free on the ledger's disk"));
    }
    report.fail(
        Code::LedgerRoom,
        Kind::LedgerFull,
        format!("only {shown} are free on the ledger's disk: the daemon reads nothing, and the server keeps its log"),
        "make room there; the daemon goes on by itself",
    );
}

/// What waits to be sent stays whatever the size, and the file grows by it.
fn check_size(reader: &Reader, limit: u64, report: &mut Report) -> Result<()> {
    let bytes = reader.used_bytes()?;
    let shown = |bytes: u64| size::bytes(i64::try_from(bytes).unwrap_or(i64::MAX));
    let message = format!("{} of at most {} (state.max_size)", shown(bytes), shown(limit));
    if bytes <= limit {
        report.ok(Code::LedgerSize, message);
    } else {
        report.warn(
            Code::LedgerSize,
            format!("{message}: what waits to be sent is more than that, or the daemon has not run lately"),
            "flagpost status  -- which endpoint does everything wait for? mend or disable it; or raise state.max_size",
        );
    }
    Ok(())
}

fn check_dead(reader: &Reader, report: &mut Report) -> Result<()> {
    let mut dead: Vec<(String, u64)> = reader
        .counts()?
        .into_iter()
        .filter(|(_, counts)| counts.dead > 0)
        .map(|(key, c)| (key, c.dead))
        .collect();
    if dead.is_empty() {
        report.ok(Code::DeadLetters, "no delivery on record was given up");
        return Ok(());
    }
    dead.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let total: u64 = dead.iter().map(|(_, count)| count).sum();
    let most = dead.first().map(|(endpoint, count)| format!("{endpoint} ({count})")).unwrap_or_default();
    report.warn(
        Code::DeadLetters,
        format!("{total} deliveries were given up, most of them to {most}"),
        "flagpost replay --failed --dry-run  -- shows them; without --dry-run it sends them again",
    );
    Ok(())
}

fn check_integrity(reader: &Reader, full: bool, report: &mut Report) -> Result<()> {
    let bytes = reader.used_bytes()?;
    let shown = size::bytes(i64::try_from(bytes).unwrap_or(i64::MAX));
    if bytes > QUICK_BYTES && !full {
        report.ok(
            Code::LedgerIntegrity,
            format!("{shown} were not read through, which takes a while: \"flagpost check --full\" does"),
        );
        return Ok(());
    }
    let faults = reader.faults(full)?;
    if faults.is_empty() {
        let indexes = if full { "and its indexes fit" } else { "(its indexes: \"flagpost check --full\")" };
        report.ok(Code::LedgerIntegrity, format!("the file is sound, {shown} were read {indexes}"));
        return Ok(());
    }
    report.fail(
        Code::LedgerIntegrity,
        Kind::LedgerMismatch,
        format!("the file is damaged: {}", one_line(&faults.join("; "))),
        "stop the daemon, look at the disk, and put back a copy of the state directory; without one, move its files away and \
         begin anew: flagpost setup --resnapshot (what was not sent is lost)",
    );
    Ok(())
}

fn check_lanes(reader: &Reader, report: &mut Report) -> Result<()> {
    let mut is_well = true;
    for (endpoint, lane) in reader.lanes()? {
        if let Some(pause) = &lane.pause {
            is_well = false;
            report.warn(
                Code::EndpointPaused,
                format!(
                    "{endpoint} is paused by the {} since {}: {}; {} deliveries wait",
                    pause.by,
                    moment::exact(pause.at),
                    one_line(&pause.why),
                    reader.pending(endpoint)?
                ),
                format!("flagpost resume {endpoint}"),
            );
        } else if let Some(opened) = lane.breaker.opened_at {
            is_well = false;
            let error = reader.last_error(&endpoint.to_string())?;
            report.warn(
                Code::EndpointBreaker,
                format!(
                    "{endpoint} is only probed since {}, after {} failures: {}",
                    moment::exact(opened),
                    lane.breaker.failures,
                    one_line(&error.unwrap_or_default())
                ),
                format!("mend the receiver, then flagpost test {endpoint}; flagpost resume {endpoint} sends at once what waits"),
            );
        }
    }
    if is_well {
        report.ok(Code::EndpointsHeld, "no endpoint is paused, no breaker is open");
    }
    Ok(())
}
