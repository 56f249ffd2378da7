//! Our sessions on the server: what would end them, who could listen, and what the server keeps of what it tells.

use std::net::IpAddr;

use tokio_postgres::Client;

use super::code::Code;
use super::database::View;
use super::report::Report;
use crate::change::Micros;
use crate::config::{Config, Mode};
use crate::source::{Host, SessionFacts, SslMode, TlsFacts, quoted, session_facts, tls_facts};

/// A daemon needs so many: the source, the watch over it, fetching rows, and a command of an operator's.
const SESSIONS: i64 = 5;
/// So many more connections the mend asks for, where too few are left.
const MORE: i64 = 20;
/// What is read of the server's catalogue, and may have been taken away from PUBLIC.
const VIEWS: [&str; 9] = [
    "pg_database",
    "pg_prepared_xacts",
    "pg_replication_slots",
    "pg_roles",
    "pg_settings",
    "pg_stat_activity",
    "pg_stat_database",
    "pg_stat_replication",
    "pg_stat_replication_slots",
];
/// Milliseconds. Filling a large mirror is one statement for each table.
const SHORT_STATEMENT: i64 = 600_000;
/// Milliseconds. A daemon that is busy for longer than this would lose its stream again and again.
const SHORT_SENDER: i64 = 10_000;
const DAY: i64 = 86_400;
/// Days before its expiry from which on a certificate is worth a warning.
pub(super) const EXPIRES_SOON: i64 = 14;

pub(super) async fn check(config: &Config, view: &View, report: &mut Report) {
    check_settings(config, &view.client, report).await;
    match tls_facts(&config.database).await {
        Err(error) => report.error(Code::DatabaseTls, &error),
        Ok(facts) => {
            check_tls(config, facts, report);
            check_certificate(facts, report);
        }
    }
}

/// The mend where the server does not tell a role what it tells everybody else.
pub(super) fn grant_views(role: &str) -> String {
    let views: Vec<String> = VIEWS.iter().map(|view| format!("pg_catalog.{view}")).collect();
    format!("GRANT SELECT ON {} TO {};  -- as a superuser, in this database", views.join(", "), quoted(role))
}

async fn check_settings(config: &Config, client: &Client, report: &mut Report) {
    let facts = match session_facts(client, &config.database).await {
        Ok(facts) => facts,
        Err(error) => {
            return report.refused(Code::Settings, &error, grant_views(&config.database.user));
        }
    };
    let used = format!("{} of {} connections in use", facts.connections.used, facts.connections.limit);
    if facts.connections.limit - facts.connections.used < SESSIONS {
        report.warn(
            Code::ServerConnections,
            format!("{used}: flagpost needs up to {SESSIONS}"),
            format!(
                "ALTER SYSTEM SET max_connections = {};  -- then restart the server; or let Flagsmith have fewer",
                facts.connections.limit + facts.reserved + MORE
            ),
        );
    } else {
        report.ok(Code::ServerConnections, used);
    }
    if facts.encoding == "SQL_ASCII" {
        report.warn(
            Code::ServerEncoding,
            "the database's encoding is SQL_ASCII: the server does not know what its texts are, and flagpost stops at one that is no UTF-8",
            "dump the database, and restore it into one that was made with ENCODING 'UTF8'",
        );
    } else {
        report.ok(Code::ServerEncoding, facts.encoding.clone());
    }
    if facts.is_durable {
        report.ok(Code::ServerDurability, "what is committed outlives a crash");
    } else {
        report.warn(
            Code::ServerDurability,
            "fsync or full_page_writes is off: a crash of the server can take back changes that were told",
            "ALTER SYSTEM SET fsync = on; ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf();",
        );
    }
    check_timeouts(config, &facts, report);
    if config.mode == Mode::Replication {
        check_sender(config, &facts, report);
    }
}

fn check_timeouts(config: &Config, facts: &SessionFacts, report: &mut Report) {
    let role = quoted(&config.database.user);
    let mut short = Vec::new();
    if (1..SHORT_STATEMENT).contains(&facts.statement_timeout) {
        short.push(("statement_timeout", facts.statement_timeout, "the mirror may not be filled in time"));
    }
    if facts.idle_session_timeout > 0 {
        short.push(("idle_session_timeout", facts.idle_session_timeout, "sessions that wait are ended"));
    }
    if short.is_empty() {
        return report.ok(Code::SessionTimeouts, "nothing ends our sessions");
    }
    let what: Vec<String> =
        short.iter().map(|(name, value, why)| format!("{name} is {value} ms: {why}")).collect();
    let mend: Vec<String> =
        short.iter().map(|(name, _, _)| format!("ALTER ROLE {role} SET {name} = 0;")).collect();
    report.warn(Code::SessionTimeouts, what.join("; "), mend.join("\n"));
}

fn check_sender(config: &Config, facts: &SessionFacts, report: &mut Report) {
    let (code, timeout) = (Code::SenderTimeout, facts.sender_timeout);
    let mend = format!("ALTER ROLE {} SET wal_sender_timeout = '60s';", quoted(&config.database.user));
    if timeout == 0 {
        report.warn(
            code,
            "wal_sender_timeout is 0: the server does not notice when a stream is dead, and a daemon that comes back finds its \
             slot in use",
            mend,
        );
    } else if timeout < SHORT_SENDER {
        report.warn(
            code,
            format!(
                "wal_sender_timeout is {timeout} ms: a moment's delay ends the stream, and it begins again"
            ),
            mend,
        );
    } else {
        report.ok(code, format!("wal_sender_timeout is {} s", timeout / 1_000));
    }
}

fn check_tls(config: &Config, facts: TlsFacts, report: &mut Report) {
    let (code, info) = (Code::DatabaseTls, &config.database);
    let mend = "add sslmode=verify-full to database.url, and sslrootcert=FILE where the issuer is your own";
    match &info.host {
        Host::Unix(_) => return report.ok(code, "a Unix socket needs none"),
        Host::Tcp(host) if is_this_machine(host) => {
            return report.ok(code, "the server is on this machine");
        }
        Host::Tcp(_) => {}
    }
    if !facts.is_encrypted {
        return report.warn(
            code,
            "the connection is not encrypted: secrets of webhooks and the values of flags can be read on the way",
            format!("turn ssl on at the server, and {mend}"),
        );
    }
    match info.ssl_mode {
        SslMode::VerifyFull => report.ok(code, "encrypted, the server's name is verified"),
        SslMode::VerifyCa => report.ok(code, "encrypted, the certificate's issuer is verified"),
        SslMode::Disable | SslMode::Prefer | SslMode::Require => report.warn(
            code,
            "the connection is encrypted, but nothing verifies who answers: somebody on the way can take the server's place",
            mend,
        ),
    }
}

/// Whether a host of a URL is the machine that we run on.
pub(super) fn is_this_machine(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

fn check_certificate(facts: TlsFacts, report: &mut Report) {
    let (code, Some(at)) = (Code::DatabaseCertificate, facts.expires_at) else { return };
    let days = days_left(at, Micros::now());
    let mend = "renew the server's certificate (ssl_cert_file), then SELECT pg_reload_conf();";
    if days < 0 {
        report.warn(code, format!("the server's certificate expired {} days ago", -days), mend);
    } else if days < EXPIRES_SOON {
        report.warn(code, format!("the server's certificate expires in {days} days"), mend);
    } else {
        report.ok(code, format!("the server's certificate is good for {days} days"));
    }
}

/// Whole days from `now` to a moment in seconds since 1970; negative once it has passed.
pub(super) fn days_left(at: i64, now: Micros) -> i64 {
    (at - now.0.div_euclid(1_000_000)).div_euclid(DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_of_yesterday_has_expired_and_one_of_today_has_not() {
        let now = Micros(10 * DAY * 1_000_000);
        for (at, days) in
            [(10 * DAY, 0), (10 * DAY - 1, -1), (11 * DAY, 1), (9 * DAY, -1), (24 * DAY + 5, 14)]
        {
            assert_eq!(days_left(at, now), days);
        }
    }

    #[test]
    fn this_machine_has_several_names() {
        for host in ["localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]", "::ffff:127.0.0.1"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in ["db.internal", "10.0.0.1", "localhost.example.com"] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
