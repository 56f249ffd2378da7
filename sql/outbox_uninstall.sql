-- Removes every trace of the outbox: triggers, tables, functions, and the role that owned them. What was captured and not
-- read yet is gone with it. Needs: ownership of the tables, and membership in {owner}.
-- A transaction a table, as when the triggers were made.
{triggers}

-- With it go the triggers of tables that have been renamed since. A transaction of its own: the role may have to stay.
BEGIN;
SET LOCAL client_min_messages = warning;
DROP SCHEMA IF EXISTS flagpost CASCADE;
COMMIT;
DO $$
BEGIN
    DROP ROLE IF EXISTS {owner};
EXCEPTION
    WHEN dependent_objects_still_exist THEN
        RAISE NOTICE 'role % stays: it owns something in another database', {owner_literal};
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'role % stays: only who made it, or a superuser, may drop it', {owner_literal};
END $$;
