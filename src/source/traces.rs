//! What Flagsmith itself keeps of its changes: the history of its states, and the audit log. Whoever has missed the changes
//! reads there who made them, when, and in which order.

use tokio_postgres::Client;

use super::catalog::Catalog;
use super::conn_info::ConnInfo;
use super::snapshot::copy_rows;
use crate::change::{Micros, Row};
use crate::error::Result;
use crate::schema::{Table, audit_log, mv_history, state_history, value_history};

/// States whose history is asked for with one statement.
const STATES_AT_ONCE: usize = 1_000;

/// The history tables, with the columns of the state's id and of the date.
const HISTORIES: [(Table, usize, usize); 3] = [
    (Table::StateHistory, state_history::ID, state_history::HISTORY_DATE),
    (Table::ValueHistory, value_history::FEATURE_STATE_ID, value_history::HISTORY_DATE),
    (Table::MvHistory, mv_history::FEATURE_STATE_ID, mv_history::HISTORY_DATE),
];

/// The history rows of these states after `since`, of each table oldest first, as the client's transaction sees them.
pub async fn histories(
    client: &Client,
    info: &ConnInfo,
    catalog: &Catalog,
    states: &[i64],
    since: Micros,
) -> Result<Vec<(Table, Row)>> {
    let mut all = Vec::new();
    for (table, state, date) in HISTORIES.into_iter().filter(|(table, ..)| catalog.tables.contains_key(table))
    {
        let (state, date) = (name(table, state), name(table, date));
        for states in states.chunks(STATES_AT_ONCE) {
            let ids: Vec<String> = states.iter().map(i64::to_string).collect();
            let rest = format!(
                "WHERE {state} IN ({}) AND {date} > {} ORDER BY {date}, \"history_id\"",
                ids.join(", "),
                literal(since)
            );
            let rows = copy_rows(client, info, catalog, table, &rest).await?;
            all.extend(rows.into_iter().map(|row| (table, row)));
        }
    }
    Ok(all)
}

/// The rows of the audit log that were made after `since`, in the order of their ids.
pub async fn audits(client: &Client, info: &ConnInfo, catalog: &Catalog, since: Micros) -> Result<Vec<Row>> {
    let created = name(Table::AuditLog, audit_log::CREATED_DATE);
    let rest = format!("WHERE {created} > {} ORDER BY \"id\"", literal(since));
    copy_rows(client, info, catalog, Table::AuditLog, &rest).await
}

fn name(table: Table, column: usize) -> String {
    format!("\"{}\"", table.columns().get(column).map(|column| column.name).unwrap_or_default())
}

fn literal(at: Micros) -> String {
    format!("'{}'::timestamptz", jiff::Timestamp::from_microsecond(at.0).unwrap_or_default())
}
