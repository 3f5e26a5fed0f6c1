"""What clients say to one another: live messages, and who is there."""
