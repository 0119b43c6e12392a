"""Evaluation of a model, and a conversation with it: engines and rewards of a config, without a trainer."""
