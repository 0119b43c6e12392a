"""Moves weights between layouts: into live engines, from and to Hugging Face checkpoints."""
