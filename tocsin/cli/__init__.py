"""The `tocsin` command: one module a verb, each loaded only when it is called."""
