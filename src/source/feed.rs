//! Either source, followed through broken connections: open, read, and open again. After this nobody knows which it is.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::follow::{Follow, Following};
use super::outbox::{Reader, Reading};
use super::stream::Channels;
use crate::error::{Error, Policy, Result};
use crate::fact::{SourceBack, SourceDown};
use crate::pulse::Pulse;

/// Between two tries to connect: doubled from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LAST_WAIT: Duration = Duration::from_secs(15);

/// What to read.
#[derive(Debug, Clone)]
pub enum Origin {
    /// The replication stream.
    Replication(Follow),
    /// The outbox.
    Outbox(Reading),
}

/// An open source.
pub enum Feed {
    /// The replication stream.
    Replication(Box<Following>),
    /// The outbox.
    Outbox(Box<Reader>),
}

impl Feed {
    /// Opens the source. Every error is final: what was never open is not waited for.
    pub async fn open(origin: Origin, channels: Channels) -> Result<Feed> {
        Ok(match origin {
            Origin::Replication(follow) => {
                Feed::Replication(Box::new(Following::open(follow, channels).await?))
            }
            Origin::Outbox(reading) => Feed::Outbox(Box::new(Reader::open(reading, channels).await?)),
        })
    }

    /// Reads until `stop` or the source's end, connecting again whenever the connection breaks. Returns the source, if it is
    /// open, so that the last confirmation can be sent to it.
    pub async fn follow(mut self, stop: &CancellationToken) -> Result<Option<Feed>> {
        loop {
            let error = match self.run(stop).await {
                Ok(()) => {
                    self.hand_on_no_more();
                    return Ok(Some(self));
                }
                Err(error) => error,
            };
            self.pulse().source_closed(&error);
            give_up_or_warn(&error, FIRST_WAIT)?;
            let mut wait = FIRST_WAIT;
            loop {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = stop.cancelled() => return Ok(None),
                }
                tokio::select! {
                    result = self.reopen() => match result {
                        Ok(()) => break,
                        Err(error) => {
                            self.pulse().source_closed(&error);
                            wait = (wait * 2).min(LAST_WAIT);
                            give_up_or_warn(&error, wait)?;
                        }
                    },
                    () = stop.cancelled() => return Ok(None),
                }
            }
            SourceBack {}.tell();
        }
    }

    fn pulse(&self) -> &Pulse {
        match self {
            Feed::Replication(following) => following.pulse(),
            Feed::Outbox(reader) => reader.pulse(),
        }
    }

    async fn run(&mut self, stop: &CancellationToken) -> Result<()> {
        match self {
            Feed::Replication(following) => following.run(stop).await,
            Feed::Outbox(reader) => reader.run(stop).await,
        }
    }

    async fn reopen(&mut self) -> Result<()> {
        match self {
            Feed::Replication(following) => following.reopen().await,
            Feed::Outbox(reader) => reader.reopen().await,
        }
    }

    fn hand_on_no_more(&mut self) {
        match self {
            Feed::Replication(following) => following.hand_on_no_more(),
            Feed::Outbox(reader) => reader.hand_on_no_more(),
        }
    }

    /// Confirms what has become durable, and ends the session.
    pub async fn finish(self) {
        match self {
            Feed::Replication(following) => following.finish().await,
            Feed::Outbox(reader) => reader.finish().await,
        }
    }
}

fn give_up_or_warn(error: &Error, wait: Duration) -> Result<()> {
    match error.kind().policy() {
        Policy::Stop => Err(Error::new(error.kind(), error.to_string())),
        Policy::Retry => {
            let retry_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            SourceDown { error: error.to_string(), retry_in_ms }.tell();
            Ok(())
        }
    }
}
