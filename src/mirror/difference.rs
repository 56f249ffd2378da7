//! What must be written to turn one mirror into another, row by row.

use super::{Mirror, Persist};
use crate::schema::Table;

impl Mirror {
    /// The writes that make `newer` of this mirror: by table and primary key, nothing for rows that are the same.
    pub fn difference(&self, newer: &Mirror) -> Vec<Persist> {
        Table::ALL.iter().flat_map(|table| self.table_difference(newer, *table)).collect()
    }

    fn table_difference(&self, newer: &Mirror, table: Table) -> Vec<Persist> {
        let gone = self.keys(table).into_iter().filter(|key| newer.row(table, key).is_none());
        let removed = gone.map(|key| Persist::Remove { table, key });
        let changed = newer.keys(table).into_iter().filter_map(|key| {
            let row = newer.row(table, &key)?;
            (self.row(table, &key) != Some(row)).then(|| Persist::Put { table, key, row: row.clone() })
        });
        removed.chain(changed).collect()
    }
}
