"""tocsin_check."""
