"""The stream's events, read: live, from a place in the past, and page by page."""
