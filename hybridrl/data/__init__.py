"""Prompts from files and tasks, chat templates, and the partitioning of a batch over ranks and
microbatches."""
