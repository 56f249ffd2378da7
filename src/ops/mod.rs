//! How an operator sees the daemon: logs, metrics and health. It shows; it changes nothing.

mod health;
mod listener;
pub mod logging;
mod metrics;
mod process;
pub mod service;
pub mod traces;

pub use listener::serve;
