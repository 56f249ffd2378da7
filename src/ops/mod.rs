//! How an operator sees the daemon: logs and metrics. It shows; it changes nothing.

mod listener;
pub mod logging;
mod metrics;
mod process;
pub mod service;

pub use listener::serve;
