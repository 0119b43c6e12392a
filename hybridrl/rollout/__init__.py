"""Rollout engines, which answer prompts: one folder per kind of engine."""
