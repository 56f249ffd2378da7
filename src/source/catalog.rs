//! What the database has of Flagsmith's tables: read by name, so that versions of Flagsmith that lack some are fine.
//!
//! Source: PostgreSQL manual, "System Catalogs".

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::conn_info::ConnInfo;
use super::sql::sql_error;
use crate::error::{Error, Kind, Result};
use crate::schema::Capabilities;
use crate::schema::{Need, Table, feature_segment, feature_state};

/// `server_version_num` of the first version that has column lists in publications.
const COLUMN_LISTS: u32 = 150_000;
/// `server_version_num` of the first version that has failover slots.
const FAILOVER_SLOTS: u32 = 170_000;
/// `server_version_num` of the first version that flagpost supports.
const OLDEST: u32 = 140_000;
/// See [`Catalog::is_leftover`].
const LEFTOVERS: [usize; 2] = [feature_segment::VALUE, feature_segment::VALUE_TYPE];

/// The tables of [`crate::schema`] that the database has, with those of their columns that flagpost reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalog {
    /// `server_version_num`
    pub version: u32,
    /// The schema that was looked at.
    pub schema: String,
    /// The tables that are there. Of each, whether a column of [`Table::columns`] is there.
    pub tables: BTreeMap<Table, Vec<bool>>,
}

impl Catalog {
    /// Reads the catalogue.
    pub async fn read(client: &Client, info: &ConnInfo, schema: &str) -> Result<Catalog> {
        let failed = |e: tokio_postgres::Error| sql_error(info, "reading the catalogue", &e);
        let row = client
            .query_typed_one("SELECT current_setting('server_version_num')", &[])
            .await
            .map_err(failed)?;
        let version = row.get::<_, &str>(0).parse().unwrap_or(0);
        if version < OLDEST {
            return Err(Error::new(
                Kind::DatabaseRefuses,
                format!(
                    "the server at {} is version {}: flagpost needs PostgreSQL 14 or later",
                    info.shown(),
                    version / 10_000
                ),
            ));
        }
        let names: Vec<&str> = Table::ALL.iter().map(|table| table.name()).collect();
        let rows = client
            .query_typed(
                "SELECT c.relname::text, a.attname::text
                 FROM pg_catalog.pg_class c
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
                 WHERE n.nspname = $1 AND c.relname = ANY ($2) AND c.relkind IN ('r', 'p')
                   AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''",
                &[(&schema, Type::TEXT), (&names, Type::TEXT_ARRAY)],
            )
            .await
            .map_err(failed)?;
        let mut columns: BTreeMap<Table, BTreeSet<String>> = BTreeMap::new();
        for row in &rows {
            if let Some(table) = Table::by_name(row.get(0)) {
                columns.entry(table).or_default().insert(row.get(1));
            }
        }
        let tables = columns
            .into_iter()
            .map(|(table, there)| {
                (table, table.columns().iter().map(|column| there.contains(column.name)).collect())
            })
            .collect();
        let mut catalog = Catalog { version, schema: schema.to_owned(), tables };
        let leftovers =
            LEFTOVERS.into_iter().filter(|column| catalog.is_leftover(Table::FeatureSegment, *column));
        for column in leftovers.collect::<Vec<_>>() {
            let overrides = catalog.tables.get_mut(&Table::FeatureSegment);
            if let Some(there) = overrides.and_then(|columns| columns.get_mut(column)) {
                *there = false;
            }
        }
        Ok(catalog)
    }

    /// Whether a column is one that only databases of 2020 need: the value of an override that stands with the override.
    /// Later an override's state has a value of its own, and what is still in the column counts for nothing.
    pub fn is_leftover(&self, table: Table, column: usize) -> bool {
        table == Table::FeatureSegment
            && LEFTOVERS.contains(&column)
            && self.has(Table::FeatureState, feature_state::VERSION)
    }

    /// Whether a slot can outlive a failover (PostgreSQL manual, "Replication Slot Synchronization").
    pub fn has_failover_slots(&self) -> bool {
        self.version >= FAILOVER_SLOTS
    }

    /// Whether a publication can be restricted to columns.
    pub fn has_column_lists(&self) -> bool {
        self.version >= COLUMN_LISTS
    }

    /// The names of the columns of a table that are there, in the order of [`Table::columns`].
    pub fn columns(&self, table: Table) -> Vec<&'static str> {
        let there = self.tables.get(&table).map(Vec::as_slice).unwrap_or_default();
        table
            .columns()
            .iter()
            .zip(there)
            .filter(|(_, there)| **there)
            .map(|(column, _)| column.name)
            .collect()
    }

    /// Whether a column is there.
    pub fn has(&self, table: Table, column: usize) -> bool {
        self.tables.get(&table).and_then(|columns| columns.get(column)).copied().unwrap_or(false)
    }

    /// The names of those of `tables` that are not there.
    pub fn lacking(&self, tables: &[Table]) -> Vec<&'static str> {
        tables.iter().filter(|table| !self.tables.contains_key(table)).map(|table| table.name()).collect()
    }

    /// What is missing that flagpost cannot do without, as `table` or `table.column`.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for table in Table::ALL {
            let Some(there) = self.tables.get(table) else {
                if table.need() == Need::Required {
                    missing.push(table.name().to_owned());
                }
                continue;
            };
            for (column, there) in table.columns().iter().zip(there) {
                if !there && column.need == Need::Required {
                    missing.push(format!("{}.{}", table.name(), column.name));
                }
            }
        }
        missing
    }

    /// `Err` names what is missing.
    pub fn require(&self, info: &ConnInfo) -> Result<()> {
        let missing = self.missing();
        if missing.is_empty() {
            return Ok(());
        }
        let advice = if self.tables.is_empty() {
            "there is no Flagsmith in it: correct the database in database.url, or set source.schema"
        } else {
            "update flagpost if Flagsmith is newer, or let Flagsmith's migrations finish"
        };
        Err(Error::new(
            Kind::DatabaseRefuses,
            format!(
                "the database {} (schema {}) lacks {}: {advice}",
                info.shown(),
                self.schema,
                missing.join(", ")
            ),
        ))
    }

    /// What the mirror must know of this version of Flagsmith.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities { state_versions: self.has(Table::FeatureState, feature_state::VERSION) }
    }
}

/// An identifier in double quotes (PostgreSQL manual, "Identifiers and Key Words").
pub(crate) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// A table's full name, quoted.
pub(crate) fn table_name(schema: &str, table: Table) -> String {
    format!("{}.{}", quoted(schema), quoted(table.name()))
}
