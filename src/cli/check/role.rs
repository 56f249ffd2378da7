//! Our role: that it may enough is looked at where it matters (`replication`, `tables`, `outbox`); here, that it may not more,
//! that it lasts, and that nothing is hidden from it.

use std::time::Duration;

use tokio_postgres::Client;

use super::code::Code;
use super::report::Report;
use super::session::grant_views;
use crate::cli::size;
use crate::config::{Config, Mode};
use crate::error::Kind;
use crate::schema::Table;
use crate::source::{RoleFacts, quoted, role_facts};

/// Sessions that a daemon and a command beside it need.
const SESSIONS: i64 = 5;
/// Seconds before the password's end from which on it is worth a warning.
const EXPIRES_SOON: f64 = 14.0 * 86_400.0;

pub(super) async fn check(config: &Config, client: &Client, report: &mut Report) {
    let facts = match role_facts(client, &config.database, &config.names.schema).await {
        Ok(facts) => facts,
        Err(error) => {
            return report.refused(Code::RoleExcess, &error, grant_views(&config.database.user));
        }
    };
    let role = &config.database.user;
    check_row_security(role, &facts, report);
    check_excess(config, &facts, report);
    check_passwords(config, &facts, report);
    check_expiry(role, &facts, report);
    check_connections(role, &facts, report);
}

fn check_row_security(role: &str, facts: &RoleFacts, report: &mut Report) {
    let code = Code::RowSecurity;
    if facts.hidden.is_empty() {
        return report.ok(code, "no row is hidden from us");
    }
    report.fail(
        code,
        Kind::DatabaseRefuses,
        format!(
            "row-level security hides rows of {} from role {role}: the mirror would lack them, and what is told would be wrong",
            facts.hidden.join(", ")
        ),
        format!("ALTER ROLE {} BYPASSRLS;", quoted(role)),
    );
}

fn check_excess(config: &Config, facts: &RoleFacts, report: &mut Report) {
    let (code, role) = (Code::RoleExcess, &config.database.user);
    let what = if facts.is_superuser {
        "is a superuser".to_owned()
    } else if facts.writable.is_empty() {
        return report.ok(code, format!("role {role} may write to none of Flagsmith's tables"));
    } else {
        format!("may write to {} of Flagsmith's tables", facts.writable.len())
    };
    let mode = if config.mode == Mode::Outbox { " --mode outbox" } else { "" };
    report.warn(
        code,
        format!("role {role} {what}: the daemon needs to read, and whoever takes it over could change flags"),
        format!(
            "flagpost setup{mode} --print --role flagpost  -- the SQL that makes a lesser role; give it to database.url"
        ),
    );
}

fn check_passwords(config: &Config, facts: &RoleFacts, report: &mut Report) {
    // A superuser may read everything: that is told already.
    if !facts.reads_passwords || facts.is_superuser {
        return;
    }
    let (role, table) = (quoted(&config.database.user), quoted(Table::User.name()));
    let table = format!("{}.{table}", quoted(&config.names.schema));
    report.warn(
        Code::PasswordHashes,
        format!("role {} may read the users' password hashes, which flagpost has no use for", config.database.user),
        format!("REVOKE SELECT ON {table} FROM {role};  -- then: flagpost check, which shows the GRANT of single columns"),
    );
}

fn check_expiry(role: &str, facts: &RoleFacts, report: &mut Report) {
    let (code, Some(seconds)) = (Code::RoleExpiry, facts.expires_in) else {
        return report.ok(Code::RoleExpiry, format!("role {role} does not expire"));
    };
    let span = size::span(Duration::try_from_secs_f64(seconds.abs()).unwrap_or_default());
    let mend = format!("ALTER ROLE {} VALID UNTIL 'infinity';", quoted(role));
    if seconds < 0.0 {
        report.warn(
            code,
            format!("the password of role {role} expired {span} ago: the next login may be refused"),
            mend,
        );
    } else if seconds < EXPIRES_SOON {
        report.warn(code, format!("the password of role {role} expires in {span}"), mend);
    } else {
        report.ok(code, format!("the password of role {role} is good for {span}"));
    }
}

fn check_connections(role: &str, facts: &RoleFacts, report: &mut Report) {
    let (code, quota) = (Code::RoleConnections, facts.connections);
    if quota.limit < 0 || facts.is_superuser {
        return report.ok(code, format!("role {role} has no limit of connections"));
    }
    let message = format!("role {role} may have {} connections", quota.limit);
    if quota.limit < SESSIONS {
        let mend = format!("ALTER ROLE {} CONNECTION LIMIT -1;", quoted(role));
        report.warn(code, format!("{message}: a daemon and a command beside it need {SESSIONS}"), mend);
    } else {
        report.ok(code, message);
    }
}
