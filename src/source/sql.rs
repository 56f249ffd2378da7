//! Ordinary SQL connections, over the same transport as replication, with the text forms of values pinned.

use std::convert::Infallible;
use std::future::{Ready, poll_fn, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio_postgres::config::{SslMode as ClientSslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls};

use super::conn_info::ConnInfo;
use super::refusal::refusal;
use super::transport::Transport;
use crate::error::{Error, Kind, Result};
use crate::fact::{ServerSays, SqlEnded};

/// Text forms must not depend on the server's or the role's settings: a mirror row filled by SQL and one that came with the
/// stream are compared.
pub(crate) const PINNED: [(&str, &str); 6] = [
    ("DateStyle", "ISO, YMD"),
    ("TimeZone", "UTC"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
];

/// The statements that pin the text forms, each begun with `set`: `SET`, or `SET LOCAL` for this transaction.
pub(super) fn pinned(set: &str) -> String {
    let settings: Vec<String> =
        PINNED.iter().map(|(name, value)| format!("{set} {name} = '{value}'")).collect();
    settings.join("; ")
}

/// Opens an SQL connection. The connection lives as long as the client that is returned.
pub async fn connect(info: &ConnInfo) -> Result<Client> {
    connect_notified(info, Arc::new(Notify::new())).await
}

/// The connection that was kept, if it is still open, else a new one.
pub async fn reuse(kept: Option<Client>, info: &ConnInfo) -> Result<Client> {
    match kept.filter(|client| !client.is_closed()) {
        Some(client) => Ok(client),
        None => connect(info).await,
    }
}

/// Opens an SQL connection, and passes on that a notification has come (PostgreSQL manual, "LISTEN").
pub(super) async fn connect_notified(info: &ConnInfo, notified: Arc<Notify>) -> Result<Client> {
    let connecting = async {
        let transport = Transport::connect(info).await?;
        let client = start(info, transport, notified).await?;
        client.batch_execute(&pinned("SET")).await.map_err(|e| sql_error(info, "preparing a session", &e))?;
        Ok(client)
    };
    tokio::time::timeout(info.connect_timeout, connecting).await.map_err(|_| timed_out(info))?
}

pub(crate) fn timed_out(info: &ConnInfo) -> Error {
    Error::new(
        Kind::DatabaseUnreachable,
        format!(
            "the database {} did not let us in within {} s: check that it is up and that no firewall stands between",
            info.shown(),
            info.connect_timeout.as_secs()
        ),
    )
}

async fn start(info: &ConnInfo, transport: Transport, notified: Arc<Notify>) -> Result<Client> {
    let mut config = Config::new();
    config.user(&info.user).dbname(&info.database).application_name(&info.application_name);
    if let Some(password) = &info.password {
        config.password(password.expose_secret());
    }
    let failed = |e: tokio_postgres::Error| sql_error(info, "connecting", &e);
    if transport.is_encrypted() {
        // TLS has been negotiated already: the client is only told so, for SCRAM's channel binding.
        config.ssl_mode(ClientSslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        let (client, connection) = config.connect_raw(transport, Negotiated).await.map_err(failed)?;
        tokio::spawn(drive(connection, notified));
        Ok(client)
    } else {
        config.ssl_mode(ClientSslMode::Disable);
        let (client, connection) = config.connect_raw(transport, NoTls).await.map_err(failed)?;
        tokio::spawn(drive(connection, notified));
        Ok(client)
    }
}

async fn drive<T>(mut connection: Connection<Transport, T>, notified: Arc<Notify>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
        match message {
            Ok(AsyncMessage::Notification(_)) => notified.notify_one(),
            Ok(AsyncMessage::Notice(notice)) => ServerSays { notice: notice.message().to_owned() }.tell(),
            Ok(_) => {}
            // Whoever uses the client gets the error too; here it is only worth a trace.
            Err(error) => {
                SqlEnded { error: error.to_string() }.tell();
                return;
            }
        }
    }
}

/// The error for a failed statement.
pub fn sql_error(info: &ConnInfo, doing: &str, error: &tokio_postgres::Error) -> Error {
    if let Some(db) = error.as_db_error() {
        return refusal(info, doing, db.code().code(), db.message());
    }
    let cause = std::error::Error::source(error).map(|e| format!(": {e}")).unwrap_or_default();
    let text = format!("{error}{cause}");
    if text.contains("password missing") {
        return Error::new(
            Kind::DatabaseRefuses,
            format!(
                "the database {} wants a password and there is none: set database.password_file",
                info.shown()
            ),
        );
    }
    Error::new(
        Kind::DatabaseUnreachable,
        format!("{doing} at {}: {text}: check that the server is up", info.shown()),
    )
}

/// Hands on a transport whose TLS is already up.
struct Negotiated;

impl TlsConnect<Transport> for Negotiated {
    type Stream = BoundTransport;
    type Error = Infallible;
    type Future = Ready<Result<BoundTransport, Infallible>>;

    fn connect(self, stream: Transport) -> Self::Future {
        ready(Ok(BoundTransport(stream)))
    }
}

struct BoundTransport(Transport);

impl TlsStream for BoundTransport {
    fn channel_binding(&self) -> ChannelBinding {
        self.0.channel_binding().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

impl AsyncRead for BoundTransport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for BoundTransport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}
