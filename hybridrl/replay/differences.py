"""Which tensor and row of two policy updates differ first, in the order in which a step computes them.

Shape letters: N trajectories, T tokens of one trajectory, V trained tokens of all trajectories in order.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridrl.batch import RankBatch
from hybridrl.columns import COLUMNS
from hybridrl.trainer.bundles import Bundle, Found
from hybridrl.trainer.recorded import POSITION

_LAST = ("old_logp", "old_entropy", "advantage", "return")
"""Columns that are computed from others."""


@dataclass(frozen=True, slots=True)
class Difference:
    tensor: str
    place: str
    """Row, as in "trajectory 3, token 17"; empty for a number."""

    here: str
    there: str

    def __str__(self) -> str:
        place = f" of {self.place}" if self.place else ""
        return f"{self.tensor}{place} is {self.here} here, {self.there} there"


@dataclass(frozen=True, slots=True)
class Compared:
    """What was compared, and the first difference of each tensor in which there is one."""

    tensors: int
    numbers: int
    different: tuple[Difference, ...]


def of_inputs(here: Bundle, there: Bundle) -> Compared:
    """Differences between two batches: prompts, tokens, loss mask, columns of engines, rewards."""
    found: list[Difference | None] = [_of_row("prompt", here.prompts, there.prompts, "group")]
    one, other = here.batch, there.batch
    count = min(len(one.row_N), len(other.row_N))
    found.append(_number("number of trajectories", len(one.row_N), len(other.row_N), 0.0))
    names = ("token", "loss_mask", *sorted(_token_columns(one) & _token_columns(other)))
    for name in names:
        rows = (
            _of_row(name, _row(one, n, name), _row(other, n, name), f"trajectory {n}, token")
            for n in range(count)
        )
        found.append(next((row for row in rows if row), None))
    found.append(_of_row("score", here.score_N, there.score_N, "trajectory"))
    found.append(_of_row("reward", one.reward_N, other.reward_N, "trajectory"))
    if one.advantage_N is not None and other.advantage_N is not None:
        found.append(_of_row("advantage", one.advantage_N, other.advantage_N, "trajectory"))
    return Compared(len(found), 0, tuple(row for row in found if row))


def of_results(
    here: Found, there: Found, count_N: np.ndarray, *, tolerance: float, same_ranks: bool
) -> Compared:
    """Differences between what ranks computed.

    Args:
        count_N: trained tokens of each trajectory.
        tolerance: largest difference that counts as none, relative to the larger of 1 and the value. 0: bits
            are compared.
        same_ranks: both have the same parallel layout, so that checksums of the ranks' weights are compared
            too if bits are.
    """
    names = sorted(here.columns.keys() & there.columns.keys(), key=_order)
    found = [_of_tokens(name, here, there, count_N, tolerance) for name in names]
    numbers = list(_numbers(here, there, tolerance))
    weights = list(_weights(here, there)) if same_ranks and not tolerance else []
    missing = [
        Difference(name, "", *("there" if name in of.columns else "absent" for of in (here, there)))
        for name in sorted(here.columns.keys() ^ there.columns.keys())
    ]
    different = [*missing, *found, *numbers, *weights]
    return Compared(len(found), len(numbers), tuple(row for row in different if row))


def _order(name: str) -> tuple[int, str]:
    first = -1 if name == POSITION else 0
    return (_LAST.index(name) + 1 if name in _LAST else first), name


def _of_tokens(
    name: str, here: Found, there: Found, count_N: np.ndarray, tolerance: float
) -> Difference | None:
    one, other = here.columns[name], there.columns[name]
    at = _first(one, other, tolerance)
    if at is None:
        return None
    n = int(np.searchsorted(np.cumsum(count_N), at, side="right"))
    positions = there.columns.get(POSITION)
    token = positions[at] if positions is not None and at < len(positions) else at
    return Difference(name, f"trajectory {n}, token {token}", _shown(one, at), _shown(other, at))


def _numbers(here: Found, there: Found, tolerance: float) -> Iterator[Difference | None]:
    yield from _metrics("", here.loaded, there.loaded, tolerance)
    if len(here.steps) != len(there.steps):
        yield _number("number of optimizer steps", len(here.steps), len(there.steps), 0.0)
    for number, (one, other) in enumerate(zip(here.steps, there.steps, strict=False)):
        where = f" of optimizer step {number + 1}"
        if one.get("error") != other.get("error"):
            yield Difference(
                f"end{where}", "", str(one.get("error", "no error")), str(other.get("error", "no error"))
            )
        if "error" in one or "error" in other:
            continue
        for name in ("loss", "grad_norm", "lr"):
            yield _number(f"{name}{where}", one[name], other[name], tolerance)
        yield from _metrics(where, one["metrics"], other["metrics"], tolerance)


def _metrics(
    where: str, one: Mapping[str, float], other: Mapping[str, float], tolerance: float
) -> Iterator[Difference | None]:
    for name in sorted(one.keys() | other.keys()):
        yield _number(f"{name}{where}", one.get(name), other.get(name), tolerance)


def _weights(here: Found, there: Found) -> Iterator[Difference]:
    for rank, (one, other) in enumerate(zip(here.weights, there.weights, strict=False)):
        for name in one:
            if one[name] != other.get(name):
                yield Difference(f"checksum of {name}", f"rank {rank}", str(one[name]), str(other.get(name)))
                return


def _token_columns(batch: RankBatch) -> set[str]:
    return {name for block in batch.blocks for name in block.columns if COLUMNS[name].per == "token"}


def _row(batch: RankBatch, n: int, name: str) -> np.ndarray:
    block = batch.blocks[batch.block_N[n]]
    values = {"token": block.token_T, "loss_mask": block.loss_mask_T}
    return (values[name] if name in values else block.column(name))[block.row(batch.row_N[n])]


def _of_row(name: str, one: Any, other: Any, place: str) -> Difference | None:
    one, other = np.asarray(one), np.asarray(other)
    at = _first(one, other, 0.0)
    return None if at is None else Difference(name, f"{place} {at}", _shown(one, at), _shown(other, at))


def _first(one: np.ndarray, other: np.ndarray, tolerance: float) -> int | None:
    """Index of the first row that differs; None: none does."""
    count = min(len(one), len(other))
    a, b = (values[:count].reshape(count, -1) for values in (one, other))
    same = a == b
    if np.issubdtype(a.dtype, np.floating):
        with np.errstate(invalid="ignore"):
            close = np.abs(a - b) <= tolerance * np.maximum(1.0, np.abs(b))
        same = same | (np.isnan(a) & np.isnan(b)) | close
    rows = np.flatnonzero(~same.all(axis=1))
    if len(rows):
        return int(rows[0])
    return count if len(one) != len(other) else None


def _shown(values: np.ndarray, at: int) -> str:
    if at >= len(values):
        return "absent"
    value = values[at]
    return str(value.tolist() if np.ndim(value) else value.item())


def _number(name: str, one: Any, other: Any, tolerance: float) -> Difference | None:
    if one is None or other is None:
        return Difference(name, "", *("absent" if value is None else repr(value) for value in (one, other)))
    same = one == other or (math.isnan(one) and math.isnan(other))
    if same or abs(one - other) <= tolerance * max(1.0, abs(other)):
        return None
    return Difference(name, "", repr(one), repr(other))
