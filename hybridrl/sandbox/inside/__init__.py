"""Code that runs inside a box, where only Python's standard library and this folder exist."""
