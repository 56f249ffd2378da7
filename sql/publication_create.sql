-- What flagpost reads: these tables and no others, and of them only these columns (from PostgreSQL 15 on), so that no
-- password hash and nothing that no webhook shows ever leaves the server. The tables themselves are not changed.
-- Needs: ownership of the tables (Flagsmith's own role has it) and CREATE on the database.
CREATE PUBLICATION {publication} FOR TABLE
    {tables}
    WITH (publish = 'insert, update, delete, truncate');
