//! What the tests share: a Flagsmith database and the replay of what a running Flagsmith did to it.

use std::path::{Path, PathBuf};

use flagpost::demo::cluster::Options;
use tokio_postgres::Client;

pub(crate) use source::{Source, on_both_sources};

pub(crate) mod browser;
pub(crate) mod call;
pub(crate) mod flagsmith;
pub(crate) mod mute;
pub(crate) mod oracle;
pub(crate) mod pooler;
pub(crate) mod process;
pub(crate) mod raw;
pub(crate) mod replay;
pub(crate) mod source;

/// The recorded data.
pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// A cluster on which [`replay::Replay`] can tell when each transaction was committed.
pub(crate) fn cluster_options() -> Options {
    Options::default().set("track_commit_timestamp", "on")
}

/// Whether the server's publications can be restricted to columns: PostgreSQL 14 has no place to keep them.
pub(crate) async fn has_column_lists(client: &Client) -> bool {
    let sql =
        "SELECT FROM pg_attribute WHERE attrelid = 'pg_publication_rel'::regclass AND attname = 'prattrs'";
    client.query_opt(sql, &[]).await.unwrap().is_some()
}
