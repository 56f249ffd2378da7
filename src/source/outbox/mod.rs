//! The second source, for servers without logical replication: row changes that triggers wrote to `flagpost.outbox`.
//!
//! [`Outbox`] is the SQL side, [`transactions`] makes of its rows what the stream gives. The daemon does not read it yet, so
//! the configuration refuses the mode.

mod install;
mod order;
mod read;

pub use install::Outbox;
pub use order::{Record, transactions};
