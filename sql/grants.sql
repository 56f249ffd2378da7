-- A role of its own for "flagpost run": it may stream, and read the published columns; it may write nothing.
-- Choose the password yourself: \password {role}
CREATE ROLE {role} LOGIN REPLICATION;
GRANT CONNECT ON DATABASE {database} TO {role};
GRANT USAGE ON SCHEMA {schema} TO {role};
{grants}
