"""Logical replication set up, and taken down again."""
