//! The vocabulary that every stage shares: positions, rows, changes, transactions.
//!
//! A [`Row`] is compact on purpose: a transaction of 100 000 rows must fit into a few megabytes, so a row is one
//! allocation with its fields one after the other. Fields keep PostgreSQL's text form; nobody reparses a number that
//! nobody calculates with.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use triomphe::ThinArc;

use crate::schema::Table;

/// A position in the write-ahead log, in bytes (PostgreSQL manual, `pg_lsn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || format!("{s:?} is no LSN (expected two hexadecimal numbers, as in 16/B374D848)");
        let (high, low) = s.split_once('/').ok_or_else(bad)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| bad())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| bad())?;
        Ok(Lsn(u64::from(high) << 32 | u64::from(low)))
    }
}

/// A moment as PostgreSQL counts it: microseconds since 1970-01-01 00:00:00 UTC (not PostgreSQL's own epoch of 2000).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Micros(pub i64);

impl Micros {
    /// Reads PostgreSQL's ISO text form of `timestamp with time zone` (`2026-11-24 02:35:23.97437+00`).
    /// `None` for what is none, and for `infinity`.
    pub fn parse(text: &str) -> Option<Micros> {
        text.parse::<jiff::Timestamp>().ok().map(|t| Micros(t.as_microsecond()))
    }

    /// This moment, by this machine's clock.
    pub fn now() -> Micros {
        Micros(jiff::Timestamp::now().as_microsecond())
    }

    /// From `earlier` until this moment; none if it was later.
    pub fn since(self, earlier: Micros) -> std::time::Duration {
        std::time::Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This moment plus `duration`.
    #[must_use]
    pub fn plus(self, duration: std::time::Duration) -> Micros {
        Micros(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// One field of a [`Row`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    /// SQL NULL, or a column that this version of Flagsmith does not have.
    Null,
    /// An unchanged TOASTed value that the stream left out (pgoutput's `u`): the mirror has it.
    Unchanged,
    /// PostgreSQL's text form.
    Text(&'a str),
}

/// Header bytes of a field. Below [`SHORT`] the byte is the text's length itself.
const SHORT: u8 = 250;
const NULL: u8 = 250;
const UNCHANGED: u8 = 251;
/// The length follows as a little-endian `u32`. At most 1 GB, PostgreSQL's own limit of a field.
const LONG: u8 = 252;

/// One row of a table of [`crate::schema`], its fields in the order of [`Table::columns`], in one shared allocation:
/// a clone is a reference, so the state before a change costs no copy.
///
/// Layout: the number of fields (one byte), a header a field (its length in one byte, or a marker for NULL, for unchanged,
/// or for a length of four bytes that follows), then the texts.
#[derive(Clone, PartialEq, Eq)]
pub struct Row(ThinArc<(), u8>);

/// A field's header, read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Header {
    Null,
    Unchanged,
    Text(usize),
}

/// Reads headers one after the other.
struct Headers<'a> {
    rest: &'a [u8],
    left: u8,
}

impl Iterator for Headers<'_> {
    type Item = Header;

    fn next(&mut self) -> Option<Header> {
        self.left = self.left.checked_sub(1)?;
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(match *first {
            NULL => Header::Null,
            UNCHANGED => Header::Unchanged,
            LONG => {
                let (length, rest) = self.rest.split_first_chunk::<4>()?;
                self.rest = rest;
                Header::Text(u32::from_le_bytes(*length) as usize)
            }
            short => Header::Text(usize::from(short)),
        })
    }
}

impl Row {
    /// Packs fields that are in the order of [`Table::columns`].
    pub fn pack(fields: &[Field<'_>]) -> Row {
        let text: usize = fields.iter().map(|f| if let Field::Text(t) = f { t.len() } else { 0 }).sum();
        let mut data = Vec::with_capacity(1 + fields.len() * 2 + text);
        // No table has as many columns as a byte can count.
        data.push(u8::try_from(fields.len()).unwrap_or(u8::MAX));
        for field in fields {
            match field {
                Field::Null => data.push(NULL),
                Field::Unchanged => data.push(UNCHANGED),
                Field::Text(t) => match u8::try_from(t.len()) {
                    Ok(length) if length < SHORT => data.push(length),
                    _ => {
                        data.push(LONG);
                        data.extend_from_slice(&u32::try_from(t.len()).unwrap_or(0).to_le_bytes());
                    }
                },
            }
        }
        for field in fields {
            if let Field::Text(t) = field {
                data.extend_from_slice(t.as_bytes());
            }
        }
        Row::of(&data)
    }

    /// A pointer to a row takes eight bytes: the mirror and the open groups hold a great many.
    fn of(bytes: &[u8]) -> Row {
        Row(ThinArc::from_header_and_slice((), bytes))
    }

    fn headers(&self) -> Headers<'_> {
        self.as_bytes()
            .split_first()
            .map_or(Headers { rest: &[], left: 0 }, |(count, rest)| Headers { rest, left: *count })
    }

    /// The field at `index` (an index into [`Table::columns`]); NULL when there is none.
    pub fn get(&self, index: usize) -> Field<'_> {
        let mut headers = self.headers();
        let mut before = 0;
        let mut wanted = None;
        for (i, header) in headers.by_ref().enumerate() {
            match header {
                _ if i == index => wanted = Some(header),
                Header::Text(length) if i < index => before += length,
                Header::Null | Header::Unchanged | Header::Text(_) => {}
            }
        }
        match wanted {
            None | Some(Header::Null) => Field::Null,
            Some(Header::Unchanged) => Field::Unchanged,
            Some(Header::Text(length)) => headers
                .rest
                .get(before..before + length)
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
                .map_or(Field::Null, Field::Text),
        }
    }

    /// The text of a field, `None` for NULL and for unchanged.
    pub fn text(&self, index: usize) -> Option<&str> {
        match self.get(index) {
            Field::Text(t) => Some(t),
            Field::Null | Field::Unchanged => None,
        }
    }

    /// A field as an integer; `None` for NULL and for what is no integer.
    pub fn int(&self, index: usize) -> Option<i64> {
        self.text(index)?.parse().ok()
    }

    /// A boolean field (`t` or `f`); NULL counts as false.
    pub fn flag(&self, index: usize) -> bool {
        matches!(self.text(index), Some("t" | "true"))
    }

    /// Whether a field is SQL NULL (or the column does not exist).
    pub fn is_null(&self, index: usize) -> bool {
        self.get(index) == Field::Null
    }

    /// How many fields the row has.
    pub fn len(&self) -> usize {
        self.as_bytes().first().copied().unwrap_or(0).into()
    }

    /// Whether the row has no fields.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All fields in order.
    pub fn fields(&self) -> impl Iterator<Item = Field<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// Whether any field is [`Field::Unchanged`].
    pub fn has_unchanged(&self) -> bool {
        self.headers().any(|header| header == Header::Unchanged)
    }

    /// The row with every unchanged field taken from `old`.
    #[must_use]
    pub fn filled_from(&self, old: &Row) -> Row {
        let fields: Vec<Field<'_>> = self
            .fields()
            .enumerate()
            .map(|(i, f)| if f == Field::Unchanged { old.get(i) } else { f })
            .collect();
        Row::pack(&fields)
    }

    /// The row's bytes as they are kept in the ledger.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.slice
    }

    /// A row from [`Row::as_bytes`]; `None` when the bytes are no row.
    pub fn from_bytes(bytes: &[u8]) -> Option<Row> {
        let row = Row::of(bytes);
        let mut headers = row.headers();
        let (mut count, mut text) = (0, 0);
        for header in headers.by_ref() {
            count += 1;
            if let Header::Text(length) = header {
                text += length;
            }
        }
        (count == row.len() && text == headers.rest.len() && !bytes.is_empty()).then_some(row)
    }

    /// The size of the row in memory, in bytes.
    pub fn size(&self) -> usize {
        self.as_bytes().len() + size_of::<Row>()
    }
}

/// Rows hold webhook secrets, so their fields are never printed.
impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Row({} fields, {} bytes)", self.len(), self.as_bytes().len())
    }
}

/// For what the ledger keeps of an open group; never for logs.
impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.as_bytes())
    }
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = <&[u8]>::deserialize(deserializer)?;
        Row::from_bytes(bytes).ok_or_else(|| serde::de::Error::custom("these bytes are no row"))
    }
}

/// The primary key of a row: Flagsmith uses integers, UUIDs (versions) and texts (API keys), never compound keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `integer` or `bigint`.
    Int(i64),
    /// `uuid` or `character varying`.
    Text(Box<str>),
}

impl Key {
    /// The key whose text form is `text`.
    pub fn parse(text: &str) -> Key {
        text.parse().map_or_else(|_| Key::Text(text.into()), Key::Int)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Int(n) => write!(f, "{n}"),
            Key::Text(t) => f.write_str(t),
        }
    }
}

/// The primary key of a row: always its first column.
pub fn key_of(row: &Row) -> Key {
    row.text(0).map_or(Key::Int(0), Key::parse)
}

/// What happened to one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A row was inserted.
    Insert {
        /// The row as it is now.
        new: Row,
    },
    /// A row was updated; `new` may have [`Field::Unchanged`] fields.
    Update {
        /// The key before the update, where the update changed it.
        old_key: Option<Key>,
        /// The row as it is now.
        new: Row,
    },
    /// The row with this key was deleted.
    Delete {
        /// The key of the deleted row.
        key: Key,
    },
    /// The whole table was emptied.
    Truncate,
}

/// One change of one table of [`crate::schema`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowChange {
    /// The table.
    pub table: Table,
    /// What happened.
    pub op: Op,
}

/// One committed transaction, its changes in the order in which they were made. What both sources give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// End of the commit record: the position to confirm once everything of this transaction is durable here.
    pub end_lsn: Lsn,
    /// The 64-bit transaction id (epoch and xid).
    pub xid: u64,
    /// When it was committed, by the server's clock.
    pub commit_time: Micros,
    /// The row changes of the tables that flagpost reads. May be empty.
    pub changes: Vec<RowChange>,
}

impl Transaction {
    /// The memory that the transaction takes, in bytes, roughly.
    pub fn size(&self) -> usize {
        let rows: usize = self
            .changes
            .iter()
            .map(|c| match &c.op {
                Op::Insert { new } | Op::Update { new, .. } => new.size(),
                Op::Delete { .. } | Op::Truncate => 0,
            })
            .sum();
        rows + self.changes.len() * size_of::<RowChange>() + size_of::<Transaction>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_lsn_reads_and_writes_as_postgresql_does() {
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_B374_D848)));
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!(Lsn(0).to_string(), "0/0");
        for bad in ["", "16", "16/", "/1", "G/1", "1/100000000"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?} was taken for an LSN");
        }
    }

    proptest! {
        #[test]
        fn a_row_gives_back_what_was_packed(texts in proptest::collection::vec(proptest::option::of(".{0,40}|x{245,255}|y{900}"), 0..12)) {
            let fields: Vec<Field<'_>> =
                texts.iter().map(|t| t.as_deref().map_or(Field::Null, Field::Text)).collect();
            let row = Row::pack(&fields);
            prop_assert_eq!(row.fields().collect::<Vec<_>>(), fields.clone());
            let again = Row::from_bytes(row.as_bytes());
            prop_assert_eq!(again, Some(row));
        }

        #[test]
        fn stored_bytes_that_are_no_row_are_refused_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(row) = Row::from_bytes(&bytes) {
                prop_assert_eq!(row.fields().count(), row.len());
            }
        }
    }

    #[test]
    fn a_time_is_read_to_the_microsecond() {
        assert_eq!(Micros::parse("1970-01-01 00:00:01.5+00"), Some(Micros(1_500_000)));
        assert_eq!(Micros::parse("2026-11-24 02:35:23.97437+00"), Some(Micros(1_795_487_723_974_370)));
        assert_eq!(
            Micros::parse("2026-11-24 04:35:23.97437+02"),
            Micros::parse("2026-11-24 02:35:23.97437+00")
        );
        assert_eq!(Micros::parse("infinity"), None);
    }

    #[test]
    fn unchanged_fields_come_from_the_old_row() {
        let old = Row::pack(&[Field::Text("1"), Field::Text("long value"), Field::Null]);
        let new = Row::pack(&[Field::Text("1"), Field::Unchanged, Field::Text("x")]);
        assert!(new.has_unchanged());
        assert_eq!(
            new.filled_from(&old),
            Row::pack(&[Field::Text("1"), Field::Text("long value"), Field::Text("x")])
        );
    }

    #[test]
    fn debug_output_of_a_row_shows_no_value() {
        let row = Row::pack(&[Field::Text("s3cr3t")]);
        assert!(!format!("{row:?}").contains("s3cr3t"));
    }
}
