//! pgoutput messages, protocol version 1: bytes in, a message out. Pure, borrows from the bytes, never panics.
//!
//! Source: PostgreSQL manual, "Logical Replication Message Formats".

use crate::change::{Lsn, Micros};

/// Microseconds from 1970-01-01 to PostgreSQL's epoch, 2000-01-01.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// Bytes that are no message of protocol version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The message ends too early.
    #[error("a message that ends too early")]
    Short,
    /// A text that is no UTF-8.
    #[error("a text that is no UTF-8")]
    Utf8,
    /// A message or a part of one that this version of the protocol does not have.
    #[error("an unknown message or part {0:#04x}")]
    Unknown(u8),
}

type Result<T> = std::result::Result<T, Malformed>;

/// One column of a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datum<'a> {
    /// `n`
    Null,
    /// `u`: an unchanged TOASTed value that is not sent.
    Unchanged,
    /// `t`
    Text(&'a str),
}

/// The columns of one row, in the order of the relation's columns.
pub type Tuple<'a> = Vec<Datum<'a>>;

/// A column as the Relation message describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Whether it is part of the replica identity.
    pub is_key: bool,
    /// Its name.
    pub name: &'a str,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction begins. It has been committed already.
    Begin {
        /// Start of the commit record.
        commit_lsn: Lsn,
        /// When it was committed, by the server's clock.
        commit_time: Micros,
        /// The low 32 bits of its id.
        xid: u32,
    },
    /// A transaction ends.
    Commit {
        /// Start of the commit record.
        commit_lsn: Lsn,
        /// End of the commit record.
        end_lsn: Lsn,
        /// When it was committed, by the server's clock.
        commit_time: Micros,
    },
    /// Where a transaction came from, on a server that is itself a subscriber.
    Origin,
    /// A table's description; valid for what follows.
    Relation {
        /// Its OID.
        id: u32,
        /// Its schema; empty for `pg_catalog`.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
        /// The columns that are published.
        columns: Vec<RelationColumn<'a>>,
    },
    /// A data type's description.
    Type,
    /// A row was inserted.
    Insert {
        /// Its table.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// Its table.
        relation: u32,
        /// The old key, where it changed, or the whole old row with `REPLICA IDENTITY FULL`.
        old: Option<Tuple<'a>>,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// Its table.
        relation: u32,
        /// The old key, or the whole old row with `REPLICA IDENTITY FULL`.
        old: Tuple<'a>,
    },
    /// Tables were truncated.
    Truncate {
        /// The tables.
        relations: Vec<u32>,
    },
    /// `pg_logical_emit_message`. Asked for with a heartbeat only; others' come along.
    Logical {
        /// Whether it belongs to a transaction, with which it is sent. Else it is sent where it stands in the log.
        is_transactional: bool,
        /// Where it stands in the log.
        lsn: Lsn,
        /// Whose it is; in whatever encoding.
        prefix: &'a [u8],
        /// What it says; any bytes.
        content: &'a [u8],
    },
}

/// Decodes the payload of one `XLogData` message.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>> {
    let mut input = Input(bytes);
    Ok(match input.byte()? {
        b'B' => Message::Begin { commit_lsn: input.lsn()?, commit_time: input.time()?, xid: input.u32()? },
        b'C' => {
            input.byte()?;
            Message::Commit { commit_lsn: input.lsn()?, end_lsn: input.lsn()?, commit_time: input.time()? }
        }
        b'O' => Message::Origin,
        b'R' => relation(&mut input)?,
        b'Y' => Message::Type,
        b'I' => {
            let relation = input.u32()?;
            input.marker(b'N')?;
            Message::Insert { relation, new: input.tuple()? }
        }
        b'U' => update(&mut input)?,
        b'D' => {
            let relation = input.u32()?;
            match input.byte()? {
                b'K' | b'O' => Message::Delete { relation, old: input.tuple()? },
                other => return Err(Malformed::Unknown(other)),
            }
        }
        b'T' => truncate(&mut input)?,
        b'M' => Message::Logical {
            is_transactional: input.byte()? & 1 == 1,
            lsn: input.lsn()?,
            prefix: input.bytes_to_zero()?,
            content: {
                let length = input.u32()? as usize;
                input.take(length)?
            },
        },
        other => return Err(Malformed::Unknown(other)),
    })
}

fn relation<'a>(input: &mut Input<'a>) -> Result<Message<'a>> {
    let (id, namespace, name) = (input.u32()?, input.string()?, input.string()?);
    // The replica identity setting: what matters of it is in the columns' key flags.
    input.byte()?;
    let count = input.u16()?;
    let mut columns = Vec::new();
    for _ in 0..count {
        let is_key = input.byte()? & 1 == 1;
        let name = input.string()?;
        // Type OID and modifier: values stay text.
        input.take(8)?;
        columns.push(RelationColumn { is_key, name });
    }
    Ok(Message::Relation { id, namespace, name, columns })
}

fn update<'a>(input: &mut Input<'a>) -> Result<Message<'a>> {
    let relation = input.u32()?;
    let old = match input.byte()? {
        b'N' => None,
        b'K' | b'O' => {
            let old = input.tuple()?;
            input.marker(b'N')?;
            Some(old)
        }
        other => return Err(Malformed::Unknown(other)),
    };
    Ok(Message::Update { relation, old, new: input.tuple()? })
}

fn truncate<'a>(input: &mut Input<'a>) -> Result<Message<'a>> {
    let count = input.u32()?;
    // CASCADE and RESTART IDENTITY make no difference to what is gone.
    input.byte()?;
    let mut relations = Vec::new();
    for _ in 0..count {
        relations.push(input.u32()?);
    }
    Ok(Message::Truncate { relations })
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn> {
        self.array().map(u64::from_be_bytes).map(Lsn)
    }

    fn time(&mut self) -> Result<Micros> {
        self.array().map(i64::from_be_bytes).map(from_postgres_epoch)
    }

    fn marker(&mut self, expected: u8) -> Result<()> {
        let found = self.byte()?;
        if found == expected { Ok(()) } else { Err(Malformed::Unknown(found)) }
    }

    fn string(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes_to_zero()?).map_err(|_| Malformed::Utf8)
    }

    fn bytes_to_zero(&mut self) -> Result<&'a [u8]> {
        let end = self.0.iter().position(|b| *b == 0).ok_or(Malformed::Short)?;
        let bytes = self.take(end)?;
        self.byte()?;
        Ok(bytes)
    }

    fn tuple(&mut self) -> Result<Tuple<'a>> {
        let count = self.u16()?;
        // A column takes at least one byte: a wrong count cannot make us reserve more than was sent.
        let mut tuple = Vec::with_capacity(usize::from(count).min(self.0.len()));
        for _ in 0..count {
            tuple.push(match self.byte()? {
                b'n' => Datum::Null,
                b'u' => Datum::Unchanged,
                b't' => {
                    let length = self.u32()? as usize;
                    Datum::Text(std::str::from_utf8(self.take(length)?).map_err(|_| Malformed::Utf8)?)
                }
                other => return Err(Malformed::Unknown(other)),
            });
        }
        Ok(tuple)
    }
}

/// A time of the protocol (microseconds since 2000) as [`Micros`].
pub(super) fn from_postgres_epoch(micros: i64) -> Micros {
    Micros(micros.saturating_add(POSTGRES_EPOCH))
}

/// [`Micros`] as a time of the protocol.
pub(super) fn to_postgres_epoch(at: Micros) -> i64 {
    at.0.saturating_sub(POSTGRES_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put_tuple(out: &mut Vec<u8>, tuple: &[Datum<'_>]) {
        out.extend_from_slice(&u16::try_from(tuple.len()).unwrap().to_be_bytes());
        for datum in tuple {
            match datum {
                Datum::Null => out.push(b'n'),
                Datum::Unchanged => out.push(b'u'),
                Datum::Text(text) => {
                    out.push(b't');
                    out.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
                    out.extend_from_slice(text.as_bytes());
                }
            }
        }
    }

    fn encode(message: &Message<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        match message {
            Message::Begin { commit_lsn, commit_time, xid } => {
                out.push(b'B');
                out.extend_from_slice(&commit_lsn.0.to_be_bytes());
                out.extend_from_slice(&to_postgres_epoch(*commit_time).to_be_bytes());
                out.extend_from_slice(&xid.to_be_bytes());
            }
            Message::Commit { commit_lsn, end_lsn, commit_time } => {
                out.extend_from_slice(b"C\0");
                out.extend_from_slice(&commit_lsn.0.to_be_bytes());
                out.extend_from_slice(&end_lsn.0.to_be_bytes());
                out.extend_from_slice(&to_postgres_epoch(*commit_time).to_be_bytes());
            }
            Message::Relation { id, namespace, name, columns } => {
                out.push(b'R');
                out.extend_from_slice(&id.to_be_bytes());
                for text in [namespace, name] {
                    out.extend_from_slice(text.as_bytes());
                    out.push(0);
                }
                out.push(b'd');
                out.extend_from_slice(&u16::try_from(columns.len()).unwrap().to_be_bytes());
                for column in columns {
                    out.push(u8::from(column.is_key));
                    out.extend_from_slice(column.name.as_bytes());
                    out.extend_from_slice(&[0, 0, 0, 0, 23, 255, 255, 255, 255]);
                }
            }
            Message::Insert { relation, new } => {
                out.push(b'I');
                out.extend_from_slice(&relation.to_be_bytes());
                out.push(b'N');
                put_tuple(&mut out, new);
            }
            Message::Update { relation, old, new } => {
                out.push(b'U');
                out.extend_from_slice(&relation.to_be_bytes());
                if let Some(old) = old {
                    out.push(b'K');
                    put_tuple(&mut out, old);
                }
                out.push(b'N');
                put_tuple(&mut out, new);
            }
            Message::Delete { relation, old } => {
                out.push(b'D');
                out.extend_from_slice(&relation.to_be_bytes());
                out.push(b'O');
                put_tuple(&mut out, old);
            }
            Message::Truncate { relations } => {
                out.push(b'T');
                out.extend_from_slice(&u32::try_from(relations.len()).unwrap().to_be_bytes());
                out.push(3);
                relations.iter().for_each(|id| out.extend_from_slice(&id.to_be_bytes()));
            }
            Message::Origin => out.extend_from_slice(b"O\0\0\0\0\0\0\0\x01name\0"),
            Message::Type => out.extend_from_slice(b"Y\0\0\0\x01ns\0name\0"),
            Message::Logical { is_transactional, lsn, prefix, content } => {
                out.extend_from_slice(&[b'M', u8::from(*is_transactional)]);
                out.extend_from_slice(&lsn.0.to_be_bytes());
                out.extend_from_slice(prefix);
                out.push(0);
                out.extend_from_slice(&u32::try_from(content.len()).unwrap().to_be_bytes());
                out.extend_from_slice(content);
            }
        }
        out
    }

    fn examples() -> Vec<Message<'static>> {
        let row = vec![Datum::Text("7"), Datum::Null, Datum::Unchanged, Datum::Text("")];
        vec![
            Message::Begin {
                commit_lsn: Lsn(1 << 40),
                commit_time: Micros(1_795_487_723_974_370),
                xid: u32::MAX,
            },
            Message::Commit { commit_lsn: Lsn(16), end_lsn: Lsn(48), commit_time: Micros(POSTGRES_EPOCH) },
            Message::Relation {
                id: 16_384,
                namespace: "public",
                name: "features_featurestate",
                columns: vec![
                    RelationColumn { is_key: true, name: "id" },
                    RelationColumn { is_key: false, name: "größe" },
                ],
            },
            Message::Insert { relation: 16_384, new: row.clone() },
            Message::Update { relation: 1, old: None, new: row.clone() },
            Message::Update { relation: 1, old: Some(vec![Datum::Text("6")]), new: row.clone() },
            Message::Delete { relation: 1, old: row },
            Message::Truncate { relations: vec![1, 2, 3] },
            Message::Origin,
            Message::Type,
            Message::Logical { is_transactional: false, lsn: Lsn(7), prefix: b"p\xff", content: b"\0x\xfe" },
        ]
    }

    #[test]
    fn every_message_is_read_as_it_was_written() {
        for message in examples() {
            assert_eq!(decode(&encode(&message)), Ok(message));
        }
    }

    #[test]
    fn a_message_cut_short_anywhere_is_an_error() {
        for message in examples() {
            let bytes = encode(&message);
            let body_is_skipped = matches!(message, Message::Origin | Message::Type);
            for length in 0..bytes.len() {
                let result = decode(&bytes[..length]);
                assert!(result.is_err() || (body_is_skipped && length > 0), "{message:?} cut to {length}");
            }
        }
    }

    #[test]
    fn messages_of_later_protocol_versions_are_refused() {
        for tag in [b'S', b'E', b'c', b'A', b'b', b'P'] {
            assert_eq!(decode(&[tag, 0, 0, 0, 0]), Err(Malformed::Unknown(tag)));
        }
        assert_eq!(decode(b"I\0\0\0\x01N\0\x01t\0\0\0\x01\xff"), Err(Malformed::Utf8));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decode(&bytes).ok();
        }

        #[test]
        fn a_flipped_byte_is_a_message_or_an_error(example in 0usize..11, at in 0usize..80, byte in any::<u8>()) {
            let mut bytes = encode(&examples()[example]);
            let length = bytes.len();
            bytes[at % length] = byte;
            decode(&bytes).ok();
        }

        #[test]
        fn a_row_keeps_its_fields(texts in proptest::collection::vec(proptest::option::of(".{0,30}"), 0..20)) {
            let row: Vec<Datum<'_>> =
                texts.iter().map(|t| t.as_deref().map_or(Datum::Null, Datum::Text)).collect();
            let message = Message::Insert { relation: 1, new: row };
            let bytes = encode(&message);
            prop_assert_eq!(decode(&bytes), Ok(message));
        }
    }
}
