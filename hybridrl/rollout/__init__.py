"""Engines that answer prompts. One folder per engine."""
