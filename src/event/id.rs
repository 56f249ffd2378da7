//! Deterministic event ids.

use std::fmt;

use sha2::{Digest, Sha256};

use super::Kind;

/// The first 128 bits of SHA-256 over (system identifier, kind, subject, cause), written as a UUID (DESIGN.md). It does
/// not depend on when or how often the change was read, so a receiver can drop repeats by it and the ledger's unique key
/// refuses a second copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub [u8; 16]);

impl EventId {
    /// The id of the event of `kind` about `subject` (the id of a feature state, a version or an audit row) caused by
    /// `cause` (the 64-bit xid of the group's first transaction; empty for an audit row, which happens once).
    pub(super) fn new(system_id: &str, kind: Kind, subject: &str, cause: &str) -> EventId {
        let hash = Sha256::digest(format!("{system_id}\n{}\n{subject}\n{cause}", kind.name()));
        let mut id = [0; 16];
        id.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        EventId(id)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_depends_on_each_part_and_on_nothing_else() {
        let id = |system, kind, subject, cause| EventId::new(system, kind, subject, cause).to_string();
        // sha256("7351\nFLAG_UPDATED\n13\n3934"), by sha256sum
        assert_eq!(id("7351", Kind::FlagUpdated, "13", "3934"), "739cfae9-1b48-0fc1-2071-5d0e0913c5c0");
        let all = [
            id("7351", Kind::FlagUpdated, "13", "3934"),
            id("7352", Kind::FlagUpdated, "13", "3934"),
            id("7351", Kind::FlagDeleted, "13", "3934"),
            id("7351", Kind::FlagUpdated, "1", "33934"),
            id("7351", Kind::FlagUpdated, "13", "3935"),
        ];
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert!(all.iter().all(|id| id.len() == 36));
    }
}
