"""Who may come in, how many, and what they may see."""
