//! Shadow mode, live: what it finds, what it keeps, and what its listener bears.

mod ledger;
mod listener;
mod recorded;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// An address that is free now.
fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}
