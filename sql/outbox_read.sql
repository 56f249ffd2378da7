-- The transactions that snapshot $2 sees and that have not been read: snapshot $1 did not see them, or their sequence numbers are
-- above $4. Only those whose last sequence number is above $3, in the order of these. All of them have ended, so the same question
-- has the same answer as long as nothing is taken away. From transaction $5 on, as in a look.
-- Where the server keeps commit times (track_commit_timestamp) they are exact; else the rows' own times have to do.
WITH ended AS (
    SELECT xid, max(seq) AS last FROM flagpost.outbox
    WHERE xid >= $5::text::xid8 AND (NOT pg_visible_in_snapshot(xid, $1::text::pg_snapshot) OR seq > $4)
      AND xid < pg_snapshot_xmax($2::text::pg_snapshot) AND pg_visible_in_snapshot(xid, $2::text::pg_snapshot)
    GROUP BY xid HAVING max(seq) > $3
)
SELECT seq, xid::text, (extract(epoch FROM at) * 1000000)::bigint,
       CASE WHEN current_setting('track_commit_timestamp') = 'on'
            THEN (extract(epoch FROM pg_xact_commit_timestamp(xid::xid)) * 1000000)::bigint END,
       op::text, table_name, old_row::text, new_row::text
FROM ended JOIN flagpost.outbox USING (xid)
-- The bounds again, for the index: rows that were taken away stay in the table until it is vacuumed.
WHERE outbox.xid >= $5::text::xid8 AND outbox.xid < pg_snapshot_xmax($2::text::pg_snapshot)
ORDER BY last, seq
