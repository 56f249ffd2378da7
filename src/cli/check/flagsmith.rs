//! Flagsmith itself, as far as its database tells: how new it is, and whether it still sends webhooks of its own.

use std::time::Duration;

use tokio_postgres::Client;

use super::code::Code;
use super::report::Report;
use crate::cli::printable::one_line;
use crate::cli::size;
use crate::config::Config;
use crate::source::{OwnCalls, migrations, own_calls, quoted};

/// The newest migration that is known of each application whose tables are read, by its number. Newer ones may change what
/// flagpost reads. Source: Flagsmith's repository, as of version 2.265; of `features` its last was not seen, so there is some room.
const KNOWN: [(&str, u32); 11] = [
    ("api_keys", 4),
    ("audit", 15),
    ("environments", 39),
    ("feature_versioning", 8),
    ("features", 70),
    ("multivariate", 9),
    ("organisations", 61),
    ("projects", 29),
    ("segments", 33),
    ("tags", 10),
    ("users", 45),
];
/// A queue is looked at no longer than this: another program may hold its table locked.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn check_version(config: &Config, client: &Client, report: &mut Report) {
    let (code, schema) = (Code::FlagsmithVersion, &config.names.schema);
    let all = match migrations(client, &config.database, schema).await {
        Err(error) => return report.error(code, &error),
        Ok(None) => {
            return report.ok(
                code,
                format!(
                    "Flagsmith's migrations were not looked at: if there is a table django_migrations, GRANT SELECT (app, name) ON \
                     {}.django_migrations TO {}; lets check do that",
                    quoted(schema),
                    quoted(&config.database.user)
                ),
            );
        }
        Ok(Some(all)) => all,
    };
    let is_unknown = |app: &str, name: &str| {
        let known = KNOWN.iter().find(|(known, _)| *known == app);
        known.is_some_and(|(_, known)| number(name).is_some_and(|number| number > *known))
    };
    let unknown: Vec<String> = all
        .iter()
        .filter_map(|(app, names)| Some((app, names.last()?)))
        .filter(|(app, name)| is_unknown(app, name))
        .map(|(app, name)| format!("{}.{}", one_line(app), one_line(name)))
        .collect();
    if unknown.is_empty() {
        return report.ok(code, "this Flagsmith has no migrations that flagpost does not know");
    }
    report.warn(
        code,
        format!(
            "this Flagsmith is newer than this flagpost knows (migrations {}): it reads what it knows, and what is new may be \
             missing in events",
            unknown.join(", ")
        ),
        "look whether there is a newer flagpost; what does not fit is told by flagsmith-tables",
    );
}

/// `0039` of `0039_use_no_ssrf_url_field`.
fn number(migration: &str) -> Option<u32> {
    migration.split('_').next()?.parse().ok()
}

/// Whether calls of webhooks are in Flagsmith's task queue. Left out where it cannot be seen: without the task processor Flagsmith
/// calls by itself, and nothing tells.
pub(super) async fn check_calls(config: &Config, client: &Client, report: &mut Report) {
    let code = Code::FlagsmithSends;
    let looking = own_calls(client, &config.database, &config.names.schema);
    match tokio::time::timeout(LOOK_WITHIN, looking).await {
        Err(_) | Ok(Ok(None)) => {}
        Ok(Err(error)) => report.error(code, &error),
        Ok(Ok(Some(OwnCalls { count: 0, .. }))) => {
            report.ok(code, "no call of a webhook has been in Flagsmith's own queue for a day");
        }
        Ok(Ok(Some(OwnCalls { count, latest }))) => {
            let ago = size::span(Duration::try_from_secs_f64(latest.unwrap_or(0.0)).unwrap_or_default());
            report.warn(
                code,
                format!(
                    "Flagsmith SENDS ITS OWN WEBHOOKS: {} in its queue within a day, the latest {ago} ago; receivers get \
                     everything twice",
                    size::counted(count, "call")
                ),
                "set DISABLE_WEBHOOKS=true in Flagsmith's environment (API and task processor), and restart it",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_is_known_by_its_number() {
        assert_eq!(number("0039_use_no_ssrf_url_field"), Some(39));
        assert_eq!(number("squashed"), None);
    }
}
