//! One test body, two sources.

use flagpost::demo::cluster::Options;

use super::process::Installation;

/// Where the daemon reads changes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Replication,
    Outbox,
}

impl Source {
    /// A server that has what the source needs and no more.
    pub(crate) fn options(self) -> Options {
        match self {
            Source::Replication => Options::default(),
            Source::Outbox => Options::default().set("wal_level", "replica"),
        }
    }

    /// An installation that reads it.
    pub(crate) fn installation(self, url: &str) -> Installation {
        Installation::new(url).with("FLAGPOST_SOURCE_MODE", self.mode())
    }

    /// The value of `source.mode`.
    pub(crate) fn mode(self) -> &'static str {
        match self {
            Source::Replication => "replication",
            Source::Outbox => "outbox",
        }
    }
}

/// Makes a test for each source of functions that take one.
macro_rules! on_both_sources {
    ($($name:ident),+ $(,)?) => {
        mod replication {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::support::Source::Replication).await;
            })+
        }
        mod outbox {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::support::Source::Outbox).await;
            })+
        }
    };
}
pub(crate) use on_both_sources;
