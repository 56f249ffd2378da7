BEGIN;
SET LOCAL lock_timeout = '5s';
CREATE OR REPLACE TRIGGER flagpost_insert AFTER INSERT ON {table}
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION flagpost.capture({columns});
CREATE OR REPLACE TRIGGER flagpost_update AFTER UPDATE ON {table}
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION flagpost.capture({columns});
CREATE OR REPLACE TRIGGER flagpost_delete AFTER DELETE ON {table}
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION flagpost.capture({columns});
CREATE OR REPLACE TRIGGER flagpost_truncate AFTER TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION flagpost.capture();
ALTER TABLE {table}
    ENABLE ALWAYS TRIGGER flagpost_insert, ENABLE ALWAYS TRIGGER flagpost_update,
    ENABLE ALWAYS TRIGGER flagpost_delete, ENABLE ALWAYS TRIGGER flagpost_truncate;
COMMIT;
