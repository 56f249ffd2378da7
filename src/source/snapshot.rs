//! Filling the mirror: the kept tables as an exported snapshot shows them, by `COPY`, in the text forms of the stream.
//!
//! Only what events need: identities only where an override names them, of the environments' history only the latest.

use bytes::{Buf, BytesMut};
use futures_util::TryStreamExt;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::assemble::digest;
use super::catalog::{Catalog, table_name};
use super::conn_info::ConnInfo;
use super::replication::Exported;
use super::sql::{pinned, sql_error};
use crate::change::{Field, Key, Lsn, Micros, Row};
use crate::error::{Error, Result};
use crate::schema::{Table, feature_state};

/// The kept tables as they were at one moment, and where the source goes on from there.
pub struct View {
    /// In a transaction that shows that moment.
    pub client: Client,
    /// The position of that moment.
    pub position: Lsn,
    /// What goes with the position, for a source that needs more ([`Delivery::cursor`](super::Delivery::cursor)).
    pub cursor: Option<String>,
}

/// How far the filling has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// The table that is being read.
    pub table: Table,
    /// Rows read so far, of all tables.
    pub rows: u64,
    /// Rows expected in all, by the server's statistics.
    pub expected: u64,
}

/// So many rows between two reports.
const REPORT_EVERY: u64 = 1_000;

/// What an exported snapshot shows, from whose position the stream goes on.
pub async fn exported_view(info: &ConnInfo, exported: &Exported) -> Result<View> {
    let client = super::connect(info).await?;
    adopt(&client, info, &exported.snapshot).await?;
    Ok(View { client, position: exported.position, cursor: None })
}

/// What the database shows now, for whoever only looks.
pub async fn present_view(info: &ConnInfo) -> Result<View> {
    let client = super::connect(info).await?;
    let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {}", pinned("SET LOCAL"));
    client.batch_execute(&begin).await.map_err(|e| sql_error(info, "taking a snapshot", &e))?;
    Ok(View { client, position: Lsn::default(), cursor: None })
}

/// Opens the transaction that sees what the exported snapshot sees.
pub async fn adopt(client: &Client, info: &ConnInfo, snapshot: &str) -> Result<()> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'",
        snapshot.replace('\'', "''")
    );
    client.batch_execute(&begin).await.map_err(|e| sql_error(info, "taking over the snapshot", &e))
}

/// The server's clock. What is live by then when a mirror is filled is part of the baseline; what comes later is told.
pub async fn server_clock(client: &Client, info: &ConnInfo) -> Result<Micros> {
    let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let row =
        client.query_typed_one(sql, &[]).await.map_err(|e| sql_error(info, "asking for the time", &e))?;
    Ok(Micros(row.get(0)))
}

/// Reads every kept table and gives its rows to `each`. Returns how many there were.
pub async fn copy_tables(
    client: &Client,
    info: &ConnInfo,
    catalog: &Catalog,
    mut each: impl AsyncFnMut(Table, Row) -> Result<()>,
    mut progress: impl FnMut(Progress),
) -> Result<u64> {
    let expected = expected_rows(client, info, catalog).await?;
    let mut rows = 0;
    for table in Table::ALL.iter().copied().filter(|t| is_read(*t, catalog)) {
        progress(Progress { table, rows, expected: expected.max(rows) });
        let statement = format!("COPY ({}) TO STDOUT", select(catalog, table));
        let failed =
            |e: tokio_postgres::Error| sql_error(info, &format!("reading table {}", table.name()), &e);
        let stream = client.copy_out(statement.as_str()).await.map_err(failed)?;
        futures_util::pin_mut!(stream);
        let mut buffer = BytesMut::new();
        while let Some(chunk) = stream.try_next().await.map_err(failed)? {
            buffer.extend_from_slice(&chunk);
            while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                let row = parse_line(table, buffer.get(..end).unwrap_or_default())?;
                buffer.advance(end + 1);
                each(table, row).await?;
                rows += 1;
                if rows % REPORT_EVERY == 0 {
                    progress(Progress { table, rows, expected: expected.max(rows) });
                }
            }
        }
    }
    Ok(rows)
}

/// Fetches the rows with these keys as they are now, those that are still there: what the mirror does not keep and a change
/// needs.
pub async fn fetch(
    client: &Client,
    info: &ConnInfo,
    catalog: &Catalog,
    table: Table,
    keys: &[Key],
) -> Result<Vec<Row>> {
    let key_column = table.columns().first().map(|c| c.name).unwrap_or_default();
    let literals: Vec<String> =
        keys.iter().map(|key| format!("'{}'", key.to_string().replace('\'', "''"))).collect();
    // A transaction, so that the text forms are those of the session that reads, whatever stands between.
    let failed = |e: tokio_postgres::Error| sql_error(info, &format!("reading table {}", table.name()), &e);
    let begin = format!("BEGIN READ ONLY; {}", pinned("SET LOCAL"));
    client.batch_execute(&begin).await.map_err(failed)?;
    let rest = format!("WHERE \"{key_column}\" IN ({})", literals.join(", "));
    let rows = copy_rows(client, info, catalog, table, &rest).await?;
    client.batch_execute("COMMIT").await.map_err(failed)?;
    Ok(rows)
}

/// The rows of a table that the client's transaction sees, with what follows FROM.
pub(super) async fn copy_rows(
    client: &Client,
    info: &ConnInfo,
    catalog: &Catalog,
    table: Table,
    rest: &str,
) -> Result<Vec<Row>> {
    let failed = |e: tokio_postgres::Error| sql_error(info, &format!("reading table {}", table.name()), &e);
    let (columns, from) = (column_list(catalog, table), table_name(&catalog.schema, table));
    let statement = format!("COPY (SELECT {columns} FROM {from} {rest}) TO STDOUT");
    let stream = client.copy_out(statement.as_str()).await.map_err(failed)?;
    futures_util::pin_mut!(stream);
    let mut buffer = BytesMut::new();
    while let Some(chunk) = stream.try_next().await.map_err(failed)? {
        buffer.extend_from_slice(&chunk);
    }
    let lines = <[u8]>::split(&buffer, |b| *b == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| parse_line(table, line)).collect()
}

async fn expected_rows(client: &Client, info: &ConnInfo, catalog: &Catalog) -> Result<u64> {
    let names: Vec<&str> =
        catalog.tables.keys().filter(|t| t.is_kept() && **t != Table::Identity).map(|t| t.name()).collect();
    let row = client
        .query_typed_one(
            "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_catalog.pg_class c
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = ANY ($2)",
            &[(&catalog.schema, Type::TEXT), (&names, Type::TEXT_ARRAY)],
        )
        .await
        .map_err(|e| sql_error(info, "estimating the number of rows", &e))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

fn column_list(catalog: &Catalog, table: Table) -> String {
    let columns: Vec<String> = table
        .columns()
        .iter()
        .enumerate()
        .map(|(i, column)| if catalog.has(table, i) { format!("\"{}\"", column.name) } else { "NULL".into() })
        .collect();
    columns.join(", ")
}

/// The kept tables; of the states' history what a change that is not in force yet will be told with.
fn is_read(table: Table, catalog: &Catalog) -> bool {
    let is_wanted = match table {
        Table::StateHistory => catalog.has(Table::FeatureState, feature_state::CHANGE_REQUEST_ID),
        _ => table.is_kept(),
    };
    is_wanted && catalog.tables.contains_key(&table)
}

fn select(catalog: &Catalog, table: Table) -> String {
    let from = format!("SELECT {} FROM {}", column_list(catalog, table), table_name(&catalog.schema, table));
    let not_deleted = |column: usize| {
        if catalog.has(table, column) { " WHERE \"deleted_at\" IS NULL" } else { "" }
    };
    match table {
        Table::FeatureState => format!("{from}{}", not_deleted(feature_state::DELETED_AT)),
        Table::StateValue => format!("{from}{}", not_deleted(crate::schema::state_value::DELETED_AT)),
        Table::Identity => format!(
            "{from} WHERE \"id\" IN (SELECT \"identity_id\" FROM {} WHERE \"identity_id\" IS NOT NULL)",
            table_name(&catalog.schema, Table::FeatureState)
        ),
        Table::StateHistory => format!(
            "SELECT DISTINCT ON (\"id\") {} FROM {} WHERE \"id\" IN (SELECT \"id\" FROM {} WHERE \"change_request_id\" IS NOT NULL
                 AND (\"version\" IS NULL OR \"live_from\" IS NULL OR \"live_from\" > now()))
             ORDER BY \"id\", \"history_date\" DESC",
            column_list(catalog, table),
            table_name(&catalog.schema, table),
            table_name(&catalog.schema, Table::FeatureState)
        ),
        // An audit row refers to a record of a moment ago, if to any.
        Table::EnvironmentHistory => format!("{from} ORDER BY \"history_id\" DESC LIMIT 100"),
        _ => from,
    }
}

/// One line of COPY's text format (PostgreSQL manual, "COPY", "Text Format").
fn parse_line(table: Table, line: &[u8]) -> Result<Row> {
    let malformed = || Error::internal(format!("a row of table {} came garbled: start again", table.name()));
    let mut texts: Vec<Option<String>> = Vec::with_capacity(table.columns().len());
    for (index, field) in line.split(|b| *b == b'\t').enumerate() {
        if field == br"\N" {
            texts.push(None);
            continue;
        }
        let text = unescape(field).ok_or_else(malformed)?;
        texts.push(Some(if table.digested().contains(&index) { digest(&text) } else { text }));
    }
    if texts.len() != table.columns().len() {
        return Err(malformed());
    }
    let fields: Vec<Field<'_>> =
        texts.iter().map(|t| t.as_deref().map_or(Field::Null, Field::Text)).collect();
    Ok(Row::pack(&fields))
}

fn unescape(field: &[u8]) -> Option<String> {
    if !field.contains(&b'\\') {
        return std::str::from_utf8(field).ok().map(str::to_owned);
    }
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next()? {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::segment;

    #[test]
    fn a_line_of_copy_gives_the_values_that_were_written() {
        let row = parse_line(Table::Segment, b"4\ta\\tb\\nc\\\\d\\re\t\\N\t7\t").unwrap();
        assert_eq!(row.text(segment::NAME), Some("a\tb\nc\\d\re"));
        assert!(row.is_null(segment::DESCRIPTION));
        assert_eq!(row.int(segment::PROJECT_ID), Some(7));
        assert_eq!(row.text(segment::DELETED_AT), Some(""));
        assert!(parse_line(Table::Segment, b"4\tx").is_err());
        assert!(parse_line(Table::Segment, b"4\t\xff\t\t\t").is_err());
    }
}
