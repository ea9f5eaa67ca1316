"""The HTTP API: thin. It reads requests, calls one use case, and writes answers."""
