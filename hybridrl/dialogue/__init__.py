"""The model's chat format over token ids: how a conversation begins, goes on, and is read."""
