"""A row's values, and what is asked of them. Pure."""
