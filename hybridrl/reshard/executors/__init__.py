"""One way to carry out a table of strided block copies a file."""
