//! The second source, for servers without logical replication: row changes that triggers wrote to `flagpost.outbox`.
//!
//! [`Outbox`] is the SQL side; the daemon does not read it yet, so the configuration refuses the mode.

mod install;

pub use install::Outbox;
