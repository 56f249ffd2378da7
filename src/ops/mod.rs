//! How an operator sees the daemon: logs, metrics, health and the status page. It shows; what is changed from the page is done by
//! whoever does it for the commands ([`Desk`]).

mod api;
mod desk;
mod door;
mod health;
mod listener;
pub mod logging;
mod metrics;
mod page;
mod process;
mod sample;
pub mod service;
pub mod traces;

pub use desk::{Answer, Asked, Desk};
pub use listener::serve;
