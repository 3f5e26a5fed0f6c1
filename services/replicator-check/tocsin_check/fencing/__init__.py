"""The sessions on source and replica, the fence between them, and how gently they are used."""
