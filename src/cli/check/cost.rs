//! What flagpost costs the server, and what other sessions cost both: log and catalogue that the slot holds back, decoding that
//! goes to disk, transactions that nobody ends.

use std::time::Duration;

use tokio_postgres::Client;

use super::code::Code;
use super::database::View;
use super::report::Report;
use super::session::grant_views;
use crate::cli::printable::one_line;
use crate::cli::size;
use crate::config::{Config, Mode};
use crate::source::{
    Aged, SlotCost, SlotFacts, open_transactions, prepared_transactions, slot_cost, unread_slots,
};

/// Bytes: a slot that is read and further behind than this does not keep up.
const FAR_BEHIND: i64 = 1 << 30;
/// MiB: a burst of changes, or an hour without the daemon, can write more than this.
const SMALL_LIMIT: i64 = 1 << 10;
/// Bytes of transactions that went to the server's disk to be decoded.
const MUCH_SPILLED: i64 = 1 << 30;
/// Transactions. The server stops to keep its data at 2 thousand million; autovacuum gets anxious at 200 million.
const OLD_CATALOG: i64 = 100_000_000;
/// Seconds.
const LONG: f64 = 3_600.0;

pub(super) async fn check(config: &Config, view: &View, report: &mut Report) {
    if let Some(slot) = &view.slot {
        check_pace(slot, report);
        match slot_cost(&view.client, &config.database, &config.names.slot).await {
            Err(error) => report.refused(Code::SlotLimit, &error, grant_views(&config.database.user)),
            Ok(None) => {}
            Ok(Some(cost)) => check_cost(config, &cost, report),
        }
    }
    if config.mode == Mode::Replication {
        check_others(config, &view.client, report).await;
    }
    check_open(config, &view.client, report).await;
    check_prepared(config, &view.client, report).await;
}

fn check_pace(slot: &SlotFacts, report: &mut Report) {
    if slot.active_pid.is_some() {
        let Some(behind) = slot.lag_bytes else { return };
        let message = format!("{} of the log are not confirmed yet", size::bytes(behind));
        if behind > FAR_BEHIND {
            report.warn(
                Code::SlotLag,
                format!("{message}: the daemon does not keep up, or waits for a transaction that has been open for long"),
                "flagpost status  -- is its disk full, does the source say why it waits?",
            );
        } else {
            report.ok(Code::SlotLag, message);
        }
        return;
    }
    // Before version 17 the server does not tell.
    let Some(seconds) = slot.inactive_seconds() else { return };
    let message = format!("nobody has read the slot for {}", span(seconds));
    if seconds > LONG {
        report.warn(
            Code::SlotInactive,
            message,
            "flagpost run  -- or, if it is not to run any more: flagpost uninstall",
        );
    } else {
        report.ok(Code::SlotInactive, message);
    }
}

fn check_cost(config: &Config, cost: &SlotCost, report: &mut Report) {
    check_limit(cost, report);
    check_reserve(cost, report);
    check_failover(&config.names.slot, cost, report);
    check_catalog(cost, report);
    check_spill(&config.names.slot, cost, report);
}

fn check_limit(cost: &SlotCost, report: &mut Report) {
    let code = Code::SlotLimit;
    let set =
        |size: &str| format!("ALTER SYSTEM SET max_slot_wal_keep_size = '{size}'; SELECT pg_reload_conf();");
    if cost.limit_mib < 0 {
        report.warn(
            code,
            "nothing limits what a slot holds back: a flagpost that stays away fills the server's disk",
            format!(
                "{}  -- some part of what is free on that disk; beyond it the slot is lost, and the disk is not",
                set("20GB")
            ),
        );
    } else if cost.limit_mib < SMALL_LIMIT {
        report.warn(
            code,
            format!(
                "a slot may hold back {} only: a burst of changes while flagpost is away, and the slot is lost",
                size::bytes(cost.limit_mib << 20)
            ),
            set("20GB"),
        );
    } else {
        report.ok(code, format!("a slot may hold back {}", size::bytes(cost.limit_mib << 20)));
    }
}

fn check_reserve(cost: &SlotCost, report: &mut Report) {
    let (code, Some(safe)) = (Code::SlotReserve, cost.safe_bytes) else { return };
    let message =
        format!("{} more may be written before the server gives the slot up", size::bytes(safe.max(0)));
    if safe < (cost.limit_mib << 20) / 5 {
        report.warn(
            code,
            message,
            "flagpost run  -- reads it; or more room: ALTER SYSTEM SET max_slot_wal_keep_size = …; SELECT pg_reload_conf();",
        );
    } else {
        report.ok(code, message);
    }
}

fn check_failover(slot: &str, cost: &SlotCost, report: &mut Report) {
    let code = Code::SlotFailover;
    match cost.has_failover {
        Some(true) => report.ok(code, "the slot outlives a failover to a standby that synchronises slots"),
        Some(false) if cost.standbys > 0 => report.warn(
            code,
            format!(
                "standbys follow this server ({}), and our slot is lost in a failover: flagpost must begin anew then",
                size::counted(cost.standbys, "standby slot")
            ),
            format!(
                "ALTER_REPLICATION_SLOT {slot} (FAILOVER true);  -- over a replication connection (psql 'dbname=… \
                 replication=database'), while flagpost is stopped; the standby needs sync_replication_slots = on"
            ),
        ),
        Some(false) | None => {}
    }
}

fn check_catalog(cost: &SlotCost, report: &mut Report) {
    let (code, Some(age)) = (Code::SlotCatalog, cost.catalog_age) else { return };
    let message =
        format!("the slot keeps the catalogue's rows of the last {}", size::counted(age, "transaction"));
    if age > OLD_CATALOG {
        report.warn(
            code,
            format!("{message}: VACUUM cannot take them away"),
            "flagpost run  -- moves the slot on; or, if it is not to run any more: flagpost uninstall",
        );
    } else {
        report.ok(code, message);
    }
}

fn check_spill(slot: &str, cost: &SlotCost, report: &mut Report) {
    let (code, Some((transactions, bytes))) = (Code::SlotSpill, cost.spilled) else { return };
    let message = format!(
        "{} went to the server's disk to be decoded ({}), since its statistics began",
        size::counted(transactions, "transaction"),
        size::bytes(bytes)
    );
    if bytes > MUCH_SPILLED {
        report.warn(
            code,
            message,
            format!(
                "ALTER SYSTEM SET logical_decoding_work_mem = '256MB'; SELECT pg_reload_conf();  -- memory of each walsender\n\
                 SELECT pg_stat_reset_replication_slot('{slot}');  -- begins to count anew"
            ),
        );
    } else {
        report.ok(code, message);
    }
}

async fn check_others(config: &Config, client: &Client, report: &mut Report) {
    let code = Code::OtherSlots;
    match unread_slots(client, &config.database, &config.names.slot).await {
        Err(error) => report.error(code, &error),
        Ok(others) if others.is_empty() => {
            report.ok(code, "no other logical slot of this database is unread")
        }
        Ok(others) => {
            for other in others {
                // Whole bytes of a log fit an f64 and an i64.
                #[allow(clippy::cast_possible_truncation, reason = "a size")]
                let held = size::bytes(other.amount as i64);
                report.warn(
                    code,
                    format!(
                        "nobody reads slot {:?}, and the server keeps {held} of its log for it: is it left over from another \
                         flagpost or another program?",
                        other.name
                    ),
                    format!("SELECT pg_drop_replication_slot('{}');  -- if nobody needs it", other.name),
                );
            }
        }
    }
}

async fn check_open(config: &Config, client: &Client, report: &mut Report) {
    let code = Code::OldTransactions;
    match open_transactions(client, &config.database).await {
        Err(error) => report.error(code, &error),
        Ok(open) => match oldest(&open) {
            None => report.ok(code, "no transaction that we can see has been open for an hour"),
            Some((oldest, count)) => report.warn(
                code,
                format!(
                    "{} been open for more than an hour, the oldest (process {}) for {}: the server keeps log and dead rows for \
                     it, and no slot can be made until it ends",
                    if count == 1 { "1 transaction has".to_owned() } else { format!("{count} transactions have") },
                    oldest.name,
                    span(oldest.amount)
                ),
                format!("SELECT pg_terminate_backend({});  -- if nobody needs it", oldest.name),
            ),
        },
    }
}

async fn check_prepared(config: &Config, client: &Client, report: &mut Report) {
    let code = Code::PreparedTransactions;
    match prepared_transactions(client, &config.database).await {
        Err(error) => report.error(code, &error),
        Ok(prepared) => match oldest(&prepared) {
            None => report.ok(code, "none has waited for an hour"),
            Some((oldest, _)) => report.warn(
                code,
                format!(
                    "transaction {:?} was prepared {} ago and nobody ends it: the server keeps log and locks for it",
                    one_line(&oldest.name),
                    span(oldest.amount)
                ),
                format!("ROLLBACK PREPARED '{}';  -- or COMMIT PREPARED", one_line(&oldest.name).replace('\'', "''")),
            ),
        },
    }
}

/// The oldest that is older than [`LONG`], and how many are. They come oldest first.
fn oldest(all: &[Aged]) -> Option<(&Aged, usize)> {
    let old = all.iter().filter(|one| one.amount > LONG);
    Some((old.clone().next()?, old.count()))
}

fn span(seconds: f64) -> String {
    size::span(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(cost: &SlotCost) -> String {
        let mut report = Report::default();
        check_limit(cost, &mut report);
        check_reserve(cost, &mut report);
        check_catalog(cost, &mut report);
        check_spill("flagpost", cost, &mut report);
        let json = report.to_json();
        let all = json["checks"].as_array().into_iter().flatten();
        all.map(|check| format!("{} {}\n", check["code"], check["status"]).replace('"', "")).collect()
    }

    #[test]
    fn what_a_slot_costs_is_told_by_how_dangerous_it_is() {
        let well = SlotCost {
            limit_mib: 20 << 10,
            safe_bytes: Some(19 << 30),
            catalog_age: Some(10),
            spilled: Some((1, 1 << 20)),
            ..SlotCost::default()
        };
        assert_eq!(report(&well), "slot-limit ok\nslot-reserve ok\nslot-catalog ok\nslot-spill ok\n");
        let ill = SlotCost {
            limit_mib: 512,
            safe_bytes: Some(50 << 20),
            catalog_age: Some(OLD_CATALOG + 1),
            spilled: Some((9, MUCH_SPILLED + 1)),
            ..SlotCost::default()
        };
        assert_eq!(report(&ill), "slot-limit warn\nslot-reserve warn\nslot-catalog warn\nslot-spill warn\n");
        let unlimited = SlotCost { limit_mib: -1, ..SlotCost::default() };
        assert_eq!(report(&unlimited), "slot-limit warn\n");
    }

    #[test]
    fn a_slot_that_a_failover_loses_is_told_where_there_are_standbys() {
        let told = |has_failover, standbys| {
            let mut report = Report::default();
            check_failover(
                "flagpost",
                &SlotCost { has_failover, standbys, ..SlotCost::default() },
                &mut report,
            );
            report.to_json()["checks"].clone()
        };
        let warned = told(Some(false), 2);
        assert_eq!((&warned[0]["code"], &warned[0]["status"]), (&"slot-failover".into(), &"warn".into()));
        let mend = warned[0]["mend"].as_str().unwrap_or_default();
        assert!(mend.starts_with("ALTER_REPLICATION_SLOT flagpost (FAILOVER true);  -- "), "{mend}");
        assert_eq!(told(Some(true), 2)[0]["status"], "ok");
        for untold in [told(Some(false), 0), told(None, 2)] {
            assert_eq!(untold.as_array().map(Vec::len), Some(0), "before version 17 nobody tells: {untold}");
        }
    }

    #[test]
    fn a_slot_that_is_far_behind_or_that_nobody_reads_is_told() {
        let told = |slot: &SlotFacts| {
            let mut report = Report::default();
            check_pace(slot, &mut report);
            let json = report.to_json();
            let all = json["checks"].as_array().into_iter().flatten();
            all.map(|one| format!("{} {} {}", one["code"], one["status"], one["mend"]).replace('"', ""))
                .collect::<String>()
        };
        let idle = SlotFacts::sample();
        assert_eq!(told(&idle), "slot-inactive ok null");
        assert!(
            told(&SlotFacts { inactive_seconds: Some(LONG + 1.0), ..idle.clone() })
                .starts_with("slot-inactive warn flagpost run  -- ")
        );
        assert_eq!(told(&SlotFacts { inactive_seconds: None, ..idle.clone() }), "");
        let read = SlotFacts { active_pid: Some(7), ..idle };
        assert_eq!(told(&read), "slot-lag ok null");
        assert!(
            told(&SlotFacts { lag_bytes: Some(FAR_BEHIND + 1), ..read })
                .starts_with("slot-lag warn flagpost status  -- ")
        );
    }

    #[test]
    fn only_what_has_been_there_for_long_is_told() {
        let aged = |amount| Aged { name: "x".into(), amount };
        assert!(oldest(&[aged(3_599.0), aged(1.0)]).is_none());
        let all = [aged(9_000.0), aged(4_000.0), aged(10.0)];
        assert_eq!(oldest(&all).map(|(one, count)| (one.amount, count)), Some((9_000.0, 2)));
    }
}
