//! flagpost: correct, durable webhooks for any Flagsmith installation.
//!
//! Data flows one way: source → mirror → event → ledger → delivery. `ARCHITECTURE.md` has the map.

pub mod baseline;
pub mod capture;
pub mod change;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod delivery;
pub mod demo;
pub mod error;
pub mod event;
pub mod fact;
pub mod housekeeping;
pub mod ledger;
pub mod mirror;
pub mod notify;
pub mod ops;
pub mod prepare;
pub mod pulse;
pub mod recover;
pub mod reload;
pub mod room;
pub mod schema;
pub mod shadow;
pub mod source;
mod stage;
