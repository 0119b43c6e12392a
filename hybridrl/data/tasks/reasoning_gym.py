"""Puzzles of the reasoning-gym library: any of its datasets, or several of them mixed.

train: {task: reasoning_gym, dataset: [chain_sum, leg_counting], size: 2000, config: {chain_sum: {max_terms:
    3}}}
"""

import difflib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import islice
from typing import Any, Literal

from reasoning_gym import create_dataset
from reasoning_gym.factory import DATASETS

from hybridrl.errors import ConfigError
from hybridrl.registry import register
from hybridrl.wording import counted

_HELDOUT_SHARE = 5
"""Every fifth question is held out."""

_DRAWS = 20
"""Puzzles that are drawn at most for each row of a part."""


@register("task", "reasoning_gym")
def reasoning_gym(
    seed: int,
    *,
    dataset: str | list[str],
    size: int,
    part: Literal["train", "heldout"] | None = None,
    config: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Rows with `prompt`, `answer` (None where a dataset has no single right answer), `data_source`, and
    the `metadata` that the reward reasoning_gym reads.

    Args:
        dataset: one dataset, or several, which then take turns row by row.
        size: total number of rows.
        part: train and heldout have no question in common, whatever the seeds: its own text decides where a
            question belongs, every fifth to heldout. None: any question, and small datasets repeat them.
        config: options of the dataset; of several datasets, a mapping from dataset to its options.

    Raises:
        ConfigError: no such dataset or option (names the nearest), a value that the dataset refuses, or too
            few questions in the part.
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
    rows = [_rows(name, seed + i, each, part, options.get(name, {})) for i, name in enumerate(names)]
    return [row for turn in zip(*rows) for row in turn][:size]


def _rows(
    name: str, seed: int, size: int, part: str | None, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    known = [f.name for f in fields(DATASETS[name][1]) if f.name not in ("seed", "size")]
    for option in options:
        _check_known(option, known, f"dataset {name} has no option")
    try:
        drawn = size if part is None else _DRAWS * size
        puzzles = create_dataset(name, seed=seed, size=drawn, **options)
    except (AssertionError, TypeError, ValueError) as error:  # the library checks its configs with assert
        raise ConfigError(f"reasoning_gym dataset {name} refuses its config: {error}") from error
    rows = list(islice(_of_part((_row(name, puzzles[i]) for i in range(drawn)), part), size))
    if len(rows) < size:
        raise ConfigError(
            f"reasoning_gym: {len(rows)} of {counted(drawn, 'puzzle')} of {name} are in the part {part}, and "
            f"size = {size}",
            fix="give options with which it has more different puzzles, or a smaller size",
        )
    return rows


def _of_part(rows: Iterator[dict[str, Any]], part: str | None) -> Iterator[dict[str, Any]]:
    for row in rows:
        is_heldout = zlib.crc32(row["prompt"].encode()) % _HELDOUT_SHARE == 0
        if part is None or is_heldout == (part == "heldout"):
            yield row


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
