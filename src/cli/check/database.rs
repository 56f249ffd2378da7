//! The server: reachable, recent enough, set up for logical replication, and the slot in good order.

use tokio_postgres::Client;

use super::ledger::Found;
use super::report::{Group, Report};
use crate::cli::size;
use crate::config::Config;
use crate::error::Kind;
use crate::source::{
    Quota, Replication, Server, ServerFacts, SlotFacts, connect, quoted, server_facts, slot_facts,
};

/// `server_version_num` of the first version that is supported.
const OLDEST: i32 = 140_000;
/// `server_version_num` of the first version that decodes on a standby.
const STANDBY_DECODES: i32 = 160_000;
/// A slot that nobody reads and that holds back more log than this is worth a warning: it only grows.
const MUCH_WAL: i64 = 1 << 30;

/// What the later checks build on.
pub(super) struct View {
    /// An SQL session.
    pub(super) client: Client,
    /// Who answers on a replication connection.
    pub(super) server: Option<Server>,
    /// The slot, if it is there and ours.
    pub(super) slot: Option<SlotFacts>,
}

/// `None` where nothing of the database can be looked at.
pub(super) async fn check(config: &Config, ledger: Option<&Found>, report: &mut Report) -> Option<View> {
    let client = match connect(&config.database).await {
        Ok(client) => client,
        Err(error) => {
            report.error(Group::Database, "connect", &error);
            return None;
        }
    };
    let facts = match server_facts(&client, &config.database).await {
        Ok(facts) => facts,
        Err(error) => {
            report.error(Group::Database, "settings", &error);
            return None;
        }
    };
    report.ok(Group::Database, "connect", format!("{} as {}", config.database.shown(), config.database.user));
    if !check_version(&facts, report) {
        return None;
    }
    check_wal_level(&facts, report);
    let may_replicate = check_role(config, &facts, report);
    let slot = match slot_facts(&client, &config.database, &config.names.slot).await {
        Ok(slot) => slot,
        Err(error) => {
            report.error(Group::Replication, "slot", &error);
            return None;
        }
    };
    check_limits(&facts, slot.as_ref(), report);
    let mut server = None;
    if may_replicate {
        server = check_replication_connection(config, report).await;
    }
    check_slot(config, slot.as_ref(), ledger, report);
    let slot = slot.filter(|slot| slot.is_ours(&config.database));
    if let Some(slot) = &slot {
        check_retention(slot, &facts, report);
    }
    Some(View { client, server, slot })
}

fn check_version(facts: &ServerFacts, report: &mut Report) -> bool {
    let version = &facts.version_text;
    if facts.version < OLDEST {
        report.fail(
            Group::Database,
            "server-version",
            Kind::DatabaseRefuses,
            format!("PostgreSQL {version}: flagpost needs version 14 or later"),
            "upgrade the server",
        );
        return false;
    }
    report.ok(Group::Database, "server-version", format!("PostgreSQL {version}"));
    if facts.is_standby && facts.version < STANDBY_DECODES {
        report.fail(
            Group::Database,
            "standby",
            Kind::DatabaseRefuses,
            "the server is a standby, and this version cannot decode there",
            "give database.url the primary's host",
        );
    } else if facts.is_standby {
        report.warn(
            Group::Database,
            "standby",
            "the server is a standby: publication and slot must be made elsewhere, and the slot ends with a promotion",
            "give database.url the primary's host",
        );
    }
    true
}

fn check_wal_level(facts: &ServerFacts, report: &mut Report) {
    if facts.wal_level == "logical" {
        report.ok(Group::Database, "wal-level", "wal_level is logical");
        return;
    }
    report.fail(
        Group::Database,
        "wal-level",
        Kind::DatabaseRefuses,
        format!("wal_level is {}: the server does not log what logical replication needs", facts.wal_level),
        "ALTER SYSTEM SET wal_level = logical;  -- then restart the server\n\
         -- RDS, Aurora: rds.logical_replication = 1; Cloud SQL: cloudsql.logical_decoding = on",
    );
}

fn check_role(config: &Config, facts: &ServerFacts, report: &mut Report) -> bool {
    let user = &config.database.user;
    if facts.may_replicate {
        report.ok(Group::Database, "role-replication", format!("role {user} may replicate"));
        return true;
    }
    let role = quoted(user);
    report.fail(
        Group::Database,
        "role-replication",
        Kind::DatabaseRefuses,
        format!("role {user} lacks the REPLICATION attribute"),
        format!("ALTER ROLE {role} REPLICATION;  -- on RDS and Aurora: GRANT rds_replication TO {role};"),
    );
    false
}

fn check_limits(facts: &ServerFacts, slot: Option<&SlotFacts>, report: &mut Report) {
    // A slot that is there needs no other; one that is being read has its walsender.
    let is_read = slot.is_some_and(|slot| slot.active_pid.is_some());
    for (code, setting, quota, has_ours) in [
        ("replication-slots", "max_replication_slots", facts.slots, slot.is_some()),
        ("wal-senders", "max_wal_senders", facts.senders, is_read),
    ] {
        let Quota { used, limit } = quota;
        if has_ours || !quota.is_exhausted() {
            report.ok(Group::Database, code, format!("{used} of {limit} in use ({setting})"));
            continue;
        }
        report.fail(
            Group::Database,
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
                Group::Replication,
                "replication-connection",
                format!("cluster {}, at {}", server.system_id, server.position),
            );
            Some(server)
        }
        Err(error) => {
            report.error(Group::Replication, "replication-connection", &error);
            None
        }
    }
}

fn check_slot(config: &Config, slot: Option<&SlotFacts>, ledger: Option<&Found>, report: &mut Report) {
    let (code, name) = ("slot", &config.names.slot);
    let group = Group::Replication;
    let Some(slot) = slot else {
        if ledger.is_some_and(|ledger| ledger.checkpoint.is_some()) {
            report.fail(
                group,
                code,
                Kind::SlotLost,
                format!("replication slot {name:?} is gone, and with it what changed since: the ledger has been filled before"),
                "flagpost setup --resnapshot",
            );
        } else {
            report.warn(group, code, format!("replication slot {name:?} is not made yet"), "flagpost setup");
        }
        return;
    };
    if !slot.is_ours(&config.database) {
        report.fail(
            group,
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
            group,
            code,
            Kind::SlotLost,
            format!("the server has given up replication slot {name:?} ({why}): what changed since cannot be told any more"),
            "flagpost setup --resnapshot",
        );
        return;
    }
    let reader = slot.active_pid.map_or_else(
        || "nobody reads it now".to_owned(),
        |pid| format!("read by the server's process {pid}"),
    );
    report.ok(group, code, format!("replication slot {name:?}: {reader}, confirmed to {}", slot.confirmed));
}

fn check_retention(slot: &SlotFacts, facts: &ServerFacts, report: &mut Report) {
    let (group, code) = (Group::Replication, "slot-retention");
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
            group,
            code,
            message,
            "start flagpost before the server gives the slot up, or: ALTER SYSTEM SET max_slot_wal_keep_size = -1; \
             SELECT pg_reload_conf();",
        );
    } else if slot.active_pid.is_none() && retained > MUCH_WAL {
        report.warn(
            group,
            code,
            message,
            "start it with \"flagpost run\", or drop the slot with \"flagpost uninstall\": unread, it fills the disk",
        );
    } else {
        report.ok(group, code, message);
    }
    if let Some(timeout) = &facts.idle_timeout {
        report.warn(
            group,
            "slot-idle-timeout",
            format!(
                "the server gives up a slot that nobody reads for {timeout} (idle_replication_slot_timeout)"
            ),
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        );
    }
}
