//! `flagpost demo`, and what it and the integration tests stand on: a real PostgreSQL and a real HTTP receiver, both
//! thrown away afterwards.
//!
//! Nothing here is a mock, and nothing here is used by `flagpost run`. [`cluster`] and [`receiver`] know neither
//! Flagsmith's tables nor events; the other modules are the demo: [`play`](play::play) sets a stage, tells its story and
//! sums up. The daemon in it is this very binary as a child process, so nothing in here can make it look better.

pub mod cluster;
mod crash;
mod daemon;
mod flagsmith;
pub mod play;
mod proof;
pub mod receiver;
mod show;
mod speed;
mod stage;
mod story;
mod tally;
mod webhook;
