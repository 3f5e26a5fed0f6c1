"""The checker: proves row by row that a logical replica equals its source, sets the replication up, and repairs what drifted."""
