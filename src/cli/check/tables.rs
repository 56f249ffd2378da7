//! Flagsmith's tables: there, readable, and what the source needs of them: published and safe to publish, or in the outbox.

use tokio_postgres::Client;

use super::Depth;
use super::code::Code;
use super::fix::Fix;
use super::flagsmith;
use super::ledger::Found;
use super::outbox;
use super::report::Report;
use crate::config::{Config, Mode};
use crate::error::Kind;
use crate::prepare::require_tags;
use crate::schema::{Need, Table};
use crate::source::{
    Catalog, Listener, Publication, filtered_tables, listeners, publication_steps, quoted, read_grants,
    unreadable_tables, unusable_identities,
};

/// Columns that hold hashes of credentials.
const HASHES: [&str; 2] = ["password", "hashed_key"];

/// Returns the endpoints, where they can be read.
pub(super) async fn check(
    config: &Config,
    client: &Client,
    ledger: Option<&Found>,
    depth: Depth,
    report: &mut Report,
) -> Option<Vec<Listener>> {
    let catalog = match Catalog::read(client, &config.database, &config.names.schema).await {
        Ok(catalog) => catalog,
        Err(error) => {
            report.error(Code::FlagsmithTables, &error);
            return None;
        }
    };
    let is_complete = check_catalog(config, &catalog, report);
    if catalog.tables.is_empty() {
        return None;
    }
    match config.mode {
        Mode::Replication => {
            check_identities(config, client, &catalog, report).await;
            if is_complete {
                check_publication(config, client, &catalog, report).await;
            }
        }
        Mode::Outbox => outbox::check(config, client, &catalog, ledger, report).await,
    }
    if depth == Depth::Whole {
        flagsmith::check_version(config, client, report).await;
        flagsmith::check_calls(config, client, report).await;
    }
    let unreadable = check_privileges(config, client, &catalog, report).await?;
    let is_readable = |table: &Table| catalog.tables.contains_key(table) && !unreadable.contains(table);
    if !is_complete || ![Table::EnvironmentWebhook, Table::OrganisationWebhook].iter().all(is_readable) {
        return None;
    }
    match listeners(client, &config.database, &catalog).await {
        Ok(listeners) => Some(listeners),
        Err(error) => {
            report.error(Code::Endpoints, &error);
            None
        }
    }
}

fn check_catalog(config: &Config, catalog: &Catalog, report: &mut Report) -> bool {
    if let Err(error) = catalog.require(&config.database) {
        report.error(Code::FlagsmithTables, &error);
        return false;
    }
    report.ok(
        Code::FlagsmithTables,
        format!(
            "{} of {} tables are there (schema {})",
            catalog.tables.len(),
            Table::ALL.len(),
            catalog.schema
        ),
    );
    let lacking = optional_lacking(catalog);
    if !lacking.is_empty() {
        report
            .ok(Code::FlagsmithOptional, format!("this version of Flagsmith has no {}", lacking.join(", ")));
    }
    if let Err(error) = require_tags(config, catalog) {
        report.error(Code::FlagsmithTags, &error);
    }
    true
}

/// What some versions of Flagsmith lack, and this one does.
fn optional_lacking(catalog: &Catalog) -> Vec<String> {
    let mut lacking = Vec::new();
    for table in Table::ALL {
        let Some(there) = catalog.tables.get(table) else {
            lacking.push(table.name().to_owned());
            continue;
        };
        for (index, (column, there)) in table.columns().iter().zip(there).enumerate() {
            if !there && column.need == Need::Optional && !catalog.is_leftover(*table, index) {
                lacking.push(format!("{}.{}", table.name(), column.name));
            }
        }
    }
    lacking
}

async fn check_identities(config: &Config, client: &Client, catalog: &Catalog, report: &mut Report) {
    match unusable_identities(client, &config.database, catalog).await {
        Err(error) => report.error(Code::ReplicaIdentity, &error),
        Ok(unusable) if unusable.is_empty() => {
            report.ok(Code::ReplicaIdentity, "every table is known by its primary key");
        }
        Ok(unusable) => {
            for identity in unusable {
                report.fail(
                    Code::ReplicaIdentity,
                    Kind::DatabaseRefuses,
                    format!(
                        "{}: {}; published so, the server refuses Flagsmith's own changes of it, or does not say which row changed",
                        identity.table.name(),
                        identity.why
                    ),
                    identity.mend,
                );
            }
        }
    }
}

async fn check_publication(config: &Config, client: &Client, catalog: &Catalog, report: &mut Report) {
    let (name, code) = (&config.names.publication, Code::Publication);
    let publication = match Publication::read(client, &config.database, catalog, name).await {
        Ok(publication) => publication,
        Err(error) => return report.error(code, &error),
    };
    let steps = publication_steps(catalog, &config.names, publication.as_ref());
    let statements: Vec<&str> = steps.iter().map(|step| step.sql.trim_end()).collect();
    let mend = format!("flagpost setup  -- or, as the tables' owner:\n{}", statements.join("\n"));
    let Some(publication) = publication else {
        return report.fail(
            code,
            Kind::DatabaseRefuses,
            format!("publication {name:?} does not exist"),
            mend,
        );
    };
    let missing = publication.missing(catalog);
    if !missing.is_empty() {
        let message = format!("publication {name:?} does not publish {}", missing.join(", "));
        report.fail(code, Kind::DatabaseRefuses, message, mend);
    } else if !publication.all_operations {
        let message = format!("publication {name:?} leaves out some of insert, update, delete, truncate");
        report.fail(code, Kind::DatabaseRefuses, message, mend);
    } else if publication.all_tables {
        let message = format!(
            "publication {name:?} is FOR ALL TABLES: every trait and every task is sent here, for nothing"
        );
        report.warn(code, message, mend);
    } else if publication.surplus(catalog) {
        let message = format!("publication {name:?} publishes columns that flagpost does not read");
        report.warn_fixable(code, message, mend, Fix::Narrow(statements.join("\n")));
    } else {
        report.ok(code, format!("publication {name:?} publishes what is read and no more"));
    }
    check_hashes(&publication, report);
    check_rows(config, client, catalog, report).await;
}

/// Columns of password and key hashes: they would leave the server for nothing.
fn check_hashes(publication: &Publication, report: &mut Report) {
    let published = publication
        .tables
        .iter()
        .flat_map(|(table, columns)| columns.iter().map(move |column| (table, column)))
        .filter(|(_, column)| HASHES.contains(&column.as_str()))
        .map(|(table, column)| format!("{}.{column}", table.name()));
    let published: Vec<String> = published.collect();
    if published.is_empty() {
        return report.ok(Code::PasswordHashes, "no password hash is published");
    }
    report.warn(
        Code::PasswordHashes,
        format!("hashes of passwords or keys leave the server for nothing: {}", published.join(", ")),
        "flagpost setup  -- narrows the publication",
    );
}

async fn check_rows(config: &Config, client: &Client, catalog: &Catalog, report: &mut Report) {
    let (code, name) = (Code::PublicationRows, &config.names.publication);
    match filtered_tables(client, &config.database, catalog, name).await {
        Err(error) => report.error(code, &error),
        Ok(filtered) if filtered.is_empty() => report.ok(code, "no row filter hides changes"),
        Ok(filtered) => {
            let steps = publication_steps(catalog, &config.names, None);
            let again: Vec<&str> = steps.iter().map(|step| step.sql.trim_end()).collect();
            report.fail(
                code,
                Kind::DatabaseRefuses,
                format!(
                    "publication {name:?} leaves out rows of {}: their changes are not told",
                    filtered.join(", ")
                ),
                format!(
                    "DROP PUBLICATION {};\n{}\n-- what was left out, receivers hear after: flagpost recover",
                    quoted(name),
                    again.join("\n")
                ),
            );
        }
    }
}

async fn check_privileges(
    config: &Config,
    client: &Client,
    catalog: &Catalog,
    report: &mut Report,
) -> Option<Vec<Table>> {
    let user = &config.database.user;
    match unreadable_tables(client, &config.database, catalog).await {
        Err(error) => {
            report.error(Code::SelectPrivilege, &error);
            None
        }
        Ok(unreadable) => {
            if unreadable.is_empty() {
                report.ok(Code::SelectPrivilege, format!("role {user} may read every column that is needed"));
            } else {
                let names: Vec<&str> = unreadable.iter().map(|table| table.name()).collect();
                report.fail(
                    Code::SelectPrivilege,
                    Kind::DatabaseRefuses,
                    format!("role {user} may not read {}", names.join(", ")),
                    read_grants(catalog, &unreadable, user).join("\n"),
                );
            }
            Some(unreadable)
        }
    }
}
