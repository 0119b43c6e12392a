"""Executors of tables of strided block copies, one per file."""
