//! The codes of all checks, each with its group and what it looks at: the one list that the report, `check --list` and
//! docs/checks.md are made of. Codes are stable: tools rely on them.

use serde::{Serialize, Serializer};

/// The part of the installation that a check is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum Group {
    Configuration,
    Server,
    Privileges,
    Slot,
    Outbox,
    Schema,
    Flagsmith,
    Ledger,
    Endpoints,
    Clock,
    Systemd,
}

impl Group {
    pub(super) fn shown(self) -> &'static str {
        match self {
            Group::Configuration => "configuration",
            Group::Server => "server",
            Group::Privileges => "privileges",
            Group::Slot => "slot",
            Group::Outbox => "outbox",
            Group::Schema => "schema",
            Group::Flagsmith => "flagsmith",
            Group::Ledger => "ledger",
            Group::Endpoints => "endpoints",
            Group::Clock => "clock",
            Group::Systemd => "systemd",
        }
    }
}

macro_rules! codes {
    ($($group:ident { $($name:ident $code:literal $looks_at:literal,)+ })+) => {
        /// What is checked, by its stable name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(in crate::cli) enum Code { $($($name,)+)+ }

        impl Code {
            pub(super) const ALL: &'static [Code] = &[$($(Code::$name,)+)+];

            /// As it is printed.
            pub(in crate::cli) fn name(self) -> &'static str {
                match self { $($(Code::$name => $code,)+)+ }
            }

            pub(super) fn group(self) -> Group {
                match self { $($(Code::$name => Group::$group,)+)+ }
            }

            /// What it looks at, in a few words.
            pub(super) fn looks_at(self) -> &'static str {
                match self { $($(Code::$name => $looks_at,)+)+ }
            }
        }
    };
}

codes! {
    Configuration {
        ConfigFile "config-file" "where the configuration comes from; whether others can read a file with a secret in it",
        ConfigSecrets "config-secrets" "whether others can read the files that hold passwords and signing secrets",
        ConfigVariables "config-variables" "environment variables FLAGPOST_… that mean nothing",
        OpsListen "ops-listen" "the address of metrics and status: free, and only for this machine",
    }
    Server {
        Connect "connect" "whether the database lets us in",
        Settings "settings" "whether the server tells its settings",
        ServerVersion "server-version" "the version of PostgreSQL",
        SourceMode "source-mode" "which source can be had here, and which is advised",
        Standby "standby" "whether the server is a standby",
        Pooler "pooler" "whether a pooler stands between that replication cannot pass",
        WalLevel "wal-level" "whether the server logs what logical replication needs",
        ReplicationSlots "replication-slots" "room for a slot (max_replication_slots)",
        WalSenders "wal-senders" "room for a walsender (max_wal_senders)",
        ServerConnections "server-connections" "connections that are left (max_connections)",
        ServerEncoding "server-encoding" "whether the database's texts can be read as UTF-8",
        ServerDurability "server-durability" "whether a crash of the server can take back what it has told us (fsync, full_page_writes)",
        SessionTimeouts "session-timeouts" "timeouts that would end our sessions (statement_timeout, idle_session_timeout)",
        SenderTimeout "sender-timeout" "how soon the server gives a stream up (wal_sender_timeout)",
        DatabaseTls "database-tls" "whether the connection is encrypted, and the server's name verified",
        DatabaseCertificate "database-certificate" "when the server's certificate expires",
    }
    Privileges {
        RoleReplication "role-replication" "whether our role may replicate",
        SelectPrivilege "select-privilege" "whether our role may read every column that is needed",
        OutboxPrivilege "outbox-privilege" "whether our role may read and empty the outbox",
        RowSecurity "row-security" "row-level security that would hide rows from us",
        RoleExcess "role-excess" "whether our role may more than it needs",
        RoleExpiry "role-expiry" "whether our role's password expires",
        RoleConnections "role-connections" "our role's limit of connections",
        PasswordHashes "password-hashes" "whether password hashes reach us",
    }
    Slot {
        ReplicationConnection "replication-connection" "a connection in replication mode",
        Slot "slot" "the replication slot: there, ours, not given up",
        SlotRetention "slot-retention" "the log that the server keeps for the slot",
        SlotLimit "slot-limit" "how much log a slot may hold back (max_slot_wal_keep_size)",
        SlotReserve "slot-reserve" "what may still be written before the server gives the slot up",
        SlotLag "slot-lag" "how far a slot that is read is behind",
        SlotInactive "slot-inactive" "since when nobody reads the slot",
        SlotIdleTimeout "slot-idle-timeout" "whether the server gives up a slot that nobody reads (idle_replication_slot_timeout)",
        SlotFailover "slot-failover" "whether the slot outlives a failover, where there are standbys",
        SlotCatalog "slot-catalog" "how long the slot has kept the server from cleaning its catalogue",
        SlotSpill "slot-spill" "large transactions that the server wrote to its disk to decode them",
        OtherSlots "other-slots" "other logical slots of this database that nobody reads",
        OldTransactions "old-transactions" "transactions that have been open for long",
        PreparedTransactions "prepared-transactions" "prepared transactions that nobody ends",
        LeftoverSlot "leftover-slot" "in mode outbox: a slot that was left behind",
        LeftoverOutbox "leftover-outbox" "in mode replication: triggers that were left behind",
    }
    Outbox {
        Outbox "outbox" "whether the outbox can be looked at",
        OutboxInstalled "outbox-installed" "schema flagpost: there, and whole",
        OutboxTriggers "outbox-triggers" "a trigger on each table, enabled, for the columns that are read",
        OutboxSurplus "outbox-surplus" "triggers on tables that are not read",
        OutboxSubscription "outbox-subscription" "tables that a subscription fills, which fires no trigger",
        OutboxFailures "outbox-failures" "statements of Flagsmith's that could not be captured",
        OutboxSize "outbox-size" "how full it is",
        OutboxCap "outbox-cap" "whether the triggers know the cap that is configured",
        OutboxWaiting "outbox-waiting" "how long the oldest change has waited",
        OutboxReader "outbox-reader" "whether it belongs to this ledger",
    }
    Schema {
        FlagsmithTables "flagsmith-tables" "Flagsmith's tables and columns that are needed",
        FlagsmithOptional "flagsmith-optional" "tables and columns that this version of Flagsmith lacks",
        FlagsmithTags "flagsmith-tags" "tags, where an endpoint of the configuration asks for them",
        FlagsmithVersion "flagsmith-version" "migrations of Flagsmith's that this flagpost does not know",
        ReplicaIdentity "replica-identity" "whether each table's changes name their row",
        Publication "publication" "whether what is read is published, and no more",
        PublicationRows "publication-rows" "row filters that would hide changes",
    }
    Flagsmith {
        FlagsmithWebhooks "flagsmith-webhooks" "a reminder that Flagsmith's own webhooks must be off",
        FlagsmithSends "flagsmith-sends" "calls of Flagsmith's own in its task queue: receivers get everything twice",
    }
    Ledger {
        StateDir "state-dir" "whether the state directory can be written",
        StateDirMode "state-dir-mode" "whether others can look into the state directory",
        StateDirDisk "state-dir-disk" "whether the state directory is on a local disk that outlives a restart",
        Ledger "ledger" "whether there is a ledger, of this version, and filled",
        LedgerBroken "ledger-broken" "whether the daemon has stopped since it missed changes",
        LedgerIdentity "ledger-identity" "whether the ledger belongs to this database and source",
        LedgerPosition "ledger-position" "whether the source goes on where the ledger ends",
        LedgerModes "ledger-modes" "whether others can read ledger and key",
        LedgerOwner "ledger-owner" "whether ledger and key belong to the account that runs this",
        LedgerRoom "ledger-room" "room on the ledger's disk",
        LedgerSize "ledger-size" "the ledger's size beside state.max_size",
        LedgerSync "ledger-sync" "how long the ledger's disk takes to make a write durable",
        LedgerIntegrity "ledger-integrity" "whether the file is sound",
    }
    Endpoints {
        Endpoints "endpoints" "how many endpoints are enabled and can be sent to",
        Endpoint "endpoint" "an endpoint that cannot be sent to: its URL, its name, the network guard",
        EndpointReach "endpoint-reach" "an endpoint that takes no connection",
        EndpointCertificate "endpoint-certificate" "certificates of https endpoints: trusted, and not about to expire",
        EndpointTls "endpoint-tls" "endpoints whose certificate is not verified (verify = false)",
        EndpointPlain "endpoint-plain" "endpoints on plain http, but for addresses inside your own network",
        EndpointUnsigned "endpoint-unsigned" "endpoints without a secret",
        EndpointTwice "endpoint-twice" "endpoints that get the same events twice at one URL",
        ConfiguredEndpoint "configured-endpoint" "the endpoints of the configuration",
        EndpointsHeld "endpoints-held" "whether nothing is held back",
        EndpointPaused "endpoint-paused" "endpoints that are paused",
        EndpointBreaker "endpoint-breaker" "endpoints that are only probed, after failures",
        DeadLetters "dead-letters" "deliveries that were given up",
    }
    Clock {
        ClockSkew "clock-skew" "this machine's clock beside the database server's",
        ClockSynchronised "clock-synchronised" "whether this machine's clock is synchronised",
    }
    Systemd {
        Systemd "systemd" "whether systemd runs here",
        Unit "unit" "whether the unit is installed",
        UnitEnabled "unit-enabled" "whether the unit starts with the machine",
        UnitActive "unit-active" "whether the unit runs, and how often it was started again",
        UnitWatchdog "unit-watchdog" "whether systemd notices a daemon that hangs",
        UnitCredential "unit-credential" "whether the files of the unit's credentials are there",
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// `check --list`: every code with its group and what it looks at.
pub(super) fn print(json: bool) {
    if json {
        let all: Vec<_> = Code::ALL
            .iter()
            .map(|code| serde_json::json!({ "code": code, "group": code.group(), "looks_at": code.looks_at() }))
            .collect();
        say!("{:#}", serde_json::Value::Array(all));
        return;
    }
    let width = Code::ALL.iter().map(|code| code.name().len()).max().unwrap_or(0);
    for code in Code::ALL {
        say!("{:<13} {:<width$}  {}", code.group().shown(), code.name(), code.looks_at());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_code_stands_for_one_check_and_groups_lie_together() {
        let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        let groups: Vec<Group> = Code::ALL.iter().map(|code| code.group()).collect();
        assert!(groups.len() > 30);
        for name in names {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
        }
    }
}
