//! The outbox: there, readable, whole, not full, ours, and emptied.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::Client;

use super::code::Code;
use super::ledger::{Found, check_outbox_fit};
use super::report::{AGAIN, Report};
use crate::cli::printable::one_line;
use crate::cli::size;
use crate::config::Config;
use crate::error::{Kind, Result};
use crate::source::{
    Catalog, Finding, OutboxFacts, outbox_access, outbox_facts, outbox_failures, quoted, subscribed_tables,
    system_id,
};

const SETUP: &str = "flagpost setup --mode outbox";
/// So many reasons are shown.
const REASONS: i64 = 3;
/// A reader takes away what it has read within a second or two.
const LONG_AGO: f64 = 300.0;

pub(super) async fn check(
    config: &Config,
    client: &Client,
    catalog: &Catalog,
    ledger: Option<&Found>,
    report: &mut Report,
) {
    if let Err(error) = look(config, client, catalog, ledger, report).await {
        report.error(Code::Outbox, &error);
    }
}

async fn look(
    config: &Config,
    client: &Client,
    catalog: &Catalog,
    ledger: Option<&Found>,
    report: &mut Report,
) -> Result<()> {
    let info = &config.database;
    let was_filled = ledger.is_some_and(|ledger| ledger.checkpoint.is_some());
    let access = outbox_access(client, info).await?;
    if !access.is_there {
        check_absent(was_filled, report);
        return Ok(());
    }
    report.ok(Code::OutboxInstalled, "table flagpost.outbox and what belongs to it are there");
    if !access.lacking.is_empty() {
        report.fail(
            Code::OutboxPrivilege,
            Kind::DatabaseRefuses,
            format!("role {} lacks {}", info.user, access.lacking.join(", ")),
            config.outbox.grant_step(&info.user).sql.trim_end(),
        );
        return Ok(());
    }
    report.ok(Code::OutboxPrivilege, format!("role {} may read and empty the outbox", info.user));
    let findings = config.outbox.findings(client, info, catalog).await?;
    check_triggers(catalog, &findings, was_filled, report);
    check_subscriptions(&subscribed_tables(client, info, &catalog.schema).await?, report);
    let facts = outbox_facts(client, info).await?;
    let reasons = outbox_failures(client, info, REASONS).await?;
    check_failures(&facts, &reasons, was_filled, report);
    check_size(config, &facts, report);
    check_waiting(&facts, report);
    match system_id(client, info).await {
        Ok(system_id) => check_outbox_fit(config, ledger, &system_id, &facts, report),
        Err(error) => report.refused(
            Code::Outbox,
            &error,
            format!(
                "GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_system() TO {};  -- as a superuser, in this database",
                quoted(&info.user)
            ),
        ),
    }
    Ok(())
}

fn check_absent(was_filled: bool, report: &mut Report) {
    let (code, what) = (Code::OutboxInstalled, "the outbox is not installed");
    if was_filled {
        let lost = format!(
            "{what}, and the ledger has been filled from one: what changed since it went is not known to anybody"
        );
        report.fail(code, Kind::SlotLost, lost, AGAIN);
    } else {
        let mend = format!("{SETUP}  -- or, for somebody else to run: {SETUP} --print");
        report.fail(code, Kind::DatabaseRefuses, format!("{what}: no change is captured"), mend);
    }
}

fn check_subscriptions(subscribed: &[String], report: &mut Report) {
    if subscribed.is_empty() {
        return;
    }
    report.fail(
        Code::OutboxSubscription,
        Kind::DatabaseRefuses,
        format!(
            "a subscription writes to {}: what comes by it fires no statement trigger and is not captured",
            subscribed.join(", ")
        ),
        "give database.url the server that Flagsmith itself writes to",
    );
}

fn check_triggers(catalog: &Catalog, findings: &[Finding], was_filled: bool, report: &mut Report) {
    let code = Code::OutboxTriggers;
    // By what is wrong with which table: a table has four triggers.
    let mut losses: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for finding in findings.iter().filter(|finding| finding.is_loss()) {
        losses.entry((&finding.finding, &finding.subject)).or_default().push(&finding.detail);
    }
    for ((what, table), triggers) in &losses {
        let message = format!("{table}: {}", loss(what, triggers));
        if was_filled {
            let message = format!("{message}; what changed there since then is not in the outbox");
            report.fail(code, Kind::SlotLost, message, AGAIN);
        } else {
            report.fail(code, Kind::DatabaseRefuses, message, SETUP);
        }
    }
    if losses.is_empty() {
        report.ok(code, format!("every change of {} tables is captured", catalog.tables.len()));
    }
    for finding in findings.iter().filter(|finding| finding.finding == "other table") {
        let table = format!("{}.{}", quoted(&catalog.schema), quoted(&finding.subject));
        report.warn(
            Code::OutboxSurplus,
            format!(
                "{} has the trigger {}, and flagpost does not read this table: it fills the outbox for nothing",
                finding.subject, finding.detail
            ),
            format!("DROP TRIGGER {} ON {table};", quoted(&finding.detail)),
        );
    }
}

/// What a loss means.
fn loss(what: &str, triggers: &[&str]) -> String {
    let names = triggers.join(", ");
    match what {
        "missing" if triggers == ["commits"] => {
            format!("trigger {names} is missing or disabled: commits are neither timed nor notified")
        }
        "missing" => format!("no trigger {names}: such changes are not captured"),
        "not always enabled" => format!(
            "{names} disabled or not enabled ALWAYS: changes are not captured, if only those under \
             session_replication_role = replica"
        ),
        _ => format!(
            "{names} made for other columns than flagpost reads: what changes in them is not captured"
        ),
    }
}

fn check_failures(facts: &OutboxFacts, reasons: &[String], was_filled: bool, report: &mut Report) {
    let code = Code::OutboxFailures;
    if facts.failures == 0 {
        return report.ok(code, "no statement of Flagsmith's has failed to be captured");
    }
    let reasons: Vec<String> = reasons.iter().map(|reason| one_line(reason)).collect();
    let message = format!(
        "NOT CAPTURED: {} of Flagsmith's; what changed by that is not in the outbox. First reasons: {}",
        size::counted(facts.failures, "statement"),
        if reasons.is_empty() { "only in the server's log".to_owned() } else { reasons.join("; ") }
    );
    let mend = format!("-- mend the cause (table flagpost.failure has more), then:\n{AGAIN}");
    if was_filled {
        report.fail(code, Kind::SlotLost, message, mend);
    } else {
        // The first run begins with a snapshot that has them.
        report.warn(code, message, mend);
    }
}

fn check_size(config: &Config, facts: &OutboxFacts, report: &mut Report) {
    let (code, limit) = (Code::OutboxSize, facts.limit(config.outbox.cap));
    let used = format!("{} of at most {}", size::bytes(facts.bytes), size::bytes(limit));
    if facts.is_full(config.outbox.cap) {
        report.fail(
            code,
            Kind::SlotLost,
            format!(
                "the outbox IS FULL ({used}): CHANGES ARE NOT CAPTURED ANY MORE. Each one that comes is lost for webhooks, and \
                 flagpost must then begin anew"
            ),
            format!(
                "-- if no statement has failed yet: flagpost run takes out what was captured, and VACUUM flagpost.outbox; gives \
                 the room back\n-- else:\n{AGAIN}\n-- more room: source.outbox_max_size, then {SETUP}"
            ),
        );
    } else if facts.bytes >= limit / 10 * 8 {
        report.warn(
            code,
            format!("the outbox is nearly full ({used}): beyond that changes are not captured any more"),
            format!(
                "flagpost run  -- takes out what it has read; more room: source.outbox_max_size, then {SETUP}"
            ),
        );
    } else {
        report.ok(code, used);
    }
    if facts.cap.is_some_and(|cap| u64::try_from(cap) != Ok(config.outbox.cap)) {
        let configured = i64::try_from(config.outbox.cap).unwrap_or(i64::MAX);
        report.warn(
            Code::OutboxCap,
            format!(
                "the triggers know another cap ({}) than source.outbox_max_size ({})",
                size::bytes(limit),
                size::bytes(configured)
            ),
            SETUP,
        );
    }
}

fn check_waiting(facts: &OutboxFacts, report: &mut Report) {
    let code = Code::OutboxWaiting;
    let Some(seconds) = facts.oldest_seconds else {
        return report.ok(code, "no change waits");
    };
    let oldest = size::span(Duration::try_from_secs_f64(seconds).unwrap_or_default());
    let wait = if facts.changes == 1 { "waits" } else { "wait" };
    let message = format!("{} {wait}, the oldest for {oldest}", size::counted(facts.changes, "change"));
    if seconds < LONG_AGO {
        return report.ok(code, message);
    }
    report.warn(
        code,
        format!("{message}: nobody reads them, or a transaction has been open for that long"),
        "flagpost run  -- it empties the outbox as it reads",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_told_by_what_is_missed() {
        assert!(
            loss("missing", &["flagpost_update", "flagpost_delete"])
                .contains("flagpost_update, flagpost_delete")
        );
        assert!(loss("missing", &["commits"]).contains("timed"));
        assert!(loss("not always enabled", &["flagpost_update"]).contains("ALWAYS"));
        assert!(loss("other columns", &["flagpost_update"]).contains("columns"));
    }
}
