"""Puzzles of the reasoning-gym library: any of its datasets, or several of them mixed.

train: {task: reasoning_gym, dataset: [chain_sum, leg_counting], size: 2000, config: {chain_sum: {max_terms:
    3}}}
"""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from reasoning_gym import create_dataset
from reasoning_gym.factory import DATASETS

from hybridrl.errors import ConfigError
from hybridrl.registry import register


@register("task", "reasoning_gym")
def reasoning_gym(
    seed: int, *, dataset: str | list[str], size: int, config: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Rows with `prompt`, `answer` (None where a dataset has no single right answer), `data_source`, and
    the `metadata` that the reward reasoning_gym reads.

    Args:
        dataset: one dataset, or several, which then take turns row by row.
        size: total number of rows.
        config: options of the dataset; of several datasets, a mapping from dataset to its options.

    Raises:
        ConfigError: no such dataset or option, or a value that the dataset refuses; names the nearest.
    """
    if size < 1:
        raise ConfigError(f"reasoning_gym: size = {size}", fix="give the number of rows")
    names = [dataset] if isinstance(dataset, str) else dataset
    config = config or {}
    options = {dataset: config} if isinstance(dataset, str) else config
    for name in [*names, *options]:
        _check_known(name, DATASETS, "the library has no dataset")
    if not names or set(options) - set(names):
        raise ConfigError(
            f"reasoning_gym: config is for {', '.join(options)}, dataset is {', '.join(names) or 'empty'}"
        )
    each = -(-size // len(names))
    rows = [_rows(name, seed + i, each, options.get(name, {})) for i, name in enumerate(names)]
    return [row for turn in zip(*rows) for row in turn][:size]


def _rows(name: str, seed: int, size: int, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    known = [f.name for f in fields(DATASETS[name][1]) if f.name not in ("seed", "size")]
    for option in options:
        _check_known(option, known, f"dataset {name} has no option")
    try:
        puzzles = create_dataset(name, seed=seed, size=size, **options)
    except (AssertionError, TypeError, ValueError) as error:  # the library checks its configs with assert
        raise ConfigError(f"reasoning_gym dataset {name} refuses its config: {error}") from error
    return [_row(name, puzzles[i]) for i in range(size)]


def _row(name: str, puzzle: Mapping[str, Any]) -> dict[str, Any]:
    # Metadata stays as it is, tuples included: some scorers compare against tuples.
    return {
        "prompt": puzzle["question"],
        "answer": puzzle["answer"],
        "data_source": name,
        "metadata": puzzle["metadata"],
    }


def _check_known(name: str, known: Mapping[str, Any] | list[str], what: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
        raise ConfigError(f"reasoning_gym: {what} {name!r}", fix=f"use one of {', '.join(near)}")
