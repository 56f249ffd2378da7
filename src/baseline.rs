//! The baseline: a ledger whose mirror shows the database at one position of its log, from which the stream goes on.
//!
//! Invariant: the checkpoint is written last, so a ledger that has one is complete.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::fact::{MirrorFilled, MirrorFilling};
use crate::ledger::{Identity, Ledger, Write};
use crate::mirror::{Persist, kept_key};
use crate::source::{Catalog, Progress, View, copy_tables, server_clock};

/// Between two log lines while the mirror fills.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Fills `ledger` with what `view` shows, for the source that `identity` names, and returns it opened anew.
pub async fn fill(
    config: &Config,
    mut ledger: Ledger,
    catalog: &Catalog,
    identity: &Identity,
    view: View,
) -> Result<Ledger> {
    let View { client, position, cursor } = view;
    let clock = server_clock(&client, &config.database).await?;
    ledger.begin_snapshot(identity, clock)?;
    let writer = ledger.start_writer()?;
    let mut display = Display::new();
    let writes = writer.writes.clone();
    let rows = copy_tables(
        &client,
        &config.database,
        catalog,
        async |table, row| {
            let put = Write::Mirror(Persist::Put { table, key: kept_key(table, &row), row });
            writes.send(put).await.map_err(|_| writer_gone())
        },
        |progress| display.show(progress),
    )
    .await;
    display.finish(rows.as_ref().ok().copied());
    if rows.is_ok() {
        for write in cursor.map(Write::Cursor).into_iter().chain([Write::Checkpoint(position, clock)]) {
            writes.send(write).await.map_err(|_| writer_gone())?;
        }
    }
    drop((writes, writer.writes));
    let ended = writer.ended.await.map_err(|_| writer_gone())?;
    // A failed read explains why the writer stopped in the middle; its own complaint would only hide that.
    rows?;
    ended?;
    Ledger::open(&config.state_dir)
}

fn writer_gone() -> Error {
    Error::internal("the ledger's writer has stopped")
}

/// A bar on a terminal, log lines elsewhere.
pub(crate) enum Display {
    Bar(ProgressBar),
    Log { last: Instant },
}

impl Display {
    pub(crate) fn new() -> Display {
        if !stderr().is_terminal() {
            return Display::Log { last: Instant::now() };
        }
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("filling the mirror {bar:30} {pos}/{len} rows {msg}")
        {
            bar.set_style(style);
        }
        Display::Bar(bar)
    }

    pub(crate) fn show(&mut self, progress: Progress) {
        match self {
            Display::Bar(bar) => {
                bar.set_length(progress.expected);
                bar.set_position(progress.rows);
                bar.set_message(progress.table.name());
            }
            Display::Log { last } if last.elapsed() >= LOG_EVERY => {
                *last = Instant::now();
                MirrorFilling {
                    rows: progress.rows,
                    expected: progress.expected,
                    table: progress.table.name(),
                }
                .tell();
            }
            Display::Log { .. } => {}
        }
    }

    pub(crate) fn finish(self, rows: Option<u64>) {
        if let Display::Bar(bar) = self {
            bar.finish_and_clear();
        }
        if let Some(rows) = rows {
            MirrorFilled { rows }.tell();
        }
    }
}
