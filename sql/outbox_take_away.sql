-- Takes away what snapshot {consumed} sees: it is durable elsewhere. Only for the ledger that the outbox belongs to.
-- What is below the lower bound was taken away before; it stays in the table and the index until that is vacuumed.
-- If the server loses this commit, the same is taken away again later: nobody need wait for its disk.
BEGIN;
SET LOCAL synchronous_commit = off;
WITH mine AS (
    UPDATE flagpost.reader SET consumed = '{consumed}' WHERE ledger = '{ledger}' RETURNING ledger
)
DELETE FROM flagpost.outbox
WHERE xid >= (SELECT coalesce(pg_snapshot_xmin(consumed), '0') FROM flagpost.reader)
  AND xid < pg_snapshot_xmax('{consumed}') AND pg_visible_in_snapshot(xid, '{consumed}') AND EXISTS (SELECT FROM mine);
COMMIT;
