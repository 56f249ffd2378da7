-- The replication slot: from here on the server keeps its log until flagpost has confirmed it. A slot that nobody reads
-- fills the disk: "flagpost uninstall" (or sql/uninstall.sql) drops it.
-- Needs: the REPLICATION attribute, and wal_level = logical. "flagpost setup" makes the slot over a replication connection
-- instead, which gives it the snapshot that the mirror is filled from; made with this statement, the mirror is filled at the
-- first "flagpost run", and what changes until then is not sent.
SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput'{failover});
