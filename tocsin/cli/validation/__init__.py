"""What `tocsin validate` does: one round of changes on a table of its own, seen at every end."""
