"""Model tables, one per file. A new family needs only a new file in this folder."""
