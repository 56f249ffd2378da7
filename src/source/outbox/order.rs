//! From rows of the outbox to transactions, equal to those of the replication stream. No I/O.
//!
//! Text forms: `to_jsonb` of a row and pgoutput differ in booleans (`true`, `t`), in times (`2026-03-07T13:59:07+00:00`,
//! `2026-03-07 13:59:07+00`; the triggers run with the zone UTC) and in how a `double precision` is written once it went
//! through jsonb's `numeric`. Everything else is the same text. Ids that end in a hash come digested.
//! Source: PostgreSQL manual, "JSON Functions" (`to_jsonb`); `src/common/d2s.c` (shortest form of a double).

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::change::{Field, Key, Lsn, Micros, Op, Row, RowChange, Transaction, key_of};
use crate::error::{Error, Kind, Result};
use crate::schema::{Column, Need, Table};

/// Columns of the type `timestamp with time zone`, of all tables.
const TIMES: [&str; 7] =
    ["committed_at", "created_date", "deleted_at", "history_date", "last_login", "live_from", "published_at"];
/// Columns of the type `double precision`, of all tables.
const DOUBLES: [&str; 1] = ["percentage_allocation"];

/// A row of the outbox, as `sql/outbox_read.sql` gives it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Its sequence number.
    pub(super) seq: i64,
    /// The 64-bit id of its transaction.
    pub(super) xid: u64,
    /// When it was written.
    pub(super) at: Micros,
    /// When its transaction was committed, if the server keeps that.
    pub(super) committed: Option<Micros>,
    /// `I`, `U`, `D`, `T`, or `C` for the commit.
    pub(super) op: String,
    /// The table; none for the commit.
    pub(super) table: Option<String>,
    /// The key before the change as JSON, in an object: of a deletion, and of an update that changed it. Other columns that
    /// are there, as in what was written before a `setup` of this version, are not looked at.
    pub(super) old: Option<String>,
    /// The kept columns after the change, as JSON.
    pub(super) new: Option<String>,
}

/// Makes transactions of rows that come transaction by transaction, as `sql/outbox_read.sql` gives them. A row is packed as
/// it comes: a transaction of a million rows is held as compactly as one of the stream.
#[derive(Default)]
pub(super) struct Assembler {
    open: Option<(Transaction, i64)>,
}

impl Assembler {
    /// Takes the next row. Gives the transaction before it, with its last sequence number, when the row begins another.
    pub(super) fn take(&mut self, record: &Record) -> Result<Option<(Transaction, i64)>> {
        let change = change(record)?;
        let is_same = self.open.as_ref().is_some_and(|(open, _)| open.xid == record.xid);
        let before = if is_same { None } else { self.open.take() };
        let (open, last) = self.open.get_or_insert_with(|| {
            let none = Vec::new();
            (
                Transaction {
                    end_lsn: Lsn::default(),
                    xid: record.xid,
                    commit_time: record.at,
                    changes: none,
                },
                record.seq,
            )
        });
        open.changes.extend(change);
        // The last time of a transaction is the nearest to its commit.
        open.commit_time = record.committed.unwrap_or(record.at);
        *last = record.seq;
        Ok(before)
    }

    /// The last transaction.
    pub(super) fn end(self) -> Option<(Transaction, i64)> {
        self.open
    }
}

/// `None` for a commit, and for a table that has been renamed to one that we do not read.
fn change(record: &Record) -> Result<Option<RowChange>> {
    let Some(table) = record.table.as_deref().and_then(Table::by_name) else { return Ok(None) };
    let part = |json: &Option<String>| match json {
        Some(json) => row(table, json),
        None => Err(garbled("a change without its row")),
    };
    let op = match record.op.as_str() {
        "I" => Op::Insert { new: part(&record.new)? },
        "U" => {
            let new = part(&record.new)?;
            let old_key = record.old.as_deref().map(|old| key(table, old)).transpose()?;
            Op::Update { old_key: old_key.filter(|key| *key != key_of(&new)), new }
        }
        "D" => Op::Delete { key: key(table, record.old.as_deref().unwrap_or("{}"))? },
        "T" => Op::Truncate,
        other => return Err(garbled(&format!("operation {other:?}"))),
    };
    Ok(Some(RowChange { table, op }))
}

fn row(table: Table, json: &str) -> Result<Row> {
    columns(table, table.columns(), json)
}

/// The key in an object that need not have more.
fn key(table: Table, json: &str) -> Result<Key> {
    Ok(key_of(&columns(table, table.columns().get(..1).unwrap_or_default(), json)?))
}

fn columns(table: Table, columns: &[Column], json: &str) -> Result<Row> {
    let values: BTreeMap<&str, &RawValue> =
        serde_json::from_str(json).map_err(|_| garbled("a row that is no JSON object"))?;
    let mut texts: Vec<Option<String>> = Vec::with_capacity(columns.len());
    for column in columns {
        texts.push(match values.get(column.name) {
            Some(value) => text(column.name, value.get())?,
            None if column.need == Need::Optional => None,
            None => {
                return Err(Error::new(
                    Kind::DatabaseRefuses,
                    format!(
                        "a row of table {} in the outbox has no column {:?}: if Flagsmith dropped it, update flagpost (nothing \
                         was taken out of the outbox, nothing is lost)",
                        table.name(),
                        column.name
                    ),
                ));
            }
        });
    }
    let fields: Vec<Field<'_>> =
        texts.iter().map(|text| text.as_deref().map_or(Field::Null, Field::Text)).collect();
    Ok(Row::pack(&fields))
}

/// A JSON value in PostgreSQL's text form of the column.
fn text(column: &str, json: &str) -> Result<Option<String>> {
    Ok(Some(match json {
        "null" => return Ok(None),
        "true" => "t".into(),
        "false" => "f".into(),
        string if string.starts_with('"') => {
            let text: String =
                serde_json::from_str(string).map_err(|_| garbled("a value that is no text"))?;
            if TIMES.contains(&column) { time(text) } else { text }
        }
        number if DOUBLES.contains(&column) => {
            double(number).ok_or_else(|| garbled("a value that is no number"))?
        }
        // Integers. Nothing is reparsed that nobody calculates with.
        other => other.into(),
    }))
}

/// `2026-03-07T13:59:07.04+00:00` → `2026-03-07 13:59:07.04+00`. Infinity stays as it is, and so do years BC.
fn time(json: String) -> String {
    match json.split_once('T') {
        Some((date, rest)) => format!("{date} {}", rest.replacen("+00:00", "+00", 1)),
        None => json,
    }
}

/// A number as `double precision` is written: the shortest digits that give the same value, with an exponent below 1e-4 and
/// from 1e15 on.
fn double(number: &str) -> Option<String> {
    let value: f64 = number.parse().ok()?;
    let shortest = format!("{value:e}");
    let (mantissa, exponent) = shortest.split_once('e')?;
    let exponent: i32 = exponent.parse().ok()?;
    if (-4..15).contains(&exponent) {
        return Some(value.to_string());
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    Some(format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs()))
}

fn garbled(what: &str) -> Error {
    Error::internal(format!(
        "the outbox has {what}: nothing was taken out of it; restart flagpost, and report it if it stays"
    ))
}

/// Rows hold webhook secrets, so they are never printed.
impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Record({} of {}: {} {:?})", self.seq, self.xid, self.op, self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::segment;
    use proptest::prelude::*;

    fn record(seq: i64, xid: u64) -> Record {
        Record {
            seq,
            xid,
            at: Micros(seq * 10),
            committed: None,
            op: "T".into(),
            table: Some("features_feature".into()),
            old: None,
            new: None,
        }
    }

    fn transactions(records: &[Record]) -> Result<Vec<(Transaction, i64)>> {
        let mut assembler = Assembler::default();
        let mut all = Vec::new();
        for record in records {
            all.extend(assembler.take(record)?);
        }
        all.extend(assembler.end());
        Ok(all)
    }

    #[test]
    fn rows_of_one_transaction_are_one_transaction_that_ends_with_the_last() {
        let records = [record(2, 11), record(3, 12), record(4, 12), record(1, 10), record(5, 10)];
        let all = transactions(&records).unwrap();
        let facts: Vec<_> =
            all.iter().map(|(t, last)| (t.xid, *last, t.changes.len(), t.commit_time.0)).collect();
        assert_eq!(facts, [(11, 2, 1, 20), (12, 4, 2, 40), (10, 5, 2, 50)]);
        assert_eq!(transactions(&[]).unwrap(), []);
    }

    #[test]
    fn the_commits_own_row_gives_the_time_and_is_no_change() {
        let commit = Record { op: "C".into(), table: None, ..record(7, 10) };
        let all = transactions(&[record(1, 10), commit.clone()]).unwrap();
        assert_eq!((all[0].0.commit_time, all[0].0.changes.len(), all[0].1), (Micros(70), 1, 7));
        let known = Record { committed: Some(Micros(71)), ..commit };
        assert_eq!(transactions(&[record(1, 10), known]).unwrap()[0].0.commit_time, Micros(71));
    }

    #[test]
    fn a_row_without_a_needed_column_stops_and_one_without_an_optional_column_does_not() {
        let full = row(Table::Segment, r#"{"id": 3, "name": "a\"b\u00fc", "project_id": 4}"#).unwrap();
        assert_eq!((full.text(segment::NAME), full.is_null(segment::DELETED_AT)), (Some("a\"bü"), true));
        let error = row(Table::Segment, r#"{"id": 3, "project_id": 4}"#).unwrap_err();
        assert!(error.kind() == Kind::DatabaseRefuses && error.to_string().contains("\"name\""), "{error}");
        assert!(row(Table::Segment, "[]").is_err());
    }

    #[test]
    fn an_update_names_the_old_key_only_if_it_was_another() {
        let update = |old: Option<&str>| Record {
            op: "U".into(),
            table: Some("tags_tag".into()),
            old: old.map(Into::into),
            new: Some(r#"{"id": 2, "label": "x"}"#.into()),
            ..record(1, 1)
        };
        let old_key = |old| match change(&update(old)).unwrap().unwrap().op {
            Op::Update { old_key, .. } => old_key,
            other => panic!("{other:?}"),
        };
        assert_eq!(old_key(None), None);
        assert_eq!(old_key(Some(r#"{"id": 1}"#)), Some(Key::Int(1)));
        // As the triggers wrote it before.
        assert_eq!(old_key(Some(r#"{"id": 2, "label": "y"}"#)), None);
        assert_eq!(old_key(Some(r#"{"id": 1, "label": "y"}"#)), Some(Key::Int(1)));
    }

    #[test]
    fn doubles_are_written_as_postgresql_does() {
        for (json, text) in [
            ("30", "30"),
            ("33.3", "33.3"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("100000000000000", "100000000000000"),
            ("1000000000000000", "1e+15"),
            ("123456789012345680", "1.2345678901234568e+17"),
            ("-0.5", "-0.5"),
        ] {
            assert_eq!(double(json).as_deref(), Some(text));
        }
        assert_eq!(double("x"), None);
    }

    proptest! {
        #[test]
        fn whatever_is_in_a_row_nothing_panics(json in ".{0,60}|\\{\"id\": .{0,20}\\}", op in "[IUDTCX]") {
            let record = Record { op, old: Some(json.clone()), new: Some(json), ..record(1, 1) };
            transactions(&[record]).ok();
        }
    }
}
