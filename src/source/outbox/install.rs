//! The SQL that makes, checks and removes the outbox. Like the publication's it is in files under `sql/`, so that a DBA can
//! read it before it is run.
//!
//! Source: PostgreSQL manual, "CREATE TRIGGER", "Trigger Functions", "Writing SECURITY DEFINER Functions Safely".

use crate::schema::Table;
use crate::source::catalog::{Catalog, quoted, table_name};
use crate::source::publication::Step;

const INSTALL: &str = include_str!("../../../sql/outbox_install.sql");
const TRIGGER: &str = include_str!("../../../sql/outbox_trigger.sql");
const UNINSTALL: &str = include_str!("../../../sql/outbox_uninstall.sql");
const CHECK: &str = include_str!("../../../sql/outbox_check.sql");
const GRANTS: &str = include_str!("../../../sql/outbox_grants.sql");

/// What an installation may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbox {
    /// The role without login that owns everything.
    pub owner: String,
    /// The size on disk, in bytes, beyond which nothing more is written.
    pub cap: u64,
}

impl Default for Outbox {
    fn default() -> Outbox {
        // A gigabyte is about a million changes: little on a database server, and a long time of nobody reading.
        Outbox { owner: "flagpost_owner".into(), cap: 1 << 30 }
    }
}

impl Outbox {
    /// The statements that make it what it must be; they may be run again.
    pub fn install_step(&self, catalog: &Catalog) -> Step {
        let triggers = catalog.tables.keys().map(|table| {
            TRIGGER
                .replace("{table}", &table_name(&catalog.schema, *table))
                .replace("{columns}", &arguments(catalog, *table))
        });
        let triggers: Vec<String> = triggers.collect();
        let sql = self.fill(INSTALL).replace("{triggers}", &triggers.join("\n"));
        Step { what: "make the outbox and its triggers".into(), sql }
    }

    /// The statements that remove every trace of it.
    pub fn uninstall_step(&self, catalog: &Catalog) -> Step {
        let triggers = catalog.tables.keys().map(|table| {
            let table = table_name(&catalog.schema, *table);
            let drops = ["insert", "update", "delete", "truncate"]
                .map(|op| format!("DROP TRIGGER IF EXISTS flagpost_{op} ON {table};"));
            format!("BEGIN;\nSET LOCAL lock_timeout = '5s';\n{}\nCOMMIT;", drops.join("\n"))
        });
        let triggers: Vec<String> = triggers.collect();
        let sql = self.fill(UNINSTALL).replace("{triggers}", &triggers.join("\n"));
        Step { what: "remove the outbox and its triggers".into(), sql }
    }

    /// The query that tells what is wrong with it: rows of (finding, subject, detail), none if it is whole.
    pub fn check_query(&self, catalog: &Catalog) -> String {
        let wanted = catalog.tables.keys().map(|table| {
            let columns: Vec<String> = columns(catalog, *table).into_iter().map(literal).collect();
            format!("({}, ARRAY[{}])", literal(table.name()), columns.join(", "))
        });
        let wanted: Vec<String> = wanted.collect();
        self.fill(CHECK)
            .replace("{schema_literal}", &literal(&catalog.schema))
            .replace("{wanted}", &wanted.join(",\n    "))
    }

    /// The statements that let a role read it.
    pub fn grant_step(&self, role: &str) -> Step {
        Step {
            what: format!("let role {role:?} read the outbox"),
            sql: GRANTS.replace("{role}", &quoted(role)),
        }
    }

    fn fill(&self, template: &str) -> String {
        template
            .replace("{owner_literal}", &literal(&self.owner))
            .replace("{owner}", &quoted(&self.owner))
            .replace("{cap}", &self.cap.to_string())
    }
}

/// The columns that a table's triggers keep. Also those that are not there yet: a migration may bring them. But not what the
/// catalogue takes for a leftover.
fn columns(catalog: &Catalog, table: Table) -> Vec<&'static str> {
    let all = table.columns().iter().enumerate();
    all.filter(|(index, _)| !catalog.is_leftover(table, *index)).map(|(_, column)| column.name).collect()
}

/// A trigger's arguments: the column that is digested, then the columns to keep.
fn arguments(catalog: &Catalog, table: Table) -> String {
    let digested = table.digested().first().and_then(|index| table.columns().get(*index));
    let first = digested.map_or("", |column| column.name);
    let all: Vec<String> = std::iter::once(first).chain(columns(catalog, table)).map(literal).collect();
    all.join(", ")
}

/// A string in single quotes (PostgreSQL manual, "String Constants"; a name with a backslash would need the server's
/// `standard_conforming_strings`, which is on unless somebody turned it off).
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_can_digest_one_column_and_no_table_has_more() {
        assert!(Table::ALL.iter().all(|table| table.digested().len() <= 1));
    }

    #[test]
    fn a_name_cannot_leave_its_quotes() {
        let outbox = Outbox { owner: "o'; DROP TABLE x; \"".into(), cap: 1 };
        let sql = outbox.fill("{owner_literal} {owner} {cap}");
        assert_eq!(sql, "'o''; DROP TABLE x; \"' \"o'; DROP TABLE x; \"\"\" 1");
    }
}
