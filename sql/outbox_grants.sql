-- What a role of its own needs of the outbox: to read it, to take away what it has read, to note that, and to begin anew.
GRANT USAGE ON SCHEMA flagpost TO {role};
GRANT SELECT, DELETE, TRUNCATE ON flagpost.outbox TO {role};
GRANT SELECT, DELETE ON flagpost.failure TO {role};
GRANT SELECT, UPDATE ON flagpost.reader, flagpost.failures TO {role};
GRANT SELECT ON flagpost.outbox_seq_seq TO {role};
