//! Where the outbox has been read to. No I/O.
//!
//! What a snapshot sees is a set of transactions that never changes, since all of them have ended. So the outbox is read in
//! batches: the transactions that one snapshot sees and the one before did not. A transaction that commits late is not in
//! the batch of its sequence numbers but in the first whose snapshot sees it; nobody waits for it, and it is never skipped.
//!
//! Order: batches by their snapshots; within a batch whole transactions by their **last** sequence number. Of two that
//! changed the same row, the second got the row's lock only after the first had become visible: either an earlier snapshot
//! saw the first, or both are in one batch and the second has the larger last number. (Transaction ids are given at the first
//! write, so they do not tell.)
//!
//! Source: PostgreSQL manual, "Transaction ID and Snapshot Information Functions" (`pg_current_snapshot`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A snapshot in its text form, `xmin:xmax:xid,xid,…`: checked, so it can stand in a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    text: Arc<str>,
    xmin: u64,
    xmax: u64,
}

impl Snapshot {
    /// The first transaction id that had not been given when it was taken.
    pub fn xmax(&self) -> u64 {
        self.xmax
    }

    /// Whether transactions were open, of which some may be committing.
    pub fn has_open(&self) -> bool {
        self.xmin < self.xmax
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Snapshot {
    type Err = String;

    fn from_str(text: &str) -> Result<Snapshot, String> {
        let bad = || format!("{text:?} is no snapshot (expected xmin:xmax:xid,xid,…)");
        let mut parts = text.split(':');
        let number = |part: Option<&str>| part.and_then(|part| part.parse::<u64>().ok());
        let (xmin, xmax) = number(parts.next()).zip(number(parts.next())).ok_or_else(bad)?;
        let open = parts.next().ok_or_else(bad)?;
        let is_list = open.is_empty() || open.split(',').all(|xid| xid.parse::<u64>().is_ok());
        if xmin > xmax || !is_list || parts.next().is_some() {
            return Err(bad());
        }
        Ok(Snapshot { text: text.into(), xmin, xmax })
    }
}

/// A place within a batch. Its text form is the ledger's cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Everything that this snapshot sees has been read.
    pub before: Snapshot,
    /// The batch: what this snapshot sees beside that.
    pub batch: Snapshot,
    /// Of the batch, transactions up to this last sequence number have been read.
    pub seq: i64,
}

impl Place {
    /// Right behind what a snapshot sees.
    pub fn behind(snapshot: Snapshot) -> Place {
        Place { before: snapshot.clone(), batch: snapshot, seq: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.before.text, self.batch.text, self.seq)
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        let parts: Vec<&str> = text.split(' ').collect();
        let [before, batch, seq] = parts.as_slice() else { return Err(format!("{text:?} is no place")) };
        let seq = seq.parse().map_err(|_| format!("{seq:?} is no sequence number"))?;
        Ok(Place { before: before.parse()?, batch: batch.parse()?, seq })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_place_comes_back_from_its_text() {
        let place =
            Place { before: "10:12:".parse().unwrap(), batch: "11:20:11,13".parse().unwrap(), seq: 7 };
        assert_eq!(place.to_string(), "10:12: 11:20:11,13 7");
        assert_eq!(place.to_string().parse::<Place>().unwrap(), place);
        assert_eq!((place.batch.xmax(), place.batch.has_open()), (20, true));
        assert!(!"12:12:".parse::<Snapshot>().unwrap().has_open());
    }

    #[test]
    fn what_is_no_snapshot_cannot_get_into_a_statement() {
        for text in
            ["", "1", "1:2", "2:1:", "1:2:3,", "1:2:'", "1:2:3:4", "1:2:x", "-1:2:", "1:2:3 ", "1:2:3'--"]
        {
            assert!(text.parse::<Snapshot>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_ledger_holds_nothing_panics(text in "[0-9:, ]{0,40}|.{0,40}") {
            if let Ok(place) = text.parse::<Place>() {
                prop_assert_eq!(place.to_string().parse::<Place>().unwrap(), place);
            }
        }
    }
}
