-- What can be read of the outbox: rows of transactions below the horizon $1, a value of pg_snapshot_xmin(pg_current_snapshot())
-- that was asked for before. All of those have ended, so none of their rows can still appear; sequence numbers alone would
-- not tell, since a transaction that commits late has early ones.
-- Where the server keeps commit times (track_commit_timestamp) they are exact; else the rows' own times have to do.
SELECT seq, xid::text, (extract(epoch FROM at) * 1000000)::bigint,
       CASE WHEN current_setting('track_commit_timestamp') = 'on'
            THEN (extract(epoch FROM pg_xact_commit_timestamp(xid::xid)) * 1000000)::bigint END,
       op::text, table_name, old_row::text, new_row::text
FROM flagpost.outbox WHERE xid < $1::text::xid8 ORDER BY seq
