-- What is wrong with the outbox, one row each (none if it is whole): finding, subject, detail.
-- Read only; it runs also where nothing is installed.
WITH wanted (table_name, columns) AS (
    VALUES
    {wanted}
), triggers AS (
    SELECT c.relname::text AS table_name, t.tgname::text AS name, t.tgenabled,
           -- The arguments, each ended by a zero byte; '' stands for nothing to digest.
           array_remove(string_to_array(encode(t.tgargs, 'escape'), '\000'), '') AS arguments
    FROM pg_catalog.pg_trigger t
    JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = {schema_literal} AND t.tgfoid = to_regprocedure('flagpost.capture()')
)
SELECT 'missing' AS finding, w.table_name AS subject, wanted_name AS detail
FROM wanted w
CROSS JOIN unnest(ARRAY['flagpost_insert', 'flagpost_update', 'flagpost_delete', 'flagpost_truncate']) wanted_name
WHERE NOT EXISTS (SELECT FROM triggers t WHERE t.table_name = w.table_name AND t.name = wanted_name)
UNION ALL
-- "D" is disabled, "O" misses what is done under session_replication_role = replica.
SELECT 'not always enabled', table_name, name FROM triggers WHERE tgenabled <> 'A'
UNION ALL
SELECT 'other columns', t.table_name, t.name
FROM triggers t JOIN wanted w USING (table_name)
WHERE t.name <> 'flagpost_truncate' AND NOT (w.columns <@ t.arguments AND t.arguments <@ w.columns)
UNION ALL
SELECT 'other table', t.table_name, t.name
FROM triggers t WHERE t.table_name NOT IN (SELECT table_name FROM wanted)
UNION ALL
SELECT 'missing', 'flagpost.outbox', 'commits'
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t
                  WHERE t.tgfoid = to_regprocedure('flagpost.commits()') AND t.tgrelid = to_regclass('flagpost.outbox')
                    AND t.tgname = 'commits' AND t.tgenabled = 'A')
UNION ALL
-- Statements that were not captured.
SELECT 'failures', 'flagpost.failures', count::text
FROM (SELECT pg_catalog.pg_sequence_last_value(to_regclass('flagpost.failures')) AS count) f WHERE count IS NOT NULL
UNION ALL
SELECT 'nearly full', 'flagpost.outbox', size::text
FROM (SELECT pg_catalog.pg_table_size(to_regclass('flagpost.outbox')) AS size) s WHERE size >= {cap} / 10 * 8
ORDER BY 1, 2, 3;
