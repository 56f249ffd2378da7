-- What a role of its own needs of the outbox: to read it, and to take away what it has read.
GRANT USAGE ON SCHEMA flagpost TO {role};
GRANT SELECT, DELETE ON flagpost.outbox TO {role};
GRANT SELECT ON flagpost.failure, flagpost.failures TO {role};
