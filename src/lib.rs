//! flagpost: correct, durable webhooks for any Flagsmith installation.
//!
//! Data flows one way: source → mirror → event → ledger → delivery. `ARCHITECTURE.md` has the map.

pub mod change;
pub mod delivery;
pub mod demo;
pub mod error;
pub mod event;
pub mod ledger;
pub mod mirror;
pub mod schema;
