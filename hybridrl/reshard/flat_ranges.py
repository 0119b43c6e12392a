"""Flat ranges: a rank keeps elements [start, stop) of a flattened tensor.

A distributed optimizer partitions its state like this, without regard to rows. The layout says which part of
which canonical parameter lies in a flat range, so ranks of another layout can find what they need.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch

from hybridrl.layout.runs import Run, Runs, overlap, size
from hybridrl.layout.shard import Shard


@dataclass(frozen=True, slots=True)
class FlatRange:
    """Elements [start, stop) of a tensor, counted row by row."""

    shard: Shard
    start: int
    stop: int

    @classmethod
    def whole(cls, shard: Shard) -> "FlatRange":
        """The range that covers a whole tensor."""
        return cls(shard, 0, prod(shard.shape))

    @property
    def width(self) -> int:
        """Elements per row. All dimensions but the last count as rows; a vector is one column."""
        return self.shard.shape[-1] if len(self.shard.shape) > 1 else 1

    def blocks(self) -> Iterator[tuple[Runs, Runs]]:
        """(rows, columns) of the parameter in this range, in at most three parts: the end of one row, whole
        rows, and the beginning of one row. Padding is in none of them."""
        width = self.width
        (top, left), (bottom, right) = divmod(self.start, width), divmod(self.stop, width)
        parts = [(top, top + 1, left, right)]
        if top < bottom:
            first = top + (left > 0)
            parts = [(top, first, left, width), (first, bottom, 0, width), (bottom, bottom + 1, 0, right)]
        for row, end_row, col, end_col in parts:
            rows, cols = _clip(self.shard.rows, row, end_row), _clip(self.shard.cols, col, end_col)
            if rows and cols:
                yield rows, cols

    def view(self, flat_N: torch.Tensor, row: int, col: int, shape: tuple[int, int]) -> torch.Tensor:
        """A rectangle of the tensor that lies in this range.

        Args:
            flat_N: the elements of this range, contiguous.
        """
        at = flat_N.storage_offset() + row * self.width + col - self.start
        return flat_N.as_strided(shape, (self.width, 1), at)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A flat range to fill, for one or several quantities such as weights and Adam moments."""

    flat_range: FlatRange
    tensors: Mapping[str, torch.Tensor]
    """Quantity -> contiguous tensor [stop - start]."""


class Filling:
    """Flat ranges of one layout that are filled from flat ranges of another layout, in any order."""

    def __init__(self, wanted: Iterable[Wanted]) -> None:
        self._of_param: dict[str, list[_Open]] = {}
        for want in wanted:
            self._of_param.setdefault(want.flat_range.shard.param, []).append(_Open(want))

    def wants(self, shard: Shard) -> bool:
        """Whether a wanted range needs part of this tensor."""
        return any(
            overlap(shard.rows, rows) and overlap(shard.cols, cols)
            for open_ in self._of_param.get(shard.param, ())
            for rows, cols in open_.blocks
        )

    def quantities(self, param: str) -> set[str]:
        """The quantities that are wanted of a canonical parameter."""
        return {quantity for open_ in self._of_param.get(param, ()) for quantity in open_.want.tensors}

    def take(self, source: FlatRange, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy what is wanted from a source range. No two sources may hold the same element.

        Args:
            tensors: the source's values of all quantities that are wanted of its parameter, flat.
        """
        blocks = list(source.blocks())
        for open_ in self._of_param.get(source.shard.param, ()):
            for box in _shared(blocks, open_.blocks):
                open_.left -= prod(box.shape)
                for quantity, target in open_.want.tensors.items():
                    ours = open_.want.flat_range.view(target, *box.target, box.shape)
                    ours.copy_(source.view(tensors[quantity], *box.source, box.shape))

    def missing(self) -> list[str]:
        """Canonical parameters that were not filled completely."""
        return sorted(param for param, opens in self._of_param.items() if any(open_.left for open_ in opens))


class _Open:
    """A wanted range, and how many of its elements are still missing."""

    def __init__(self, want: Wanted) -> None:
        self.want, self.blocks = want, list(want.flat_range.blocks())
        self.left = sum(size(rows) * size(cols) for rows, cols in self.blocks)


@dataclass(frozen=True, slots=True)
class _Box:
    source: tuple[int, int]
    target: tuple[int, int]
    shape: tuple[int, int]


_Blocks = Sequence[tuple[Runs, Runs]]


def _shared(source: _Blocks, target: _Blocks) -> Iterator[_Box]:
    """Rectangles that two flat ranges share: (row, column) in the tensor of each."""
    for (rows, cols), (to_rows, to_cols) in product(source, target):
        for row, col in product(overlap(rows, to_rows), overlap(cols, to_cols)):
            yield _Box((row.first, col.first), (row.second, col.second), (row.length, col.length))


def _clip(runs: Sequence[Run], start: int, stop: int) -> Runs:
    """The runs clipped to [start, stop) of the holder's tensor."""
    clipped = []
    for at, length, local in runs:
        first, last = max(local, start), min(local + length, stop)
        if first < last:
            clipped.append(Run(at + first - local, last - first, first))
    return tuple(clipped)
