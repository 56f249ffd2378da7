//! Asking the server for rows of the outbox.

use super::order::Record;
use crate::change::Micros;
use crate::error::{Error, Result};

impl Record {
    /// The query that gives the rows below a horizon (`$1`, as text).
    pub const QUERY: &'static str = include_str!("../../../sql/outbox_read.sql");

    /// One row of [`Record::QUERY`].
    pub fn from_row(row: &tokio_postgres::Row) -> Result<Record> {
        let malformed = |why: &dyn std::fmt::Display| {
            Error::internal(format!(
                "a row of flagpost.outbox has another shape ({why}): make the outbox again"
            ))
        };
        let get = || {
            let xid: String = row.try_get(1)?;
            let record = Record {
                seq: row.try_get(0)?,
                xid: 0,
                at: Micros(row.try_get(2)?),
                committed: row.try_get::<_, Option<i64>>(3)?.map(Micros),
                op: row.try_get(4)?,
                table: row.try_get(5)?,
                old: row.try_get(6)?,
                new: row.try_get(7)?,
            };
            Ok::<_, tokio_postgres::Error>((xid, record))
        };
        let (xid, record) = get().map_err(|e| malformed(&e))?;
        Ok(Record { xid: xid.parse().map_err(|e| malformed(&e))?, ..record })
    }
}
