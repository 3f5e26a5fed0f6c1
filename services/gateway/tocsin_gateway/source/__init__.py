"""What is asked of the source itself: the watched tables, and a table's rows."""
