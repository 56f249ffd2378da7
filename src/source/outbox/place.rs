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
//! **A crash of the server.** It may give transaction ids once more whose first owners left nothing on its disk: they were rolled
//! back, or we took rows away without waiting. A snapshot from before the crash sees those too, and by it alone their new owners
//! would never be read. But sequence numbers of rows that were read are never given again, since those rows were committed. So
//! what has been read is what the snapshot sees **up to the highest sequence number that was read**.
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
    /// The oldest transaction that was open when it was taken: it sees everything below.
    pub fn xmin(&self) -> u64 {
        self.xmin
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
    /// Everything that this snapshot sees has been read, up to sequence number `read_to`.
    pub before: Snapshot,
    /// The highest sequence number that had been read before the batch.
    pub read_to: i64,
    /// The batch: what this snapshot sees beside that.
    pub batch: Snapshot,
    /// Of the batch, transactions up to this last sequence number have been read; 0 where it has not begun.
    pub seq: i64,
}

impl Place {
    /// Right behind what a snapshot sees, of which `read_to` is the highest sequence number.
    pub fn behind(snapshot: Snapshot, read_to: i64) -> Place {
        Place { before: snapshot.clone(), read_to, batch: snapshot, seq: 0 }
    }

    /// The highest sequence number that has been read.
    pub fn highest(&self) -> i64 {
        self.read_to.max(self.seq)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.before.text, self.read_to, self.batch.text, self.seq)
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        let parts: Vec<&str> = text.split(' ').collect();
        let [before, read_to, batch, seq] = parts.as_slice() else {
            return Err(format!("{text:?} is no place"));
        };
        let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is no sequence number"));
        let (read_to, seq) = (number(read_to)?, number(seq)?);
        Ok(Place { before: before.parse()?, read_to, batch: batch.parse()?, seq })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_place_comes_back_from_its_text() {
        let (before, batch) = ("10:12:".parse().unwrap(), "11:20:11,13".parse().unwrap());
        let place = Place { before, read_to: 5, batch, seq: 7 };
        assert_eq!((place.to_string().as_str(), place.highest()), ("10:12: 5 11:20:11,13 7", 7));
        assert_eq!(place.to_string().parse::<Place>().unwrap(), place);
        assert_eq!((place.batch.xmin(), place.batch.has_open()), (11, true));
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
