"""tocsin_listener."""
