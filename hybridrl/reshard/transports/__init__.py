"""One way to reach the memory of another process a file."""
