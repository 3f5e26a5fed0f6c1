"""What the gateway answers on: the socket, server-sent events, and plain HTTP."""
