//! Rows of the outbox as they come from the server.

use super::order::Record;
use crate::change::Micros;
use crate::error::{Error, Result};

impl Record {
    /// One row of `sql/outbox_read.sql`.
    pub(super) fn from_row(row: &tokio_postgres::Row) -> Result<Record> {
        let malformed = |why: &dyn std::fmt::Display| {
            Error::internal(format!(
                "a row of flagpost.outbox has another shape ({why}): run \"flagpost setup --mode outbox\" to bring it up to date"
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
