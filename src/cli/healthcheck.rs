//! `flagpost healthcheck`: asks the daemon's own listener whether it is ready. A container without a shell and curl has nothing
//! else to ask with.
//!
//! It speaks to `ops.listen` of the same configuration, on this machine, and reads no more than the answer's first line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::Config;
use crate::error::{Error, Kind, Result};

/// The daemon's answer looks at ledger and server; a container's health check gives up after 30 s by itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// `HTTP/1.1 200` is in it.
const FIRST_BYTES: u64 = 64;

/// 0: it is ready; 1: it is not, or does not answer.
pub(super) async fn ask(config: &Config) -> Result<u8> {
    let addr = config.ops_listen.map(here).ok_or_else(|| {
        Error::config(
            "ops.listen is \"off\": nothing can be asked whether it is ready; set it to 127.0.0.1:9464",
        )
    })?;
    let answer = tokio::time::timeout(PATIENCE, first_line(addr)).await;
    let failed =
        |why: String| Error::new(Kind::Internal, format!("the daemon at {addr} does not answer: {why}"));
    let line = answer
        .map_err(|_| failed(format!("nothing came within {} s", PATIENCE.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    match line.split(' ').nth(1) {
        Some("200") => {
            say!("ready");
            Ok(0)
        }
        _ => Err(Error::new(Kind::Internal, format!("not ready: {addr}/readyz answers {line:?}"))),
    }
}

/// Who listens on all addresses is asked at this machine's own.
fn here(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

async fn first_line(addr: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.take(FIRST_BYTES).read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().to_owned())
}
