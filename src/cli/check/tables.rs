//! Flagsmith's tables: there, readable, and what the source needs of them: published and safe to publish, or in the outbox.

use tokio_postgres::Client;

use super::ledger::Found;
use super::outbox;
use super::report::{Group, Report};
use crate::config::{Config, Mode};
use crate::error::Kind;
use crate::prepare::require_tags;
use crate::schema::{Need, Table};
use crate::source::{
    Catalog, Listener, Publication, listeners, publication_steps, read_grants, unreadable_tables,
    unusable_identities,
};

const GROUP: Group = Group::Tables;

/// Returns the endpoints, where they can be read.
pub(super) async fn check(
    config: &Config,
    client: &Client,
    ledger: Option<&Found>,
    report: &mut Report,
) -> Option<Vec<Listener>> {
    let catalog = match Catalog::read(client, &config.database, &config.names.schema).await {
        Ok(catalog) => catalog,
        Err(error) => {
            report.error(GROUP, "flagsmith-tables", &error);
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
    let unreadable = check_privileges(config, client, &catalog, report).await?;
    let is_readable = |table: &Table| catalog.tables.contains_key(table) && !unreadable.contains(table);
    if !is_complete || ![Table::EnvironmentWebhook, Table::OrganisationWebhook].iter().all(is_readable) {
        return None;
    }
    match listeners(client, &config.database, &catalog).await {
        Ok(listeners) => Some(listeners),
        Err(error) => {
            report.error(Group::Endpoints, "endpoints", &error);
            None
        }
    }
}

fn check_catalog(config: &Config, catalog: &Catalog, report: &mut Report) -> bool {
    if let Err(error) = catalog.require(&config.database) {
        report.error(GROUP, "flagsmith-tables", &error);
        return false;
    }
    report.ok(
        GROUP,
        "flagsmith-tables",
        format!(
            "{} of {} tables are there (schema {})",
            catalog.tables.len(),
            Table::ALL.len(),
            catalog.schema
        ),
    );
    let lacking = optional_lacking(catalog);
    if !lacking.is_empty() {
        report.ok(
            GROUP,
            "flagsmith-optional",
            format!("this version of Flagsmith has no {}", lacking.join(", ")),
        );
    }
    if let Err(error) = require_tags(config, catalog) {
        report.error(GROUP, "flagsmith-tags", &error);
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
        Err(error) => report.error(GROUP, "replica-identity", &error),
        Ok(unusable) if unusable.is_empty() => {
            report.ok(GROUP, "replica-identity", "every table is known by its primary key");
        }
        Ok(unusable) => {
            for identity in unusable {
                report.fail(
                    GROUP,
                    "replica-identity",
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
    let (name, code) = (&config.names.publication, "publication");
    let publication = match Publication::read(client, &config.database, catalog, name).await {
        Ok(publication) => publication,
        Err(error) => return report.error(GROUP, code, &error),
    };
    let steps = publication_steps(catalog, &config.names, publication.as_ref());
    let statements: Vec<&str> = steps.iter().map(|step| step.sql.trim_end()).collect();
    let mend = format!("flagpost setup  -- or, as the tables' owner:\n{}", statements.join("\n"));
    let Some(publication) = publication else {
        return report.fail(
            GROUP,
            code,
            Kind::DatabaseRefuses,
            format!("publication {name:?} does not exist"),
            mend,
        );
    };
    let missing = publication.missing(catalog);
    if !missing.is_empty() {
        let message = format!("publication {name:?} does not publish {}", missing.join(", "));
        report.fail(GROUP, code, Kind::DatabaseRefuses, message, mend);
    } else if !publication.all_operations {
        let message = format!("publication {name:?} leaves out some of insert, update, delete, truncate");
        report.fail(GROUP, code, Kind::DatabaseRefuses, message, mend);
    } else if publication.all_tables {
        let message = format!(
            "publication {name:?} is FOR ALL TABLES: every trait and every task is sent here, for nothing"
        );
        report.warn(GROUP, code, message, mend);
    } else if publication.surplus(catalog) {
        let message = format!("publication {name:?} publishes columns that flagpost does not read");
        report.warn(GROUP, code, message, mend);
    } else {
        report.ok(GROUP, code, format!("publication {name:?} publishes what is read and no more"));
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
            report.error(GROUP, "select-privilege", &error);
            None
        }
        Ok(unreadable) => {
            if unreadable.is_empty() {
                report.ok(
                    GROUP,
                    "select-privilege",
                    format!("role {user} may read every column that is needed"),
                );
            } else {
                let names: Vec<&str> = unreadable.iter().map(|table| table.name()).collect();
                report.fail(
                    GROUP,
                    "select-privilege",
                    Kind::DatabaseRefuses,
                    format!("role {user} may not read {}", names.join(", ")),
                    read_grants(catalog, &unreadable, user).join("\n"),
                );
            }
            Some(unreadable)
        }
    }
}
