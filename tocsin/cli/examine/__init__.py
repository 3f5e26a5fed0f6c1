"""What `tocsin doctor` examines: a module a part; each yields findings, and none raises for what it finds."""
