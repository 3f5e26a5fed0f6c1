"""One client: what it asked for, how it gets there, and what it is told."""
