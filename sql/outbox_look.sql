-- A look at the outbox: what can be seen now, the time before that, whether something waits that snapshot $1 does not see,
-- statements that were not captured, and who reads it. In the order of the index: rows that were taken away stay in the table
-- until it is vacuumed, and are not walked through. now() is when the statement came, before its snapshot was taken.
SELECT pg_current_snapshot()::text, (extract(epoch FROM now()) * 1000000)::bigint,
       (SELECT xid FROM flagpost.outbox
        WHERE xid >= pg_snapshot_xmin($1::text::pg_snapshot) AND NOT pg_visible_in_snapshot(xid, $1::text::pg_snapshot)
        ORDER BY xid LIMIT 1) IS NOT NULL,
       pg_sequence_last_value('flagpost.failures'), coalesce(ledger, ''), pg_snapshot_xmax(consumed)::text
FROM flagpost.reader
