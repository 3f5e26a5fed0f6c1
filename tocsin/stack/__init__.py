"""The embedded default: two PostgreSQL servers, NATS, logical replication and demo traffic, each a child process."""
