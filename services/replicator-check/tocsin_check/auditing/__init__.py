"""One audit: from a block that differs to the verdict on each of its rows, and the repair."""
