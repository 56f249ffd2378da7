//! What a bug report tells of the database: its version and settings, what flagpost made there, and what Flagsmith it is. Names and
//! numbers; no row of Flagsmith's.

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::config::{Config, Mode};
use crate::error::Result;
use crate::source::{
    Catalog, Publication, all_slots, connect, migrations, outbox_access, outbox_facts, outbox_tables,
    role_facts, server_facts, session_facts, settings, slot_cost,
};

/// Settings that decide about replication, sessions and durability.
const SETTINGS: &[&str] = &[
    "server_version",
    "wal_level",
    "max_replication_slots",
    "max_wal_senders",
    "max_slot_wal_keep_size",
    "wal_keep_size",
    "max_wal_size",
    "idle_replication_slot_timeout",
    "wal_sender_timeout",
    "logical_decoding_work_mem",
    "max_connections",
    "superuser_reserved_connections",
    "statement_timeout",
    "lock_timeout",
    "idle_session_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
    "tcp_keepalives_idle",
    "tcp_user_timeout",
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "synchronous_standby_names",
    "track_commit_timestamp",
    "hot_standby_feedback",
    "sync_replication_slots",
    "synchronized_standby_slots",
    "ssl",
    "password_encryption",
    "server_encoding",
    "TimeZone",
    "max_prepared_transactions",
    "session_replication_role",
    "autovacuum",
    "data_checksums",
];

/// Everything that can be read; each part says why it cannot.
pub(super) async fn facts(config: &Config) -> Value {
    let client = match connect(&config.database).await {
        Ok(client) => client,
        Err(error) => return json!({ "error": error.to_string() }),
    };
    let info = &config.database;
    let (client, names) = (&client, &config.names);
    let debug = |value: &dyn std::fmt::Debug| json!(format!("{value:?}"));
    json!({
        "settings": told(settings(client, info, SETTINGS).await.map(|all| json!(all))),
        "server": told(server_facts(client, info).await.map(|facts| debug(&facts))),
        "session": told(session_facts(client, info).await.map(|facts| debug(&facts))),
        "role": told(role_facts(client, info, &names.schema).await.map(|facts| debug(&facts))),
        "slots": told(all_slots(client, info).await.map(slots)),
        "slot_cost": told(slot_cost(client, info, &names.slot).await.map(|cost| debug(&cost))),
        "tables": told(tables(config, client).await),
        "outbox": told(outbox(config, client).await),
        "migrations": told(migrations(client, info, &names.schema).await.map(|all| json!(all))),
    })
}

fn told(found: Result<Value>) -> Value {
    found.unwrap_or_else(|error| json!({ "error": error.to_string() }))
}

fn slots(all: Vec<String>) -> Value {
    all.iter().map(|slot| serde_json::from_str::<Value>(slot).unwrap_or_default()).collect()
}

/// The columns of each table that are there, and what is published of it.
async fn tables(config: &Config, client: &Client) -> Result<Value> {
    let info = &config.database;
    let catalog = Catalog::read(client, info, &config.names.schema).await?;
    let publication = Publication::read(client, info, &catalog, &config.names.publication).await?;
    let columns: serde_json::Map<String, Value> = catalog
        .tables
        .keys()
        .map(|table| (table.name().to_owned(), json!(catalog.columns(*table))))
        .collect();
    let published = publication.map(|publication| {
        let tables: serde_json::Map<String, Value> = publication
            .tables
            .iter()
            .map(|(table, columns)| (table.name().to_owned(), json!(columns)))
            .collect();
        json!({ "all_tables": publication.all_tables, "all_operations": publication.all_operations, "tables": tables })
    });
    Ok(json!({ "columns": columns, "publication": published }))
}

async fn outbox(config: &Config, client: &Client) -> Result<Value> {
    let info = &config.database;
    if config.mode == Mode::Replication {
        return Ok(json!({ "tables_with_triggers": outbox_tables(client, info).await? }));
    }
    let access = outbox_access(client, info).await?;
    if !access.is_there || !access.lacking.is_empty() {
        return Ok(json!({ "is_there": access.is_there, "lacking": access.lacking }));
    }
    let facts = outbox_facts(client, info).await?;
    Ok(json!({
        "changes": facts.changes,
        "bytes": facts.bytes,
        "cap": facts.cap,
        "failures": facts.failures,
        "oldest_seconds": facts.oldest_seconds,
        "given": facts.given,
        "consumed": facts.consumed,
    }))
}
