-- The outbox: for servers where logical replication is not to be had. Triggers write every change of the tables below to
-- flagpost.outbox, in the same transaction, for flagpost to read. Safe to run again.
-- Needs: CREATEROLE (or an existing role {owner} that you are a member of), CREATE on the database, ownership of the tables.
-- Flagsmith's own role needs no new right, and gets none: what the triggers run belongs to a role that cannot log in.

BEGIN;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {owner_literal}) THEN
        CREATE ROLE {owner} NOLOGIN;
    END IF;
    -- To hand objects over to the role one must be able to become it; a superuser always can.
    IF NOT pg_catalog.pg_has_role(current_user, {owner_literal},
            CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END) THEN
        GRANT {owner} TO CURRENT_USER;
    END IF;
END $$;
CREATE SCHEMA IF NOT EXISTS flagpost AUTHORIZATION {owner};

-- Until this COMMIT.
SET LOCAL ROLE {owner};
SET LOCAL client_min_messages = warning;

CREATE TABLE IF NOT EXISTS flagpost.outbox (
    seq        bigint GENERATED ALWAYS AS IDENTITY,
    xid        xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    op         "char" NOT NULL,  -- I, U, D, T (truncated), or C: the commit, which belongs to no table
    table_name text,
    old_row    jsonb,  -- of a D, and of a U that changed it: the key
    new_row    jsonb,  -- only the columns that the trigger names
    is_first   boolean NOT NULL DEFAULT false,  -- of its transaction: fires the trigger at commit
    PRIMARY KEY (xid, seq)                      -- it is read by transaction
) WITH (
    -- A queue: rows come and go. Vacuumed early, it stays small and its room is used again.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 5000
);

-- Statements whose changes could not be written to the outbox. The sequence is the truth: it counts each, also when the
-- table cannot be written, and also those of transactions that were rolled back. The table has the reasons of the first
-- thousand. Any of them means that flagpost has missed something, and has to read the tables afresh.
CREATE SEQUENCE IF NOT EXISTS flagpost.failures;
CREATE TABLE IF NOT EXISTS flagpost.failure (
    number     bigint PRIMARY KEY,
    xid        xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    op         text NOT NULL,
    table_name text NOT NULL,
    sqlstate   text NOT NULL,
    message    text NOT NULL
);

-- Who reads the outbox, and what has been taken out of it: one ledger, so that no two take rows away from each other.
CREATE TABLE IF NOT EXISTS flagpost.reader (
    is_only  boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    ledger   text,
    consumed bigint  -- the highest sequence number
);
INSERT INTO flagpost.reader DEFAULT VALUES ON CONFLICT DO NOTHING;

-- A row in which an API key's id, which ends in the key's hash, is replaced by a digest.
CREATE OR REPLACE FUNCTION flagpost.digested(r jsonb, key text) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN r ->> key IS NULL THEN r
                ELSE r || jsonb_build_object(key, left(encode(sha256(convert_to(r ->> key, 'UTF8')), 'hex'), 32)) END
$$;

-- After each statement that changed rows of a table: one row in the outbox for each. The trigger's first argument is a
-- column to digest ('' for none), the others are the columns to keep. They are picked by name from the row as it is, so a
-- migration may add, drop and rename what it likes: r - ARRAY(keys of r - wanted) is r without all keys but the wanted.
--
-- It never fails Flagsmith's statement: whatever goes wrong in here is counted and logged. Only what Flagsmith itself asked
-- for goes through: a cancelled query, its own statement_timeout. (And PREPARE TRANSACTION is refused by the server for a
-- transaction that has notified; Flagsmith has no use for it.) Catching errors takes a subtransaction, so these are
-- statement triggers with transition tables: one subtransaction (and transaction id) a statement, not one a row, of which a
-- change of a million rows would use up a million.
--
-- Beyond {cap} bytes on disk nothing more is written, and changes are counted as failures, until somebody empties the table.
-- Looking at the size takes longer than the rest, so a session looks once a second: what is written within it, or by one
-- statement, may go beyond.
CREATE OR REPLACE FUNCTION flagpost.capture() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'        -- times and numbers have one text form, whatever Flagsmith's session is set to
    SET extra_float_digits = 3
    SET lock_timeout = '1s'     -- whoever locks the outbox does not hold Flagsmith up
    SET enable_nestloop = off   -- a plan that was made for one row may be used for a million,
    SET jit = off               -- and one that was made for a million for one
AS $$
BEGIN
    -- Every expression is made ready anew in each transaction, and PERFORM runs a whole query: so there are few of either, and
    -- what is called for its effect stands in a condition.
    IF current_setting('flagpost.looked', true) IS DISTINCT FROM left(now()::text, 19) THEN
        IF pg_table_size('flagpost.outbox') >= {cap} THEN
            RAISE EXCEPTION USING ERRCODE = 'configuration_limit_exceeded',
                MESSAGE = 'flagpost.outbox has reached its cap of {cap} bytes: start flagpost, or uninstall its outbox';
        END IF;
        -- In a condition: PERFORM would set FOUND, which below says whether the short way was taken.
        IF set_config('flagpost.looked', left(now()::text, 19), false) IS NULL THEN
            NULL;
        END IF;
    END IF;
    -- is_first: not alone in its transaction, and the first there. That is noted for this transaction only, and forgotten with a
    -- savepoint, as is the row that it stands for.
    -- What Flagsmith does nearly always, one row that has nothing to digest, takes a short way: every function and every node
    -- of a query costs time before the first row. Of more than one row these write none. OFFSET 0 lets a row be made once.
    IF TG_OP = 'UPDATE' THEN
        IF TG_ARGV[0] = '' AND TG_ARGV[1] = 'id' THEN
            INSERT INTO flagpost.outbox (op, table_name, old_row, new_row, is_first)
            SELECT 'U', TG_TABLE_NAME, CASE WHEN o.id IS DISTINCT FROM n.id THEN jsonb_build_object('id', o.id) END,
                   n.r - ARRAY(SELECT jsonb_object_keys(n.r - TG_ARGV)),
                   now() <> statement_timestamp()
                   AND current_setting('flagpost.noted', true) IS DISTINCT FROM pg_current_xact_id_if_assigned()::text
            FROM old_rows o, (SELECT x.id, to_jsonb(x) AS r FROM new_rows x OFFSET 0) n
            WHERE NOT EXISTS (SELECT FROM new_rows OFFSET 1 LIMIT 1);
        END IF;
        IF NOT FOUND THEN
            -- The n-th row of the one table is the n-th of the other: the server writes both row by row. A join by key would
            -- lose rows whose key has changed.
            INSERT INTO flagpost.outbox (op, table_name, old_row, new_row, is_first)
            SELECT 'U', TG_TABLE_NAME,
                   CASE WHEN o.key IS DISTINCT FROM n.r -> TG_ARGV[1] THEN jsonb_build_object(TG_ARGV[1], o.key) END,
                   n.r - ARRAY(SELECT jsonb_object_keys(n.r - TG_ARGV)),
                   i = 1 AND now() <> statement_timestamp()
                   AND current_setting('flagpost.noted', true) IS DISTINCT FROM pg_current_xact_id_if_assigned()::text
            FROM (SELECT row_number() OVER () AS i, CASE WHEN TG_ARGV[0] = '' THEN to_jsonb(x)
                             ELSE flagpost.digested(to_jsonb(x), TG_ARGV[0]) END -> TG_ARGV[1] AS key FROM old_rows x) o
            JOIN (SELECT row_number() OVER () AS i, CASE WHEN TG_ARGV[0] = '' THEN to_jsonb(x)
                             ELSE flagpost.digested(to_jsonb(x), TG_ARGV[0]) END AS r FROM new_rows x) n USING (i)
            ORDER BY i;
        END IF;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO flagpost.outbox (op, table_name, new_row, is_first)
        SELECT 'I', TG_TABLE_NAME, n.r - ARRAY(SELECT jsonb_object_keys(n.r - TG_ARGV)),
               now() <> statement_timestamp()
               AND current_setting('flagpost.noted', true) IS DISTINCT FROM pg_current_xact_id_if_assigned()::text
        FROM (SELECT to_jsonb(x) AS r FROM new_rows x OFFSET 0) n
        WHERE n.r ->> TG_ARGV[0] IS NULL AND NOT EXISTS (SELECT FROM new_rows OFFSET 1 LIMIT 1);
        IF NOT FOUND THEN
            INSERT INTO flagpost.outbox (op, table_name, new_row, is_first)
            SELECT 'I', TG_TABLE_NAME, n.r - ARRAY(SELECT jsonb_object_keys(n.r - TG_ARGV)),
                   i = 1 AND now() <> statement_timestamp()
                   AND current_setting('flagpost.noted', true) IS DISTINCT FROM pg_current_xact_id_if_assigned()::text
            FROM (SELECT row_number() OVER () AS i, CASE WHEN TG_ARGV[0] = '' THEN to_jsonb(x)
                             ELSE flagpost.digested(to_jsonb(x), TG_ARGV[0]) END AS r FROM new_rows x) n;
        END IF;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO flagpost.outbox (op, table_name, old_row, is_first)
        SELECT 'D', TG_TABLE_NAME, o.r - ARRAY(SELECT jsonb_object_keys(o.r - TG_ARGV[1])),
               i = 1 AND now() <> statement_timestamp()
               AND current_setting('flagpost.noted', true) IS DISTINCT FROM pg_current_xact_id_if_assigned()::text
        FROM (SELECT row_number() OVER () AS i, CASE WHEN TG_ARGV[0] = '' THEN to_jsonb(x)
                         ELSE flagpost.digested(to_jsonb(x), TG_ARGV[0]) END AS r FROM old_rows x) o;
    ELSE
        INSERT INTO flagpost.outbox (op, table_name, is_first)
        VALUES ('T', TG_TABLE_NAME, now() <> statement_timestamp()
                AND current_setting('flagpost.noted', true) IS DISTINCT FROM pg_current_xact_id_if_assigned()::text);
    END IF;

    IF FOUND AND (CASE
            -- The transaction began with this statement: as a rule it is its only one, and commits right after it, so the row's
            -- own time is near enough. About the conditions see flagpost.commits().
            WHEN now() = statement_timestamp() THEN pg_try_advisory_xact_lock(7380380986249278324)
                AND pg_notification_queue_usage() < 0.5 AND pg_notify('flagpost', '') IS NULL
            -- flagpost.commits() does it when the transaction commits.
            ELSE set_config('flagpost.noted', pg_current_xact_id()::text, true) IS NULL END) THEN
        NULL;
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE LOG 'flagpost: % of % was not captured: % (%)', TG_OP, TG_TABLE_NAME, SQLERRM, SQLSTATE;
    BEGIN
        -- A sequence counts without a lock, and no rollback takes back what it has counted.
        IF nextval('flagpost.failures') <= 1000 THEN
            INSERT INTO flagpost.failure (number, op, table_name, sqlstate, message)
            VALUES (currval('flagpost.failures'), TG_OP, TG_TABLE_NAME, SQLSTATE, left(SQLERRM, 500));
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE LOG 'flagpost: nor could that be noted: % (%)', SQLERRM, SQLSTATE;
    END;
    RETURN NULL;
END $$;

-- At COMMIT, once a transaction of several statements: the time, as near to the commit as a trigger can come, and a hint
-- without content to whoever listens on channel flagpost (the table is the truth).
-- The hint has two conditions. Transactions that notify commit one after the other, each waiting for the other's disk: of
-- those that commit at the same moment only the one that gets the lock notifies (its number is "flagpost" in ASCII), and
-- whoever listens looks again a moment later. And NOTIFY fails the COMMIT when the server's queue for it is full: it is left
-- out long before.
CREATE OR REPLACE FUNCTION flagpost.commits() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '1s'
AS $$
BEGIN
    INSERT INTO flagpost.outbox (op) VALUES ('C');
    -- After a SET CONSTRAINTS ALL IMMEDIATE more may come: then this is not the last time. As above, what is called for its
    -- effect stands in a condition.
    IF set_config('flagpost.noted', '', true) = '' AND pg_try_advisory_xact_lock(7380380986249278324)
            AND pg_notification_queue_usage() < 0.5 AND pg_notify('flagpost', '') IS NULL THEN
        NULL;
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    -- No change is lost: the rows have times of their own, and flagpost looks from time to time without being told.
    RAISE LOG 'flagpost: a commit was not noted: % (%)', SQLERRM, SQLSTATE;
    RETURN NULL;
END $$;

-- Whoever could make triggers of these could write whatever they like to the outbox.
REVOKE ALL ON FUNCTION flagpost.capture(), flagpost.commits(), flagpost.digested(jsonb, text) FROM PUBLIC;

-- On the outbox, not on Flagsmith's tables: PostgreSQL refuses to alter a table that has deferred triggers pending, and
-- migrations change rows and columns in one transaction.
DROP TRIGGER IF EXISTS commits ON flagpost.outbox;
CREATE CONSTRAINT TRIGGER commits AFTER INSERT ON flagpost.outbox DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.is_first) EXECUTE FUNCTION flagpost.commits();
ALTER TABLE flagpost.outbox ENABLE ALWAYS TRIGGER commits;
COMMIT;

-- The triggers: a transaction a table, so that no two tables are locked at once and no transaction of Flagsmith's ends in a
-- deadlock. ALWAYS: changes count under session_replication_role = replica too, as they do in the server's log.
{triggers}
