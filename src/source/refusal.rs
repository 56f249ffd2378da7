//! What the server's errors mean: SQLSTATE in (PostgreSQL manual, "PostgreSQL Error Codes"), kind and advice out. The one
//! place for both kinds of connection.

use super::conn_info::ConnInfo;
use crate::error::{Error, Kind, RECOVER};

/// The error for an `ErrorResponse` with this SQLSTATE and message, while `doing` something ("reading slot …").
pub(crate) fn refusal(info: &ConnInfo, doing: &str, sqlstate: &str, message: &str) -> Error {
    let place = info.shown();
    let user = &info.user;
    // The server's message may have several lines; an operator's error has one.
    let message = message.replace('\n', " ");
    let told =
        |kind: Kind, advice: &str| Error::new(kind, format!("{doing} at {place}: {message}: {advice}"));
    match sqlstate {
        "28P01" => told(
            Kind::DatabaseRefuses,
            "correct the password (database.url, database.password_file or the credential database-password)",
        ),
        "28000" if message.contains("replication") => told(
            Kind::DatabaseRefuses,
            &format!("run ALTER ROLE \"{user}\" REPLICATION, or let it in in pg_hba.conf"),
        ),
        "28000" => told(
            Kind::DatabaseRefuses,
            "let this user, database and address in in pg_hba.conf, or correct database.url",
        ),
        "3D000" => told(Kind::DatabaseRefuses, "correct the database's name in database.url"),
        // "must be superuser or replication role to start walsender"; from PostgreSQL 16 on "permission denied to start WAL
        // sender", or "to use replication slots".
        "42501" if message.contains("replication") || message.contains("WAL sender") => {
            told(Kind::DatabaseRefuses, &format!("run ALTER ROLE \"{user}\" REPLICATION"))
        }
        "42501" => told(Kind::DatabaseRefuses, "grant it: \"flagpost check\" shows the statement"),
        "42601" if message.contains("IDENTIFY_SYSTEM") || doing.contains("replication") => told(
            Kind::DatabaseRefuses,
            "a pooler stands between, which drops replication=database: give database.url the server's own host and port",
        ),
        // PgBouncer's own words; before version 1.23 it knows no replication, and it never knows all startup parameters.
        "08P01" if message.contains("startup parameter") || message.contains("pooling mode") => told(
            Kind::DatabaseRefuses,
            "a pooler stands between: give database.url the server's own host and port",
        ),
        "53300" => {
            told(Kind::DatabaseUnreachable, "raise max_connections or max_wal_senders, or free a connection")
        }
        "53400" => told(
            Kind::DatabaseRefuses,
            "raise max_replication_slots (needs a restart of the server) or drop a slot that nobody needs",
        ),
        "55006" => told(
            Kind::SlotInUse,
            "stop the other reader, or give this flagpost a slot of its own (source.slot)",
        ),
        "42704" if message.contains("replication slot") => told(Kind::SlotLost, RECOVER),
        "42704" if message.contains("publication") => told(Kind::DatabaseRefuses, "run \"flagpost setup\""),
        "55000" if message.contains("wal_level") || message.contains("logical decoding requires") => {
            told(Kind::DatabaseRefuses, "run ALTER SYSTEM SET wal_level = logical and restart the server")
        }
        "55000" if message.contains("replication slot") => {
            told(Kind::SlotLost, &format!("the server has given the slot up: {RECOVER}"))
        }
        "42P01" | "42703" => told(
            Kind::DatabaseRefuses,
            "this is no Flagsmith database that flagpost knows: \"flagpost check\" lists what is missing",
        ),
        // A deadlock, a timeout of the server's or the role's.
        "57014" | "55P03" => told(
            Kind::DatabaseUnreachable,
            "trying again may help; a timeout of this role's may be too short",
        ),
        // What the statement had found was dropped before it came to use it: asked again, it will not be found.
        "XX000"
            if message.starts_with("could not open relation")
                || message.starts_with("cache lookup failed") =>
        {
            told(Kind::DatabaseUnreachable, "trying again helps")
        }
        code if code.starts_with("40") => told(Kind::DatabaseUnreachable, "trying again helps"),
        // Starting up, shutting down, a lost connection, out of resources: it passes.
        code if code.starts_with("57P") || code.starts_with("08") || code.starts_with("53") => {
            told(Kind::DatabaseUnreachable, "trying again helps once the server is up")
        }
        code => told(Kind::DatabaseRefuses, &format!("SQLSTATE {code}, see the server's log")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_to_do_and_has_the_contracts_exit_code() {
        let info = ConnInfo::parse("postgres://app:sekrit@db/flagsmith", None).unwrap();
        for (sqlstate, message, part, exit) in [
            ("28P01", "password authentication failed for user \"app\"", "password_file", 3),
            ("3D000", "database \"flagsmith\" does not exist", "database's name", 3),
            ("42501", "must be superuser or replication role to use replication slots", "REPLICATION", 3),
            ("42501", "permission denied to start WAL sender", "ALTER ROLE \"app\" REPLICATION", 3),
            ("42501", "permission denied to use replication slots", "ALTER ROLE \"app\" REPLICATION", 3),
            ("42501", "permission denied for table x", "flagpost check", 3),
            ("42601", "syntax error at or near \"IDENTIFY_SYSTEM\"", "pooler", 3),
            ("08P01", "unsupported startup parameter: replication", "pooler", 3),
            ("08P01", "invalid message format", "once the server is up", 3),
            ("55006", "replication slot \"flagpost\" is active for PID 7", "source.slot", 3),
            ("42704", "replication slot \"flagpost\" does not exist", "setup", 4),
            ("55000", "logical decoding requires wal_level >= logical", "wal_level = logical", 3),
            ("55000", "can no longer get changes from replication slot \"flagpost\"", "given the slot up", 4),
            ("57P03", "the database system is starting up", "once the server is up", 3),
            ("XX000", "two\nlines", "SQLSTATE XX000", 3),
        ] {
            let error = refusal(&info, "reading", sqlstate, message);
            let text = error.to_string();
            assert!(text.contains(part), "{text}");
            assert_eq!(error.kind().exit_code(), exit, "{text}");
            assert_eq!(text.lines().count(), 1);
            assert!(!text.contains("sekrit"));
        }
    }
}
