//! What `flagpost demo` and the integration tests stand on: a real PostgreSQL and a real HTTP receiver, both thrown
//! away afterwards.
//!
//! Nothing here is a mock, and nothing here is used by `flagpost run`. It knows neither Flagsmith's tables nor events.

pub mod cluster;
pub mod receiver;
