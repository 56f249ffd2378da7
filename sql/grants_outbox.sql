-- A role of its own for "flagpost run": it may read the columns that flagpost reads; it may change none of Flagsmith's tables.
-- Choose the password yourself: \password {role}
CREATE ROLE {role} LOGIN;
GRANT CONNECT ON DATABASE {database} TO {role};
GRANT USAGE ON SCHEMA {schema} TO {role};
{grants}
