-- Removes every trace of flagpost from the database. Stop the daemon first: a slot that is being read cannot be dropped.
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}';
DROP PUBLICATION IF EXISTS {publication};
