"""The checker at work: what is audited when, what is known of each table, and what is told."""
