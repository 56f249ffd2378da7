-- Removes every trace of the outbox: triggers, tables, functions, and the role that owned them. What was captured and not
-- read yet is gone with it. Needs: ownership of the tables, and membership in {owner}.
-- A transaction a table, as when the triggers were made.
{triggers}

-- With it go the triggers of tables that have been renamed since.
DROP SCHEMA IF EXISTS flagpost CASCADE;
DO $$
BEGIN
    DROP ROLE IF EXISTS {owner};
EXCEPTION WHEN dependent_objects_still_exist THEN
    RAISE NOTICE 'role % stays: it owns something in another database', {owner_literal};
END $$;
