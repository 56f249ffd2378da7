//! The promises of flagpost, tested on a real PostgreSQL and real HTTP: one binary, one module per promise.

// These lints keep the daemon from panicking; a test is meant to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod cluster;
mod demo;
mod golden;
mod receiver;
mod replication;
mod support;
