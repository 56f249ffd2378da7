//! A replication connection: startup, authentication, commands, and the copy-both stream.
//!
//! Frames are cut here and not by `postgres-protocol`'s `Message::parse`, which refuses `CopyBothResponse` and has no
//! limit. The connection is broken, never guessed at, when the bytes make no sense.
//!
//! Sources: PostgreSQL manual, "Frontend/Backend Protocol" and "Streaming Replication Protocol".

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;
use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::conn_info::ConnInfo;
use super::refusal::refusal;
use super::sql::{PINNED, timed_out};
use super::transport::Transport;
use crate::error::{Error, Kind, Result};

/// No message of a PostgreSQL server is longer: its own allocations end at 1 GB (`MaxAllocSize`).
const FRAME_LIMIT: usize = 0x4000_0000;
/// How much is read at once. Large enough that a busy stream costs few system calls.
const READ_CHUNK: usize = 64 * 1024;

/// How long a good-bye may take: the slot becomes free without us too, only later.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// One message of the server.
pub(crate) struct Frame {
    pub(crate) tag: u8,
    pub(crate) body: Bytes,
}

/// See the module's documentation.
pub(crate) struct Wire {
    transport: Transport,
    info: ConnInfo,
    input: BytesMut,
    /// How many bytes the last read brought: tells a busy stream from an idle one.
    pub(crate) last_read: usize,
}

/// A row of text fields, `None` for NULL.
pub(crate) type TextRow = Vec<Option<String>>;

impl Wire {
    /// Connects with `replication=database` and authenticates.
    pub(crate) async fn connect(info: &ConnInfo) -> Result<Wire> {
        let connecting = async {
            let transport = Transport::connect(info).await?;
            let mut wire = Wire {
                transport,
                info: info.clone(),
                input: BytesMut::with_capacity(READ_CHUNK),
                last_read: 0,
            };
            wire.start().await?;
            Ok(wire)
        };
        tokio::time::timeout(info.connect_timeout, connecting).await.map_err(|_| timed_out(info))?
    }

    async fn start(&mut self) -> Result<()> {
        let mut out = BytesMut::new();
        let fixed = [
            ("user", self.info.user.as_str()),
            ("database", self.info.database.as_str()),
            ("application_name", self.info.application_name.as_str()),
            ("replication", "database"),
        ];
        frontend::startup_message(fixed.into_iter().chain(PINNED), &mut out).map_err(|e| {
            Error::config(format!(
                "database.url cannot be used: {e}: user and database must have no NUL byte"
            ))
        })?;
        self.send(&out).await?;
        self.authenticate().await?;
        loop {
            let frame = self.frame().await?;
            match frame.tag {
                b'Z' => return Ok(()),
                b'E' => return Err(self.refused("connecting for replication", &frame.body)),
                // ParameterStatus, BackendKeyData, NoticeResponse.
                _ => {}
            }
        }
    }

    async fn authenticate(&mut self) -> Result<()> {
        loop {
            let mut frame = self.frame().await?;
            match frame.tag {
                b'E' => return Err(self.refused("connecting for replication", &frame.body)),
                b'R' => {}
                b'N' | b'v' => continue,
                _ => return Err(self.garbled("an answer to the startup message")),
            }
            let method = frame.body.try_get_i32().map_err(|_| self.garbled("an authentication request"))?;
            let mut out = BytesMut::new();
            match method {
                0 => return Ok(()),
                3 => {
                    let password = self.password()?;
                    frontend::password_message(password.as_bytes(), &mut out).map_err(|e| self.broken(&e))?;
                    self.send(&out).await?;
                }
                5 => {
                    let salt: [u8; 4] =
                        frame.body.as_ref().try_into().map_err(|_| self.garbled("an MD5 salt"))?;
                    let password = self.password()?;
                    let hash = md5_hash(self.info.user.as_bytes(), password.as_bytes(), salt);
                    frontend::password_message(hash.as_bytes(), &mut out).map_err(|e| self.broken(&e))?;
                    self.send(&out).await?;
                }
                10 => self.scram(&frame.body).await?,
                other => {
                    return Err(Error::new(
                        Kind::DatabaseRefuses,
                        format!(
                            "the server {} asks for authentication method {other}, which flagpost does not have: use \
                             scram-sha-256 for its role in pg_hba.conf",
                            self.info.shown()
                        ),
                    ));
                }
            }
        }
    }

    fn password(&self) -> Result<String> {
        self.info.password.as_ref().map(|p| p.expose_secret().to_owned()).ok_or_else(|| {
            Error::new(
                Kind::DatabaseRefuses,
                format!(
                    "the database {} wants a password and there is none: set database.password_file",
                    self.info.shown()
                ),
            )
        })
    }

    /// SCRAM (RFC 5802), with channel binding where there is TLS and the server offers it.
    async fn scram(&mut self, mechanisms: &[u8]) -> Result<()> {
        let offers = |name: &str| mechanisms.split(|b| *b == 0).any(|offered| offered == name.as_bytes());
        let (binding, mechanism) = match self.transport.channel_binding() {
            Some(data) if offers(SCRAM_SHA_256_PLUS) => {
                (ChannelBinding::tls_server_end_point(data), SCRAM_SHA_256_PLUS)
            }
            // We could and the server could not: says so, which a meddler in between cannot hide.
            Some(_) => (ChannelBinding::unrequested(), SCRAM_SHA_256),
            None => (ChannelBinding::unsupported(), SCRAM_SHA_256),
        };
        if !offers(mechanism) {
            return Err(self.garbled("a list of SASL mechanisms without SCRAM-SHA-256"));
        }
        let password = self.password()?;
        let mut scram = ScramSha256::new(password.as_bytes(), binding);
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out).map_err(|e| self.broken(&e))?;
        self.send(&out).await?;
        let challenge = self.sasl(11).await?;
        scram.update(&challenge).map_err(|e| self.broken(&e))?;
        out.clear();
        frontend::sasl_response(scram.message(), &mut out).map_err(|e| self.broken(&e))?;
        self.send(&out).await?;
        let last = self.sasl(12).await?;
        scram.finish(&last).map_err(|e| self.broken(&e))
    }

    async fn sasl(&mut self, expected: i32) -> Result<Bytes> {
        let mut frame = self.frame().await?;
        if frame.tag == b'E' {
            return Err(self.refused("connecting for replication", &frame.body));
        }
        match (frame.tag, frame.body.try_get_i32()) {
            (b'R', Ok(method)) if method == expected => Ok(frame.body),
            _ => Err(self.garbled("a SASL message")),
        }
    }

    /// Runs a replication command (or SQL) and returns the rows of its last result.
    pub(crate) async fn query(&mut self, doing: &str, command: &str) -> Result<Vec<TextRow>> {
        self.send_query(command).await?;
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            let frame = self.frame().await?;
            match frame.tag {
                b'D' => rows.push(self.text_row(frame.body)?),
                b'E' => error = Some(self.refused(doing, &frame.body)),
                b'Z' => break,
                _ => {}
            }
        }
        error.map_or(Ok(rows), Err)
    }

    /// Runs `START_REPLICATION` and returns when the stream is open.
    pub(crate) async fn start_copy(&mut self, doing: &str, command: &str) -> Result<()> {
        self.send_query(command).await?;
        loop {
            let frame = self.frame().await?;
            match frame.tag {
                b'W' => return Ok(()),
                b'E' => return Err(self.refused(doing, &frame.body)),
                b'N' | b'S' => {}
                _ => return Err(self.garbled("an answer to START_REPLICATION")),
            }
        }
    }

    async fn send_query(&mut self, command: &str) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::query(command, &mut out).map_err(|e| self.broken(&e))?;
        self.send(&out).await
    }

    /// Sends one `CopyData` message.
    pub(crate) async fn send_copy(&mut self, payload: &[u8]) -> Result<()> {
        let mut out = BytesMut::with_capacity(payload.len() + 5);
        frontend::CopyData::new(payload).map_err(|e| self.broken(&e))?.write(&mut out);
        self.send(&out).await
    }

    /// Ends the stream and the session politely, and waits for the server to do so: then the slot is free.
    pub(crate) async fn close(mut self) {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        frontend::terminate(&mut out);
        // The connection may be gone already; then it needs no good-bye.
        if self.send(&out).await.is_ok() {
            self.transport.shutdown().await.ok();
            // The server lets go of the slot before it closes; whatever else it still sends is not handed on.
            let closed = async {
                while self.read().await.is_ok() {
                    self.input.clear()
                }
            };
            tokio::time::timeout(CLOSE_DEADLINE, closed).await.ok();
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = async {
            self.transport.write_all(bytes).await?;
            self.transport.flush().await
        };
        sent.await.map_err(|e| self.broken(&e))
    }

    /// The next message. Cancellation-safe: what has been read stays.
    pub(crate) async fn frame(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            self.read().await?;
        }
    }

    /// A message that has been read already.
    pub(crate) fn buffered(&mut self) -> Result<Option<Frame>> {
        cut_frame(&mut self.input).map_err(|length| self.garbled(&format!("a message of {length} bytes")))
    }

    async fn read(&mut self) -> Result<()> {
        self.input.reserve(READ_CHUNK);
        let count = self.transport.read_buf(&mut self.input).await.map_err(|e| self.broken(&e))?;
        if count == 0 {
            return Err(self
                .broken(&io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")));
        }
        self.last_read = count;
        Ok(())
    }

    /// The error for an `ErrorResponse`.
    pub(crate) fn refused(&self, doing: &str, body: &[u8]) -> Error {
        let field = |code: u8| {
            body.split(|b| *b == 0)
                .find_map(|field| field.split_first().filter(|(c, _)| **c == code))
                .map(|(_, text)| String::from_utf8_lossy(text).into_owned())
                .unwrap_or_default()
        };
        refusal(&self.info, doing, &field(b'C'), &field(b'M'))
    }

    fn text_row(&self, mut body: Bytes) -> Result<TextRow> {
        let bad = || self.garbled("a data row");
        let count = body.try_get_u16().map_err(|_| bad())?;
        let mut row = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let length = body.try_get_i32().map_err(|_| bad())?;
            row.push(match usize::try_from(length) {
                Err(_) => None,
                Ok(length) if length <= body.len() => {
                    Some(String::from_utf8(body.split_to(length).to_vec()).map_err(|_| bad())?)
                }
                Ok(_) => return Err(bad()),
            });
        }
        Ok(row)
    }

    fn garbled(&self, what: &str) -> Error {
        Error::new(
            Kind::DatabaseUnreachable,
            format!(
                "{} sent {what} that makes no sense here: check that it is a PostgreSQL server of version 14 or later",
                self.info.shown()
            ),
        )
    }

    fn broken(&self, error: &io::Error) -> Error {
        Error::new(
            Kind::DatabaseUnreachable,
            format!("the connection to {} broke: {error}: check the server's log", self.info.shown()),
        )
    }
}

/// Cuts one message off the front of `input`; `None` when it is not complete yet, the length when that is impossible.
fn cut_frame(input: &mut BytesMut) -> Result<Option<Frame>, usize> {
    let Some((&[tag, a, b, c, d], _)) = input.split_first_chunk::<5>() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if !(4..=FRAME_LIMIT).contains(&length) {
        return Err(length);
    }
    if input.len() < length + 1 {
        return Ok(None);
    }
    let mut frame = input.split_to(length + 1).freeze();
    frame.advance(5);
    Ok(Some(Frame { tag, body: frame }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_are_cut_wherever_the_reads_end(
            frames in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..50)), 0..10),
            step in 1usize..20,
        ) {
            let mut bytes = Vec::new();
            for (tag, body) in &frames {
                bytes.push(*tag);
                bytes.extend_from_slice(&(u32::try_from(body.len()).unwrap() + 4).to_be_bytes());
                bytes.extend_from_slice(body);
            }
            let mut input = BytesMut::new();
            let mut cut = Vec::new();
            for chunk in bytes.chunks(step) {
                input.extend_from_slice(chunk);
                while let Some(frame) = cut_frame(&mut input).unwrap() {
                    cut.push((frame.tag, frame.body.to_vec()));
                }
            }
            prop_assert_eq!(cut, frames);
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = cut_frame(&mut input) {}
        }
    }

    #[test]
    fn a_message_longer_than_the_server_can_make_is_refused() {
        let mut input = BytesMut::from(&[b'd', 0x7f, 0xff, 0xff, 0xff, 0][..]);
        assert_eq!(cut_frame(&mut input).err(), Some(0x7fff_ffff));
        let mut input = BytesMut::from(&[b'd', 0, 0, 0, 3][..]);
        assert_eq!(cut_frame(&mut input).err(), Some(3));
    }
}
