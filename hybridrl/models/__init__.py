"""Model families as data: shapes, canonical parameters, and how each system names and shards them."""
