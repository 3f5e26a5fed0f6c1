"""tocsin_gateway."""
