//! How an operator sees the daemon: logs. It shows; it changes nothing.

pub mod logging;
