//! The publication: an explicit list of tables, from PostgreSQL 15 on with column lists, and the SQL that makes it so.
//!
//! The statements are the files under `sql/`, so that a DBA can read them before they are run. Source: PostgreSQL manual,
//! "Publication", "Column Lists".

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::catalog::{Catalog, quoted, table_name};
use super::conn_info::ConnInfo;
use super::replication::Names;
use super::sql::sql_error;
use crate::error::Result;
use crate::schema::Table;

const CREATE: &str = include_str!("../../sql/publication_create.sql");
const CHANGE: &str = include_str!("../../sql/publication_change.sql");
const SLOT: &str = include_str!("../../sql/slot_create.sql");
const GRANTS: &str = include_str!("../../sql/grants.sql");
const READ_ROLE: &str = include_str!("../../sql/grants_outbox.sql");
const UNINSTALL: &str = include_str!("../../sql/uninstall.sql");

/// A publication as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Publication {
    /// `FOR ALL TABLES`: a firehose.
    pub all_tables: bool,
    /// Whether inserts, updates, deletes and truncates are all published.
    pub all_operations: bool,
    /// The columns of each of our tables that are published.
    pub tables: BTreeMap<Table, BTreeSet<String>>,
}

/// A statement with what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it does, in a few words.
    pub what: String,
    /// The SQL, with comments for a DBA.
    pub sql: String,
}

impl Publication {
    /// The publication of this name, if there is one.
    pub async fn read(
        client: &Client,
        info: &ConnInfo,
        catalog: &Catalog,
        name: &str,
    ) -> Result<Option<Publication>> {
        let failed = |e: tokio_postgres::Error| sql_error(info, "reading the publication", &e);
        let row = client
            .query_typed_opt(
                "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate
                 FROM pg_catalog.pg_publication WHERE pubname = $1",
                &[(&name, Type::TEXT)],
            )
            .await
            .map_err(failed)?;
        let Some(row) = row else { return Ok(None) };
        let mut publication =
            Publication { all_tables: row.get(0), all_operations: row.get(1), tables: BTreeMap::new() };
        let columns = if catalog.has_column_lists() { "attnames::text[]" } else { "NULL::text[]" };
        let rows = client
            .query_typed(
                &format!(
                    "SELECT tablename::text, {columns} FROM pg_catalog.pg_publication_tables
                     WHERE pubname = $1 AND schemaname = $2"
                ),
                &[(&name, Type::TEXT), (&catalog.schema, Type::TEXT)],
            )
            .await
            .map_err(failed)?;
        for row in rows {
            let Some(table) = Table::by_name(row.get(0)) else { continue };
            let columns: Option<Vec<String>> = row.get(1);
            let columns =
                columns.unwrap_or_else(|| catalog.columns(table).iter().map(|c| (*c).to_owned()).collect());
            publication.tables.insert(table, columns.into_iter().collect());
        }
        Ok(Some(publication))
    }

    /// What the publication lacks of what the database has and flagpost reads, as `table` or `table.column`.
    pub fn missing(&self, catalog: &Catalog) -> Vec<String> {
        let mut missing = Vec::new();
        for table in catalog.tables.keys() {
            let Some(published) = self.tables.get(table) else {
                missing.push(table.name().to_owned());
                continue;
            };
            let columns = catalog.columns(*table);
            let lacking = columns.iter().filter(|column| !published.contains(**column));
            missing.extend(lacking.map(|column| format!("{}.{column}", table.name())));
        }
        missing
    }

    /// Columns that are published and that nobody needs.
    pub fn surplus(&self, catalog: &Catalog) -> bool {
        catalog.has_column_lists()
            && self.tables.iter().any(|(table, published)| {
                let wanted = catalog.columns(*table);
                published.iter().any(|column| !wanted.contains(&column.as_str()))
            })
    }
}

fn table_list(catalog: &Catalog) -> String {
    let tables: Vec<String> = catalog
        .tables
        .keys()
        .map(|table| {
            let name = table_name(&catalog.schema, *table);
            if catalog.has_column_lists() {
                format!("{name} ({})", column_names(catalog, *table))
            } else {
                name
            }
        })
        .collect();
    tables.join(",\n    ")
}

fn column_names(catalog: &Catalog, table: Table) -> String {
    let names: Vec<String> = catalog.columns(table).into_iter().map(quoted).collect();
    names.join(", ")
}

/// The statements that make the publication what it must be; none if it is.
pub fn publication_steps(catalog: &Catalog, names: &Names, existing: Option<&Publication>) -> Vec<Step> {
    let fill = |template: &str| {
        template
            .replace("{publication}", &quoted(&names.publication))
            .replace("{tables}", &table_list(catalog))
    };
    match existing {
        None => vec![Step { what: format!("make publication {:?}", names.publication), sql: fill(CREATE) }],
        Some(publication) if publication.all_tables => vec![Step {
            what: format!("make publication {:?} again: it is FOR ALL TABLES", names.publication),
            sql: format!("DROP PUBLICATION {};\n{}", quoted(&names.publication), fill(CREATE)),
        }],
        Some(publication)
            if !publication.missing(catalog).is_empty()
                || publication.surplus(catalog)
                || !publication.all_operations =>
        {
            vec![Step {
                what: format!("bring publication {:?} up to date", names.publication),
                sql: fill(CHANGE),
            }]
        }
        Some(_) => Vec::new(),
    }
}

/// The statement that makes the slot, for a DBA who makes it by hand.
pub fn slot_step(names: &Names, catalog: &Catalog) -> Step {
    let failover = if catalog.has_failover_slots() { ", failover => true" } else { "" };
    let sql = SLOT.replace("{slot}", &names.slot).replace("{failover}", failover);
    Step { what: format!("make replication slot {:?}", names.slot), sql }
}

/// The statements that make a role which may run the daemon.
pub fn grant_steps(catalog: &Catalog, info: &ConnInfo, role: &str) -> Step {
    role_step(GRANTS, catalog, info, role)
}

/// The statements that make a role which may read the tables, and need not stream.
pub fn read_role_steps(catalog: &Catalog, info: &ConnInfo, role: &str) -> Step {
    role_step(READ_ROLE, catalog, info, role)
}

fn role_step(template: &str, catalog: &Catalog, info: &ConnInfo, role: &str) -> Step {
    let grants: Vec<String> = catalog.tables.keys().map(|table| grant(catalog, *table, role)).collect();
    let sql = template
        .replace("{role}", &quoted(role))
        .replace("{database}", &quoted(&info.database))
        .replace("{schema}", &quoted(&catalog.schema))
        .replace("{grants}", &grants.join("\n"));
    Step { what: format!("let role {role:?} run the daemon"), sql }
}

fn grant(catalog: &Catalog, table: Table, role: &str) -> String {
    let (columns, name) = (column_names(catalog, table), table_name(&catalog.schema, table));
    format!("GRANT SELECT ({columns}) ON {name} TO {};", quoted(role))
}

/// The statements that let an existing role read these tables.
pub fn read_grants(catalog: &Catalog, tables: &[Table], role: &str) -> Vec<String> {
    let schema = format!("GRANT USAGE ON SCHEMA {} TO {};", quoted(&catalog.schema), quoted(role));
    std::iter::once(schema).chain(tables.iter().map(|table| grant(catalog, *table, role))).collect()
}

/// The statements that remove every trace of flagpost.
pub fn uninstall_step(names: &Names) -> Step {
    let sql = UNINSTALL.replace("{slot}", &names.slot).replace("{publication}", &quoted(&names.publication));
    Step { what: "remove slot and publication".into(), sql }
}
