"""The overlap of a source cell with a target holding: its size, and the rectangles to copy.

Each overlap is computed once for all layers and experts that have the same sharding.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from hybridrl.layout.base import Holding
from hybridrl.layout.blocks import num_blocks, part_in_blocks, refuse_shared_blocks
from hybridrl.layout.runs import Run, Runs, Span, join, overlap, size, window
from hybridrl.reshard.cells import Cell, Patch
from hybridrl.reshard.job import CopyBox
from hybridrl.reshard.shares import Part

_SHARE_ELEMENTS = 1 << 16
"""Replicas split the rows of an overlap with at least this many elements, else they split its layers."""


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A holding of a group of targets that have equal layouts."""

    kind: int
    """Index of that group."""

    index: int
    """Index of the holding in their layout."""

    alike: int
    """A number that holdings with the same rows and columns share, quantised or not."""

    held: Holding

    same: int = 0
    """For plans with once_per_node: a number that holdings of the same elements share, wherever these are in
    their tensors. Other holdings have none of these elements on the same layers."""


class Region(NamedTuple):
    """What one sender copies of a cell, for one expert on one layer."""

    by_rows: bool
    """True: the boxes are part of the rows, on all layers. False: they are all rows, on some layers."""

    boxes: tuple[CopyBox, ...]


class Regions:
    def __init__(self) -> None:
        self._areas: dict[tuple[Patch, int], int] = {}
        self._regions: dict[tuple[Patch, int | None, int, int, Part | None], Region] = {}

    def elements(self, cell: Cell, wanted: Wanted) -> int:
        """Number of elements that a cell and a target holding share, over all layers and experts."""
        held = wanted.held
        layers = min(cell.layers.stop, held.layers.stop) - max(cell.layers.start, held.layers.start)
        experts = min(cell.experts.stop, held.experts.stop) - max(cell.experts.start, held.experts.start)
        if layers <= 0 or experts <= 0:
            return 0
        key = (cell.patch, wanted.alike)
        if key not in self._areas:
            self._areas[key] = _shared(cell.patch.rows, held.rows) * _shared(cell.patch.cols, held.cols)
        return layers * experts * self._areas[key]

    def region(self, cell: Cell, sender: int | Wanted, wanted: Wanted, part: Part) -> Region:
        """The boxes that a sender copies for its part of the overlap.

        Args:
            sender: index into the cell's holdings; or what a target rank that passes it on holds.
        """
        holder, target = (None, sender.alike) if isinstance(sender, Wanted) else (sender, 0)
        key = (cell.patch, holder, target, wanted.alike, None if part.is_whole else part)
        if key not in self._regions:
            held = sender.held if isinstance(sender, Wanted) else cell.holdings[sender]
            self._regions[key] = _region(cell.patch, held, wanted.held, part)
        return self._regions[key]


def _region(patch: Patch, held: Holding, wanted: Holding, part: Part) -> Region:
    rows, cols = covered(patch.rows, wanted.rows), covered(patch.cols, wanted.cols)
    by_rows = not part.is_whole and size(rows) * size(cols) >= _SHARE_ELEMENTS
    if by_rows and wanted.fp8:
        count = size(rows)
        rows = _window(rows, *part_in_blocks(*part.bounds(num_blocks(count)), count))
    elif by_rows:
        rows = _window(rows, *part.bounds(size(rows)))
    if wanted.fp8:
        refuse_shared_blocks(rows, cols, wanted.rows, wanted.cols, wanted.param)
    row_spans = _fuse(overlap(_within(held.rows, rows), wanted.rows))
    col_spans = _fuse(overlap(_within(held.cols, cols), wanted.cols))
    if len(held.shape) == 1:
        row_spans, col_spans = col_spans, row_spans
    boxes = [
        CopyBox((row.first, col.first), (row.second, col.second), (row.length, col.length))
        for row, col in product(row_spans, col_spans)
    ]
    return Region(by_rows, tuple(boxes))


def _shared(runs: Runs, wanted: Runs) -> int:
    """Number of elements of a dimension that both maps cover."""
    return sum([span.length for span in overlap(runs, wanted)])


def covered(runs: Runs, wanted: Runs) -> Runs:
    """The parts of `runs` that `wanted` covers."""
    return join(Run(span.at, span.length, span.at) for span in overlap(runs, wanted))


def _window(rows: Runs, start: int, stop: int) -> Runs:
    part = window([(run.at, run.length) for run in rows], start, stop)
    return tuple(Run(run.at, run.length, run.at) for run in part)


def _within(runs: Runs, cells: Runs) -> list[Run]:
    return [Run(span.at, span.length, span.first) for span in overlap(runs, cells)]


def _fuse(spans: Iterable[Span]) -> list[Span]:
    """Merge spans that are neighbours in both tensors, even if they are not neighbours in the parameter."""
    fused: list[Span] = []
    for span in sorted(spans, key=lambda span: span.second):
        last = fused[-1] if fused else None
        if last and last.first + last.length == span.first and last.second + last.length == span.second:
            fused[-1] = last._replace(length=last.length + span.length)
        else:
            fused.append(span)
    return fused
