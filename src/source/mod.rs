//! The source: PostgreSQL in, [`Transaction`](crate::change::Transaction)s out. It knows the protocol, slots, publications
//! and the outbox; it knows nothing of flags.
//!
//! Codec ([`pgoutput`]) apart from stream ([`Stream`]) apart from runtime ([`Feed`]). Only stream and outbox reader tell the
//! server what it need not keep, and only what [`Channels::durable`] says.

mod assemble;
mod catalog;
mod conn_info;
mod coverage;
mod feed;
mod follow;
mod health;
mod heartbeat;
mod hold;
mod observe;
mod outbox;
pub mod pgoutput;
mod pooler;
mod publication;
mod refusal;
mod replication;
mod service;
mod snapshot;
mod sql;
mod stream;
mod traces;
mod transport;
mod wire;

pub use catalog::Catalog;
pub(crate) use catalog::quoted;
pub use conn_info::{ConnInfo, Host, SslMode};
pub use coverage::{Coverage, Covering};
pub use feed::{Feed, Origin};
pub use follow::Follow;
pub use health::{
    Aged, OwnCalls, RoleFacts, SessionFacts, SlotCost, TlsFacts, all_slots, filtered_tables, migrations,
    open_transactions, own_calls, prepared_transactions, role_facts, session_facts, settings, slot_cost,
    tls_facts, unread_slots,
};
pub use heartbeat::beat;
pub use hold::{Hold, Level, Limit, give_up_slot};
pub use observe::{
    Identity, Listener, Quota, ServerFacts, SlotFacts, has_publication, listeners, server_facts, server_port,
    slot_facts, system_id, unreadable_tables, unusable_identities,
};
pub use outbox::{
    Access, Finding, Outbox, OutboxFacts, Place, Reading, SetupFacts, Snapshot, claim_outbox, current_place,
    forget_failures, has_outbox, outbox_access, outbox_facts, outbox_failures, outbox_reader,
    outbox_setup_facts, outbox_tables, outbox_view, reader_name, reader_of, subscribed_tables,
};
pub use pooler::has_transaction_pooler;
pub use publication::{
    Publication, Step, grant_steps, publication_steps, read_grants, read_role_steps, slot_step,
    uninstall_step,
};
pub use replication::{Exported, Names, PLUGIN, Replication, Server, SlotState};
pub use service::{Marks, Service, service_marks};
pub use snapshot::{Progress, View, adopt, copy_tables, exported_view, fetch, present_view, server_clock};
pub use sql::{connect, reuse, sql_error};
pub use stream::{Channels, Delivery, Item, QUEUE, Stream};
pub use traces::{audits, histories};
