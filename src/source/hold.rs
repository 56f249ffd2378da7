//! What the slot makes the server keep: a look now and then, a word in the log when something about it changes.
//!
//! It decides nothing about the daemon: [`Hold::levels`] says how full `source.max_retained_wal` is, and whoever cannot get on
//! asks it. Each change is told once, not each look.
//!
//! Source: PostgreSQL manual, `pg_replication_slots` (`wal_status`, `safe_wal_size`).

use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::conn_info::ConnInfo;
use super::observe::{SlotFacts, slot_facts};
use super::replication::Replication;
use super::sql::reuse;
use crate::error::Result;
use crate::fact::{
    SlotUnseen, WalExtended, WalHeldFine, WalHeldHigh, WalHeldLess, WalHeldOver, WalLost, WalReserved,
    WalUnreserved,
};

/// Between two looks: one short query.
const LOOK: Duration = Duration::from_secs(10);
/// The same while more than half of what the server may keep is kept.
const CLOSE_LOOK: Duration = Duration::from_secs(1);

/// What the server may keep for the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Bytes of its log; 0 is no limit.
    pub bytes: u64,
    /// Whether a daemon that cannot get on gives the slot up beyond it.
    pub gives_up: bool,
}

impl Default for Limit {
    fn default() -> Self {
        Limit { bytes: 10 << 30, gives_up: false }
    }
}

/// How much of what the server may keep is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Half of it at the most, or there is no limit.
    #[default]
    Fine,
    /// More than half.
    High,
    /// More than it may.
    Over,
}

impl Limit {
    /// Where so many bytes are.
    pub fn level(self, retained: i64) -> Level {
        let retained = u64::try_from(retained).unwrap_or(0);
        match self.bytes {
            0 => Level::Fine,
            limit if retained > limit => Level::Over,
            limit if retained > limit / 2 => Level::High,
            _ => Level::Fine,
        }
    }
}

/// What a look has found, as far as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    level: Level,
    wal_status: String,
}

/// See the module's documentation.
pub struct Hold {
    info: ConnInfo,
    slot: String,
    limit: Limit,
    client: Option<Client>,
    seen: Seen,
    level: watch::Sender<Level>,
}

impl Hold {
    /// Looks at the slot of this name.
    pub fn new(info: ConnInfo, slot: String, limit: Limit) -> Hold {
        let seen = Seen { level: Level::Fine, wal_status: "reserved".into() };
        Hold { info, slot, limit, client: None, seen, level: watch::channel(Level::Fine).0 }
    }

    /// How much is kept, as of the last look.
    pub fn levels(&self) -> watch::Receiver<Level> {
        self.level.subscribe()
    }

    /// Looks until `stop`. A server that does not answer is left for the next look: others tell of it.
    pub async fn watch(mut self, stop: CancellationToken) {
        loop {
            match stop.run_until_cancelled(self.look()).await {
                None => return,
                Some(Ok(Some(facts))) => self.note(&facts),
                // None yet, or it is gone: who reads it tells.
                Some(Ok(None)) => {}
                Some(Err(error)) => SlotUnseen { error: error.to_string() }.tell(),
            }
            let wait = if self.seen.level == Level::Fine { LOOK } else { CLOSE_LOOK };
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    async fn look(&mut self) -> Result<Option<SlotFacts>> {
        let client = reuse(self.client.take(), &self.info).await?;
        let facts = slot_facts(&client, &self.info, &self.slot).await?;
        self.client = Some(client);
        Ok(facts)
    }

    fn note(&mut self, facts: &SlotFacts) {
        let level = self.limit.level(facts.retained_bytes.unwrap_or(0));
        let seen = Seen { level, wal_status: facts.wal_status.clone() };
        let before = std::mem::replace(&mut self.seen, seen);
        self.level.send_replace(level);
        if level != before.level {
            self.tell_level(level, before.level, facts.retained_bytes.unwrap_or(0));
        }
        if facts.wal_status != before.wal_status {
            self.tell_status(facts);
        }
    }

    fn tell_level(&self, level: Level, before: Level, wal_held_bytes: i64) {
        let (slot, max_retained_wal) = (self.slot.clone(), self.limit.bytes);
        match level {
            Level::Fine => WalHeldFine { slot, wal_held_bytes, max_retained_wal }.tell(),
            Level::High if before == Level::Over => {
                WalHeldLess { slot, wal_held_bytes, max_retained_wal }.tell();
            }
            Level::High => WalHeldHigh { slot, wal_held_bytes, max_retained_wal }.tell(),
            Level::Over => {
                let action =
                    if self.limit.gives_up { "drop-slot, if flagpost cannot get on" } else { "warn" };
                WalHeldOver { slot, wal_held_bytes, max_retained_wal, action }.tell();
            }
        }
    }

    fn tell_status(&self, facts: &SlotFacts) {
        let slot = self.slot.clone();
        let (wal_held_bytes, safe_wal_bytes) = (facts.retained_bytes, facts.safe_bytes);
        match facts.wal_status.as_str() {
            "reserved" => WalReserved { slot, wal_held_bytes }.tell(),
            "extended" => WalExtended { slot, wal_held_bytes, safe_wal_bytes }.tell(),
            "unreserved" => WalUnreserved { slot, wal_held_bytes, safe_wal_bytes }.tell(),
            status => {
                let reason = facts.invalidation.clone();
                WalLost { slot, wal_status: status.to_owned(), reason }.tell();
            }
        }
    }
}

/// The last resort: drops the slot, so that the server need not keep its log any longer. Waits until nobody reads it.
pub async fn give_up_slot(info: &ConnInfo, name: &str) -> Result<()> {
    let mut replication = Replication::connect(info).await?;
    match replication.slot_unread(name).await? {
        Some(slot) => {
            slot.require_ours(name, &info.database)?;
            replication.drop_slot(name).await
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_limit_is_fine_and_all_of_it_is_not_over() {
        let limit = Limit { bytes: 1000, gives_up: false };
        let levels = [-1, 0, 500, 501, 1000, 1001, i64::MAX].map(|retained| limit.level(retained));
        let (fine, high, over) = (Level::Fine, Level::High, Level::Over);
        assert_eq!(levels, [fine, fine, fine, high, high, over, over]);
        assert_eq!(Limit { bytes: 0, gives_up: true }.level(i64::MAX), fine);
    }
}
