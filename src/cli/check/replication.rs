//! What only logical replication needs: the server's log, the role's attribute, room for a slot, the slot in good order.
//! Also what the other source left behind.

use tokio_postgres::Client;

use super::code::Code;
use super::database::Pooling;
use super::ledger::Found;
use super::mode::Verdict;
use super::report::{AGAIN, Report};
use crate::cli::size;
use crate::config::Config;
use crate::error::Kind;
use crate::source::{Quota, Replication, Server, ServerFacts, SlotFacts, outbox_tables, quoted};

/// A slot that nobody reads and that holds back more log than this is worth a warning: it only grows.
const MUCH_WAL: i64 = 1 << 30;

/// What is known by now.
pub(super) struct Scene<'a> {
    pub(super) facts: &'a ServerFacts,
    pub(super) verdict: &'a Verdict,
    pub(super) pooling: Pooling,
    pub(super) ledger: Option<&'a Found>,
}

/// Returns who answers on a replication connection.
pub(super) async fn check(
    config: &Config,
    client: &Client,
    scene: &Scene<'_>,
    slot: Option<&SlotFacts>,
    report: &mut Report,
) -> Option<Server> {
    check_wal_level(scene, report);
    let may_replicate = check_role(config, scene, report);
    check_limits(scene.facts, slot, report);
    let mut server = None;
    if may_replicate && scene.pooling == Pooling::None {
        server = check_replication_connection(config, report).await;
    }
    check_slot(config, slot, scene.ledger, report);
    if let Some(slot) = slot.filter(|slot| slot.is_ours(&config.database)) {
        check_retention(slot, scene.facts, report);
    }
    check_leftover_outbox(config, client, report).await;
    server
}

/// A slot that the outbox's installation does not read.
pub(super) fn check_leftover(config: &Config, slot: Option<&SlotFacts>, report: &mut Report) {
    let slot = slot.filter(|slot| slot.is_ours(&config.database) && slot.active_pid.is_none());
    let Some(slot) = slot else { return };
    let name = &config.names.slot;
    report.warn(
        Code::LeftoverSlot,
        format!(
            "replication slot {name:?} is left over from source.mode = \"replication\": nobody reads it, and the server keeps its \
             log for it ({} by now)",
            slot.retained_bytes.map_or_else(|| "unknown".to_owned(), size::bytes)
        ),
        // A slot's name needs no escape: the configuration lets only letters, digits and underscores through.
        format!("SELECT pg_drop_replication_slot('{name}');"),
    );
}

/// Triggers that write to an outbox that nobody reads.
async fn check_leftover_outbox(config: &Config, client: &Client, report: &mut Report) {
    let code = Code::LeftoverOutbox;
    match outbox_tables(client, &config.database).await {
        Err(error) => report.error(code, &error),
        Ok(0) => {}
        Ok(tables) => report.warn(
            code,
            format!(
                "triggers on {tables} tables write every change to the outbox too, which nobody empties in source.mode = \
                 \"replication\": they cost time, and the outbox fills up"
            ),
            format!(
                "SET lock_timeout = '5s'; DROP SCHEMA flagpost CASCADE; DROP ROLE IF EXISTS {};",
                quoted(&config.outbox.owner)
            ),
        ),
    }
}

fn check_wal_level(scene: &Scene<'_>, report: &mut Report) {
    let level = &scene.facts.wal_level;
    if level == "logical" {
        report.ok(Code::WalLevel, "wal_level is logical");
        return;
    }
    report.fail(
        Code::WalLevel,
        Kind::DatabaseRefuses,
        format!("wal_level is {level}: the server does not log what logical replication needs"),
        scene.verdict.wal_level_mend(),
    );
}

fn check_role(config: &Config, scene: &Scene<'_>, report: &mut Report) -> bool {
    let user = &config.database.user;
    if scene.facts.may_replicate {
        report.ok(Code::RoleReplication, format!("role {user} may replicate"));
        return true;
    }
    let mend = match scene.verdict.service {
        Some(service) => service.grant(user),
        None => format!("ALTER ROLE {} REPLICATION;", quoted(user)),
    };
    report.fail(
        Code::RoleReplication,
        Kind::DatabaseRefuses,
        format!("role {user} lacks the REPLICATION attribute"),
        scene.verdict.or_outbox(mend),
    );
    false
}

fn check_limits(facts: &ServerFacts, slot: Option<&SlotFacts>, report: &mut Report) {
    // A slot that is there needs no other; one that is being read has its walsender.
    let is_read = slot.is_some_and(|slot| slot.active_pid.is_some());
    for (code, setting, quota, has_ours) in [
        (Code::ReplicationSlots, "max_replication_slots", facts.slots, slot.is_some()),
        (Code::WalSenders, "max_wal_senders", facts.senders, is_read),
    ] {
        let Quota { used, limit } = quota;
        if has_ours || !quota.is_exhausted() {
            report.ok(code, format!("{used} of {limit} in use ({setting})"));
            continue;
        }
        report.fail(
            code,
            Kind::DatabaseRefuses,
            format!("all {limit} are in use ({setting})"),
            format!("ALTER SYSTEM SET {setting} = {};  -- then restart the server", limit + 5),
        );
    }
}

async fn check_replication_connection(config: &Config, report: &mut Report) -> Option<Server> {
    match Replication::connect(&config.database).await {
        Ok(replication) => {
            let server = replication.server().clone();
            report.ok(
                Code::ReplicationConnection,
                format!("cluster {}, at {}", server.system_id, server.position),
            );
            Some(server)
        }
        Err(error) => {
            report.error(Code::ReplicationConnection, &error);
            None
        }
    }
}

fn check_slot(config: &Config, slot: Option<&SlotFacts>, ledger: Option<&Found>, report: &mut Report) {
    let (code, name) = (Code::Slot, &config.names.slot);
    let Some(slot) = slot else {
        if ledger.is_some_and(|ledger| ledger.checkpoint.is_some()) {
            report.fail(
                code,
                Kind::SlotLost,
                format!("replication slot {name:?} is gone, and with it what changed since: the ledger has been filled before"),
                AGAIN,
            );
        } else {
            report.warn(code, format!("replication slot {name:?} is not made yet"), "flagpost setup");
        }
        return;
    };
    if !slot.is_ours(&config.database) {
        report.fail(
            code,
            Kind::DatabaseRefuses,
            format!(
                "replication slot {name:?} is somebody else's (plugin {:?}, database {:?})",
                slot.plugin, slot.database
            ),
            "give flagpost another name with source.slot (FLAGPOST_SOURCE_SLOT)",
        );
        return;
    }
    if slot.wal_status == "lost" {
        let why = slot.invalidation.as_deref().unwrap_or("it held more than max_slot_wal_keep_size");
        report.fail(
            code,
            Kind::SlotLost,
            format!("the server has given up replication slot {name:?} ({why}): what changed since cannot be told any more"),
            AGAIN,
        );
        return;
    }
    let reader = slot.active_pid.map_or_else(
        || "nobody reads it now".to_owned(),
        |pid| format!("read by the server's process {pid}"),
    );
    report.ok(code, format!("replication slot {name:?}: {reader}, confirmed to {}", slot.confirmed));
}

fn check_retention(slot: &SlotFacts, facts: &ServerFacts, report: &mut Report) {
    let code = Code::SlotRetention;
    let Some(retained) = slot.retained_bytes else { return };
    let limit = match facts.wal_keep_size.as_str() {
        "-1" => "no limit (max_slot_wal_keep_size = -1)".to_owned(),
        size => format!("at most {size} (max_slot_wal_keep_size)"),
    };
    let message = format!(
        "the server keeps {} of its log for the slot ({}), {limit}",
        size::bytes(retained),
        slot.wal_status
    );
    if slot.wal_status == "unreserved" {
        report.warn(
            code,
            message,
            "start flagpost before the server gives the slot up, or: ALTER SYSTEM SET max_slot_wal_keep_size = -1; \
             SELECT pg_reload_conf();",
        );
    } else if slot.active_pid.is_none() && retained > MUCH_WAL {
        report.warn(
            code,
            message,
            "start it with \"flagpost run\", or drop the slot with \"flagpost uninstall\": unread, it fills the disk",
        );
    } else {
        report.ok(code, message);
    }
    if let Some(timeout) = &facts.idle_timeout {
        report.warn(
            Code::SlotIdleTimeout,
            format!(
                "the server gives up a slot that nobody reads for {timeout} (idle_replication_slot_timeout)"
            ),
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_that_only_grows_and_a_server_that_gives_unread_slots_up_are_told() {
        let told = |slot: &SlotFacts, idle_timeout: Option<&str>| {
            let facts =
                ServerFacts { idle_timeout: idle_timeout.map(str::to_owned), ..ServerFacts::sample() };
            let mut report = Report::default();
            check_retention(slot, &facts, &mut report);
            let json = report.to_json();
            let all = json["checks"].as_array().into_iter().flatten();
            all.map(|one| format!("{} {} {}\n", one["code"], one["status"], one["mend"]).replace('"', ""))
                .collect::<String>()
        };
        let little = SlotFacts::sample();
        assert_eq!(told(&little, None), "slot-retention ok null\n");
        let much = SlotFacts { retained_bytes: Some(MUCH_WAL + 1), ..little.clone() };
        assert!(
            told(&much, None).starts_with("slot-retention warn start it with \\flagpost run"),
            "{}",
            told(&much, None)
        );
        let read = SlotFacts { active_pid: Some(7), ..much };
        assert_eq!(told(&read, None), "slot-retention ok null\n", "it is being read");
        let unreserved = SlotFacts { wal_status: "unreserved".into(), ..read };
        assert!(told(&unreserved, None).contains("ALTER SYSTEM SET max_slot_wal_keep_size = -1;"));
        assert_eq!(
            told(&little, Some("5min")),
            "slot-retention ok null\nslot-idle-timeout warn ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT \
             pg_reload_conf();\n"
        );
    }
}
