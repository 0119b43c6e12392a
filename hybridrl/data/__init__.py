"""Prompts from files and tasks, chat templates, and how a batch is shared out over ranks and microbatches."""
