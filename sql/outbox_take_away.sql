-- Takes away what snapshot {seen} sees up to sequence number {consumed}: it is durable elsewhere. Only for the ledger that the
-- outbox belongs to. What is below transaction {floor} was taken away before; it stays in the table until that is vacuumed.
-- If the server loses this commit, the same is taken away again later: nobody need wait for its disk.
BEGIN;
SET LOCAL synchronous_commit = off;
WITH mine AS (
    UPDATE flagpost.reader SET consumed = {consumed} WHERE ledger = '{ledger}' RETURNING ledger
)
DELETE FROM flagpost.outbox
WHERE xid >= '{floor}' AND xid < pg_snapshot_xmax('{seen}') AND pg_visible_in_snapshot(xid, '{seen}') AND seq <= {consumed}
  AND EXISTS (SELECT FROM mine);
COMMIT;
