//! The second source, for servers without logical replication: row changes that triggers wrote to `flagpost.outbox`.
//!
//! [`Outbox`] is the SQL side. [`Reader`] reads it and gives what the stream gives; [`Place`] tells how it is read, and why
//! the order is right.

mod begin;
mod facts;
mod findings;
mod install;
mod order;
mod place;
mod read;
mod reader;
mod session;

pub use begin::{claim_outbox, current_place, forget_failures, has_outbox, outbox_reader, outbox_view};
pub use facts::{
    Access, OutboxFacts, SetupFacts, outbox_access, outbox_facts, outbox_failures, outbox_setup_facts,
    outbox_tables, subscribed_tables,
};
pub use findings::Finding;
pub use install::Outbox;
pub use place::{Place, Snapshot};
pub(super) use reader::Reader;
pub use reader::Reading;

/// What the outbox is called as a source, where a slot would have its name: it belongs to one ledger.
pub fn reader_name(ledger: &str) -> String {
    format!("{PREFIX}{ledger}")
}

/// The ledger that the outbox belongs to by this name; `None` for the name of a slot, which has no colon.
pub fn reader_of(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)
}

const PREFIX: &str = "outbox:";
