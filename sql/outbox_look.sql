-- A look at the outbox: what can be seen now, the time before that, whether something waits, statements that were not captured,
-- who reads it, the highest sequence number that was taken away and the highest that was given, and the last checkpoint, which
-- is another after a crash. now() is when the statement came, before its snapshot was taken.
-- Something waits that snapshot $1 does not see, or that has a sequence number above $2. Only from transaction $3 on, in the
-- order of the index: rows that were taken away stay in the table until it is vacuumed, and are not walked through.
SELECT pg_current_snapshot()::text, (extract(epoch FROM now()) * 1000000)::bigint,
       (SELECT xid FROM flagpost.outbox
        WHERE xid >= $3::text::xid8 AND (NOT pg_visible_in_snapshot(xid, $1::text::pg_snapshot) OR seq > $2)
        ORDER BY xid LIMIT 1) IS NOT NULL,
       pg_sequence_last_value('flagpost.failures'), coalesce(ledger, ''), coalesce(consumed, 0),
       coalesce(pg_sequence_last_value('flagpost.outbox_seq_seq'), 0),
       (SELECT checkpoint_lsn::text FROM pg_control_checkpoint())
FROM flagpost.reader
