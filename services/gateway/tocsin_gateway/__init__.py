"""The gateway: JetStream to clients on WebSockets and server-sent events."""
