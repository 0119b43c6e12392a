"""Prompts: files and procedural tasks, the chat template, and how a batch is shared out over ranks and
microbatches."""
