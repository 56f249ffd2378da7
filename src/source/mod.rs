//! The source: PostgreSQL in, [`Transaction`](crate::change::Transaction)s out. It knows the protocol, slots and
//! publications; it knows nothing of flags.
//!
//! Codec ([`pgoutput`]) apart from stream ([`Stream`]) apart from runtime ([`follow`]). Only the stream confirms a position,
//! and only what [`Channels::durable`] says.

mod assemble;
mod catalog;
mod conn_info;
mod coverage;
mod follow;
mod observe;
mod outbox;
pub mod pgoutput;
mod publication;
mod refusal;
mod replication;
mod snapshot;
mod sql;
mod stream;
mod transport;
mod wire;

pub use catalog::Catalog;
pub(crate) use catalog::quoted;
pub use conn_info::{ConnInfo, Host, SslMode};
pub use coverage::Coverage;
pub use follow::{Follow, follow, open};
pub use observe::{
    Identity, Listener, Quota, ServerFacts, SlotFacts, has_publication, listeners, server_facts, slot_facts,
    unreadable_tables, unusable_identities,
};
pub use outbox::{Outbox, Record, transactions};
pub use publication::{
    Publication, Step, grant_steps, publication_steps, read_grants, slot_step, uninstall_step,
};
pub use replication::{Exported, Names, PLUGIN, Replication, Server, SlotState};
pub use snapshot::{Progress, adopt, copy_tables, fetch, server_clock};
pub use sql::{connect, sql_error};
pub use stream::{BUDGET, Channels, Delivery, Item, QUEUE, Stream};
