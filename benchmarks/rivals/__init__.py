"""What Tocsin is measured against, as small as people write it."""
