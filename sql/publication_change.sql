-- Brings an existing publication up to what this version of flagpost and of Flagsmith need.
-- Needs: ownership of the publication and of the tables.
ALTER PUBLICATION {publication} SET TABLE
    {tables};
ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate');
