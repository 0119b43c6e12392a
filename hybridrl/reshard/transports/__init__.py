"""Transports, which give access to the memory of another process, one per file."""
