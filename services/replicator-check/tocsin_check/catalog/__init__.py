"""What both catalogs tell: what is replicated, what is wrong with it, how a table can be compared."""
