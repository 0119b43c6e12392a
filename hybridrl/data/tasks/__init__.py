"""Procedural tasks: a file's name is its name in `data: {train: {task: ...}}`.

A task is a function (seed: int, **options) -> list of rows; every row is a dict with "prompt" and the keys
that the reward reads. `data_source` in a row names its data set in metrics.
"""
