"""How a row is read, hashed and judged. Pure."""
