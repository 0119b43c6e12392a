"""Sinks for metrics, one file each; the file's name is its name in `observe.sinks`."""
