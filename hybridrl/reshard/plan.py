"""Who copies what: the intersection of a source layout with target layouts, as data. No tensor, no message.

A transfer is planned once for a parameter class and holds on all its layers and for all its experts. Every
rank plans alone: the rules read only the layouts and where ranks sit, so all get the same plan, and equal
digests say that they had the same input.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import product
from math import gcd
from typing import NamedTuple

import numpy as np

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Holding, meet
from hybridrl.layout.runs import Run, Runs, Span, join, overlap, size, window
from hybridrl.reshard.cells import Cell, Cells
from hybridrl.reshard.job import CopyBox, Job, Stack, Transfer
from hybridrl.reshard.shares import Part, Shares

__all__ = ["CopyBox", "Job", "Stack", "Transfer", "plan"]

_SHARE_ELEMENTS = 1 << 16
"""Replicas share the rows of a box of at least this many elements, and otherwise its layers."""


def plan(
    job: Job, *, source_rank: int | None = None, target: int | None = None, target_rank: int | None = None
) -> list[Transfer]:
    """All transfers of a job, or those of one rank. They write each element of each target rank exactly once.

    Args:
        source_rank: only what this source rank copies.
        target, target_rank: only what is written into this target, on this rank of the targets.

    Returns:
        Ordered by target, its rank and its model table, alike on every rank.

    Raises:
        LayoutError: the last holder of something is lost.
    """
    planner = _planner(job)
    if source_rank is not None:
        found = [
            (key, transfer)
            for key, transfer in planner.of_source(source_rank)
            if target in (None, transfer.target) and target_rank in (None, transfer.target_rank)
        ]
    else:
        found = [
            keyed
            for index, layout in enumerate(job.targets)
            if target in (None, index)
            for rank in (range(layout.world_size) if target_rank is None else (target_rank,))
            for keyed in planner.of_target(index, rank)
        ]
    return [transfer for _, transfer in sorted(found, key=lambda keyed: keyed[0])]


_Key = tuple[int, ...]
_Keyed = tuple[_Key, Transfer]


class _Wanted(NamedTuple):
    """A holding of some targets, which are all alike."""

    kind: int
    index: int
    """Of the holding in its layout."""

    held: Holding


class _Line(NamedTuple):
    """Ranks of the targets that want some of a cell: targets in order, then their ranks."""

    which_T: np.ndarray
    """Of what is wanted."""

    target_T: np.ndarray
    rank_T: np.ndarray
    size_T: np.ndarray
    device_T: np.ndarray

    def place(self, demand: int) -> tuple[int, int]:
        """(target, its rank)"""
        return int(self.target_T[demand]), int(self.rank_T[demand])


class _Holders(NamedTuple):
    """Of a cell, by rank."""

    rank_H: np.ndarray
    which_H: np.ndarray
    """Of the cell's holdings."""


class _Giver(NamedTuple):
    """Who copies: a source rank of its own, or of a target on its device."""

    rank: int
    held: Holding
    via: tuple[int, int] | None = None


class _Sizes(NamedTuple):
    """Of what is wanted of a cell, in the smallest unit: (targets, their ranks, size)."""

    wanted: list[_Wanted]
    key: tuple[tuple[int, range, int], ...]
    index: dict[tuple[int, int], int]
    """(targets, holding) -> place in the list."""


class _Demands(NamedTuple):
    wanted: list[_Wanted]
    index: dict[tuple[int, int], int]
    holdings: tuple[Holding, ...]
    holders: _Holders
    line: _Line
    shares: Shares

    def holder(self, index: int) -> _Giver:
        return _Giver(int(self.holders.rank_H[index]), self.holdings[self.holders.which_H[index]])


class _Planner:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._cells = Cells(job.source)
        kinds = list(dict.fromkeys(job.targets))
        self._targets = [[i for i, layout in enumerate(job.targets) if layout == kind] for kind in kinds]
        self._kind = {i: kind for kind, members in enumerate(self._targets) for i in members}
        self._wanted: dict[str, list[_Wanted]] = {}
        for kind, layout in enumerate(kinds):
            for index, held in enumerate(layout.holdings):
                self._wanted.setdefault(held.param, []).append(_Wanted(kind, index, held))
        self._sizes: dict[tuple[object, ...], _Sizes] = {}
        self._lines: dict[tuple[tuple[int, range, int], ...], _Line] = {}
        self._regions: dict[tuple[object, ...], tuple[bool, tuple[CopyBox, ...]]] = {}
        self._found: dict[tuple[int, ...], int] = {}
        self._holders: dict[tuple[range, ...], _Holders] = {}
        self._shared: dict[tuple[object, ...], Shares] = {}
        self._device_S = self._device_D = None
        if job.topology is not None:
            self._device_S = np.array(job.topology.source, np.int64)
            self._device_D = np.array([d for devices in job.topology.targets for d in devices], np.int64)
        self._first_D = np.cumsum([0, *(layout.world_size for layout in job.targets)])

    def of_target(self, target: int, rank: int) -> Iterator[_Keyed]:
        kind = self._kind[target]
        for index, held in enumerate(self._job.targets[target].holdings):
            if rank not in held.ranks:
                continue
            wanted = _Wanted(kind, index, held)
            for cell in self._cells.meeting(held):
                if _elements(cell, held):
                    demands = self._demands(held.param, cell)
                    demand = self._find(demands, wanted, (target, rank))
                    for holder, part in demands.shares.of_demand(demand):
                        yield from self._transfer(cell, demands.holder(holder), wanted, (target, rank), part)
                    for other, part in demands.shares.given(demand):
                        giver = self._neighbour(demands.line.place(other), held)
                        yield from self._transfer(cell, giver, wanted, (target, rank), part)

    def of_source(self, rank: int) -> Iterator[_Keyed]:
        if rank in self._job.lost:
            return
        yield from self._passed_on(rank)
        for param, cell in self._cells.of_rank(rank):
            demands = self._demands(param, cell)
            for holder in np.flatnonzero(demands.holders.rank_H == rank).tolist() if demands.wanted else ():
                for demand, part in demands.shares.of_holder(holder):
                    wanted = demands.wanted[demands.line.which_T[demand]]
                    place = demands.line.place(demand)
                    yield from self._transfer(cell, demands.holder(holder), wanted, place, part)

    def _passed_on(self, rank: int) -> Iterator[_Keyed]:
        """What a rank copies from the targets on its device to others of its node."""
        topology = self._job.topology
        if topology is None or not self._job.once_per_node:
            return
        for place in topology.beside(rank):
            for index, held in enumerate(self._job.targets[place[0]].holdings):
                if place[1] in held.ranks:
                    wanted = _Wanted(self._kind[place[0]], index, held)
                    yield from self._passed_on_of(wanted, place)

    def _passed_on_of(self, wanted: _Wanted, place: tuple[int, int]) -> Iterator[_Keyed]:
        for cell in self._cells.meeting(wanted.held):
            if _elements(cell, wanted.held):
                demands = self._demands(wanted.held.param, cell)
                giver = self._neighbour(place, wanted.held)
                for other, part in demands.shares.passed_on(self._find(demands, wanted, place)):
                    yield from self._transfer(cell, giver, wanted, demands.line.place(other), part)

    def _neighbour(self, place: tuple[int, int], held: Holding) -> _Giver:
        topology = self._job.topology
        assert topology is not None
        return _Giver(topology.rank_on[topology.targets[place[0]][place[1]]], held, place)

    def _demands(self, param: str, cell: Cell) -> _Demands:
        """Classes of parameters that are cut alike are also wanted and shared alike."""
        wanted, wanted_key, index = self._sizes_of(param, cell)
        if wanted_key not in self._lines:
            self._lines[wanted_key] = self._line_up(wanted_key)
        line, holders = self._lines[wanted_key], self._who_holds(cell)
        key = (tuple([held.ranks for held in cell.holdings]), wanted_key)
        if key not in self._shared:
            rank_H = holders.rank_H
            device_H = rank_H if self._device_S is None else self._device_S[rank_H]
            node_size = self._job.topology and self._job.topology.node_size
            alike_T = line.which_T if self._job.once_per_node else None
            self._shared[key] = Shares(device_H, line.device_T, line.size_T, node_size, alike_T)
        return _Demands(wanted, index, cell.holdings, holders, line, self._shared[key])

    def _sizes_of(self, param: str, cell: Cell) -> _Sizes:
        """Alike for cells that differ in their layers, where whoever wants some wants all of these."""
        wanted = self._wanted.get(param, ())
        spans = all(
            w.held.layers.start <= cell.layers.start < cell.layers.stop <= w.held.layers.stop for w in wanted
        )
        key = (param, cell.experts, cell.rows, cell.cols, None if spans else cell.layers)
        if key not in self._sizes:
            sizes = [(w, elements) for w in wanted if (elements := _elements(cell, w.held))]
            unit = gcd(*(elements for _, elements in sizes))
            self._sizes[key] = _Sizes(
                [w for w, _ in sizes],
                tuple((w.kind, w.held.ranks, elements // unit) for w, elements in sizes),
                {w[:2]: i for i, (w, _) in enumerate(sizes)},
            )
        return self._sizes[key]

    def _transfer(
        self, cell: Cell, giver: _Giver, wanted: _Wanted, place: tuple[int, int], part: Part
    ) -> Iterator[_Keyed]:
        """Nothing, where the part is less than a row or a layer."""
        held, theirs = giver.held, wanted.held
        by_rows, boxes = self._region(cell, held, theirs, part)
        layers, experts = meet(cell.layers, theirs.layers), meet(cell.experts, theirs.experts)
        if not by_rows:
            layers = layers[slice(*part.cut(len(layers)))]
        if not (layers and boxes):
            return
        transfer = Transfer(
            param=theirs.param,
            source_rank=giver.rank,
            source_tensor=held.tensor,
            target=place[0],
            target_rank=place[1],
            target_tensor=theirs.tensor,
            layers=layers,
            boxes=boxes,
            experts=experts,
            source_stack=Stack(held.experts.start, held.step),
            target_stack=Stack(theirs.experts.start, theirs.step),
            via=giver.via,
        )
        yield (*place, wanted.index, layers.start, experts.start, giver.rank, *boxes[0].target), transfer

    def _region(
        self, cell: Cell, held: Holding, theirs: Holding, part: Part
    ) -> tuple[bool, tuple[CopyBox, ...]]:
        """(whether rows and not layers are shared, boxes); alike on all stages, whose maps are one object."""
        maps = (cell.rows, cell.cols, held.rows, held.cols, theirs.rows, theirs.cols)
        key = (*map(id, maps), len(held.shape), part)
        if key not in self._regions:
            rows, cols = _meet(cell.rows, theirs.rows), _meet(cell.cols, theirs.cols)
            by_rows = not part.is_whole and size(rows) * size(cols) >= _SHARE_ELEMENTS
            if by_rows:
                rows = _window(rows, *part.cut(size(rows)))
            self._regions[key] = by_rows, _boxes(maps[2:], rows, cols, is_vector=len(held.shape) == 1)
        return self._regions[key]

    def _find(self, demands: _Demands, wanted: _Wanted, place: tuple[int, int]) -> int:
        """Where a target rank stands in the line."""
        which = demands.index[wanted[:2]]
        line = demands.line
        key = (id(line), which, *place)  # lines live as long as the planner
        if key not in self._found:
            alike = (line.target_T == place[0]) & (line.rank_T == place[1]) & (line.which_T == which)
            self._found[key] = int(np.flatnonzero(alike)[0])
        return self._found[key]

    def _who_holds(self, cell: Cell) -> _Holders:
        key = tuple([held.ranks for held in cell.holdings])
        if key not in self._holders:
            places = sorted((rank, i) for i, ranks in enumerate(key) for rank in ranks)
            left = [place for place in places if place[0] not in self._job.lost]
            self._holders[key] = _Holders(*np.array(left, np.int64).T)
        return self._holders[key]

    def _line_up(self, wanted: tuple[tuple[int, range, int], ...]) -> _Line:
        parts = [np.empty((4, 0), np.int64)]
        for which, (kind, ranks, elements) in enumerate(wanted):
            targets, count = self._targets[kind], len(ranks)
            places = np.repeat(targets, count), np.tile(ranks, len(targets))
            parts.append(
                np.array([*places, np.full(len(places[0]), which), np.full(len(places[0]), elements)])
            )
        target_T, rank_T, which_T, size_T = np.concatenate(parts, 1)
        order = np.lexsort((which_T, rank_T, target_T))
        device_T = np.zeros_like(target_T)
        if self._device_D is not None:
            device_T = self._device_D[self._first_D[target_T] + rank_T]
        return _Line(which_T[order], target_T[order], rank_T[order], size_T[order], device_T[order])


@lru_cache(maxsize=4)
def _planner(job: Job) -> _Planner:
    if job.lost:
        _refuse_unheld(job)
    return _Planner(job)


def _refuse_unheld(job: Job) -> None:
    """A source rank plans what it holds itself, so its own part would not miss what only lost ranks held.

    Raises:
        LayoutError: lost ranks were the only holders of something.
    """
    cells = Cells(job.source)
    for param, cell in (held for rank in sorted(job.lost) for held in cells.of_rank(rank)):
        holders = sorted({rank for held in cell.holdings for rank in held.ranks})
        if job.lost.issuperset(holders):
            layers = f", layers {cell.layers.start} to {cell.layers.stop - 1}" if "*" in param else ""
            raise LayoutError(
                f"nobody is left that holds {param}{layers}",
                where=f"lost: trainer ranks {holders}",
                fix="resume from the last checkpoint",
            )


def _elements(cell: Cell, held: Holding) -> int:
    """That a cell and a holding share, over all layers and experts."""
    layers = min(cell.layers.stop, held.layers.stop) - max(cell.layers.start, held.layers.start)
    experts = min(cell.experts.stop, held.experts.stop) - max(cell.experts.start, held.experts.start)
    if layers <= 0 or experts <= 0:
        return 0
    return layers * experts * _shared(cell.rows, held.rows) * _shared(cell.cols, held.cols)


@lru_cache(maxsize=1 << 14)
def _meet(cells: Runs, wanted: Runs) -> Runs:
    """The stretches of `cells` that `wanted` covers."""
    return join(Run(span.at, span.length, span.at) for span in overlap(cells, wanted))


@lru_cache(maxsize=1 << 14)
def _shared(cells: Runs, wanted: Runs) -> int:
    return size(_meet(cells, wanted))


def _window(rows: Runs, start: int, stop: int) -> Runs:
    part = window([(run.at, run.length) for run in rows], start, stop)
    return tuple(Run(run.at, run.length, run.at) for run in part)


def _boxes(
    maps: tuple[Runs, Runs, Runs, Runs], cell_rows: Runs, cell_cols: Runs, *, is_vector: bool
) -> tuple[CopyBox, ...]:
    """Copies from one holder's tensor to another's, limited to the given cells.

    Args:
        maps: rows and columns of the one, then of the other.
    """
    rows, cols, to_rows, to_cols = maps
    row_spans = _fuse(overlap(_within(rows, cell_rows), to_rows))
    col_spans = _fuse(overlap(_within(cols, cell_cols), to_cols))
    if is_vector:
        row_spans, col_spans = col_spans, row_spans
    return tuple(
        CopyBox((row.first, col.first), (row.second, col.second), (row.length, col.length))
        for row, col in product(row_spans, col_spans)
    )


def _within(runs: Runs, cells: Runs) -> list[Run]:
    return [Run(span.at, span.length, span.first) for span in overlap(runs, cells)]


def _fuse(spans: Iterable[Span]) -> list[Span]:
    """Spans that are neighbours in both tensors made one, though they may lie apart in the parameter."""
    fused: list[Span] = []
    for span in sorted(spans, key=lambda span: span.second):
        last = fused[-1] if fused else None
        if last and last.first + last.length == span.first and last.second + last.length == span.second:
            fused[-1] = last._replace(length=last.length + span.length)
        else:
            fused.append(span)
    return fused
