//! The promises of flagpost, tested on a real PostgreSQL and real HTTP: one binary, one module per promise.

// These lints keep the daemon from panicking; a test is meant to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod architecture;
mod bad_input;
mod both_sources;
mod canary;
mod check;
mod check_cases;
mod cli;
mod cluster;
mod crash;
mod delivery;
mod demo;
mod documents;
mod endpoints;
mod golden;
mod golden_daemon;
mod health;
mod hold;
mod hostile;
mod idle;
mod messages;
mod migration;
mod monitoring;
mod notices;
mod old_flagsmith;
mod operator;
mod outage;
mod outbox;
mod outbox_check;
mod outbox_source;
mod outbox_sql;
mod packaging;
mod readme;
mod receiver;
mod receivers;
mod recover;
mod reload;
mod replication;
mod schedule;
mod shadow;
mod signing;
mod status_page;
mod story;
mod support;
mod switch_source;
mod systemd;
mod traces;
