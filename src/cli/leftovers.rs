//! What of flagpost is in the database, of either source, and what it costs the server when nobody reads it any more.
//!
//! It looks at what is there, not at `source.mode`: what an earlier mode left behind is told as well.

use super::size;
use crate::config::Config;
use crate::error::Result;
use crate::source::{SlotFacts, connect, has_outbox, has_publication, outbox_facts, quoted, slot_facts};

/// A line for each thing, and below it, indented, the SQL that removes it; none where the database has nothing of flagpost.
pub(super) async fn read(config: &Config) -> Result<Vec<String>> {
    let info = &config.database;
    let names = &config.names;
    let client = connect(info).await?;
    let mut lines = Vec::new();
    if let Some(slot) = slot_facts(&client, info, &names.slot).await?
        && slot.is_ours(info)
    {
        lines.push(slot_line(&names.slot, &slot));
        lines.push(format!("    SELECT pg_drop_replication_slot('{}');", names.slot));
    }
    if has_publication(&client, info, &names.publication).await? {
        lines.push(format!("publication {:?}", names.publication));
        lines.push(format!("    DROP PUBLICATION {};", quoted(&names.publication)));
    }
    if has_outbox(&client, info).await? {
        // Its size is for those who may read it. That it is there is not.
        let filled = outbox_facts(&client, info).await.map(|outbox| {
            let (bytes, changes) = (size::bytes(outbox.bytes), size::counted(outbox.changes, "change"));
            format!(" ({bytes}, {changes} not read)")
        });
        let filled = filled.unwrap_or_default();
        lines.push(format!("outbox{filled}: triggers on Flagsmith's tables write to it, up to its cap"));
        // The triggers go with their function. "uninstall" takes care to lock one table at a time.
        lines.push("    DROP SCHEMA flagpost CASCADE; DROP ROLE flagpost_owner;".to_owned());
    }
    Ok(lines)
}

fn slot_line(name: &str, slot: &SlotFacts) -> String {
    let reader = if slot.active_pid.is_some() { "somebody reads it" } else { "nobody reads it" };
    match slot.retained_bytes {
        Some(bytes) => format!(
            "replication slot {name:?}: {reader}; the server keeps {} of its log for it, and more with every change",
            size::bytes(bytes)
        ),
        // Invalidated: it takes one of max_replication_slots, and no room.
        None => format!("replication slot {name:?}: {reader}; its log is gone ({})", slot.wal_status),
    }
}
