"""Who copies what: the intersection of a source layout with target layouts, as data. No tensor, no message.

A transfer is planned once for a parameter class and holds on all its layers. Every rank plans alone: the
rules read only the layouts, so all get the same plan, and equal digests say that they had the same layouts.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import pairwise, product
from typing import NamedTuple

from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.runs import Run, Runs, Span, join, overlap, size, window

_RULES = 1
"""Part of the digest: it changes with any rule below."""

_SHARE_ELEMENTS = 1 << 16
"""Replicas share the rows of a box when each gets this many elements; smaller boxes take turns by layer."""


class CopyBox(NamedTuple):
    """One rectangle: (row, column) in the source and in the target tensor. A vector is one row."""

    source: tuple[int, int]
    target: tuple[int, int]
    shape: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a source rank copies into a target tensor on every layer of `layers`; in names, * is the layer."""

    param: str
    source_rank: int
    source_tensor: str
    target: int
    """Index into the target layouts."""

    target_rank: int
    target_tensor: str
    layers: range
    boxes: tuple[CopyBox, ...]


@dataclass(frozen=True)
class Job:
    """Layouts to plan between."""

    source: Layout
    targets: tuple[Layout, ...]
    near: Mapping[tuple[int, int], frozenset[int]] = field(default_factory=dict)
    """(target, target rank) -> source ranks close to it, preferred among those that hold the same."""

    @property
    def digest(self) -> str:
        """Equal on two ranks if and only if they plan the same."""
        layouts = [[type(layout).__name__, asdict(layout)] for layout in (self.source, *self.targets)]
        near = sorted([*place, *sorted(ranks)] for place, ranks in self.near.items())
        text = json.dumps([_RULES, _SHARE_ELEMENTS, layouts, near], sort_keys=True, default=dict)
        return hashlib.sha256(text.encode()).hexdigest()


def plan(job: Job, *, source_rank: int | None = None, target_rank: int | None = None) -> list[Transfer]:
    """All transfers of a job, or those of one rank. They write each element of each target rank exactly once.

    Args:
        source_rank: only what this source rank copies.
        target_rank: only what is written on this rank of the targets.

    Returns:
        Ordered by target and by its model table, alike on every rank.
    """
    pools = {
        param: [pool for pool in pools if source_rank is None or source_rank in pool.ranks]
        for param, pools in _pools(job.source).items()
    }
    found: list[Transfer] = []
    for target, layout in enumerate(job.targets):
        for turn, wanted in enumerate(layout.holdings):
            for rank in wanted.ranks if target_rank is None else {target_rank}.intersection(wanted.ranks):
                order = _Order(wanted, target, rank, turn + target + rank, source_rank)
                near = job.near.get((target, rank), frozenset())
                for pool in pools.get(wanted.param, ()):
                    found += _fill(order, pool, near)
    return found


class _Holder(NamedTuple):
    rank: int
    held: Holding


class _Pool(NamedTuple):
    """Cells of one parameter that the same holders have, on some layers: any of them can send any of it."""

    layers: range
    rows: Runs
    cols: Runs
    holders: tuple[_Holder, ...]
    ranks: frozenset[int]


class _Order(NamedTuple):
    """A tensor of a target rank that is to be filled."""

    wanted: Holding
    target: int
    rank: int
    turn: int
    """Which of several replicas begins, so that they begin equally often."""

    source_rank: int | None
    """Only the transfers of this one are asked for."""


@lru_cache(maxsize=16)
def _pools(source: Layout) -> dict[str, list[_Pool]]:
    """Source parameters cut at every edge of every holding: who holds some of a cell holds all of it."""
    alike: dict[tuple[str, range], list[Holding]] = {}
    for held in source.holdings:
        alike.setdefault((held.param, held.layers), []).append(held)
    pools: dict[str, list[_Pool]] = {}
    for (param, layers), holdings in alike.items():
        pools.setdefault(param, []).extend(_cells(layers, holdings))
    return pools


def _cells(layers: range, holdings: list[Holding]) -> list[_Pool]:
    row_maps = _by_owners([held.rows for held in holdings])
    col_maps = _by_owners([held.cols for held in holdings])
    found = []
    for (row_owners, rows), (col_owners, cols) in product(row_maps.items(), col_maps.items()):
        shared = [holdings[i] for i in row_owners & col_owners]
        holders = [_Holder(rank, held) for held in shared for rank in held.ranks]
        holders.sort(key=lambda holder: (holder.rank, holder.held.tensor))
        if holders:
            found.append(_Pool(layers, rows, cols, tuple(holders), frozenset(h.rank for h in holders)))
    return found


def _by_owners(maps: list[Runs]) -> dict[frozenset[int], Runs]:
    """Stretches of a dimension that the same maps cover, by the indices of those; local is canonical."""
    edges = sorted({edge for runs in maps for run in runs for edge in (run.at, run.at + run.length)})
    index = {edge: i for i, edge in enumerate(edges)}
    owners: list[set[int]] = [set() for _ in edges]
    for i, runs in enumerate(maps):
        for run in runs:
            for j in range(index[run.at], index[run.at + run.length]):
                owners[j].add(i)
    stretches: dict[frozenset[int], list[Run]] = {}
    for (start, stop), names in zip(pairwise(edges), owners, strict=False):
        stretches.setdefault(frozenset(names), []).append(Run(start, stop - start, start))
    return {names: join(runs) for names, runs in stretches.items() if names}


def _fill(order: _Order, pool: _Pool, near: frozenset[int]) -> list[Transfer]:
    """Share what `pool` has of the tensor among its holders: by rows if that is much, else by layers."""
    wanted = order.wanted
    layers = range(max(pool.layers.start, wanted.layers.start), min(pool.layers.stop, wanted.layers.stop))
    rows, cols = _meet(pool.rows, wanted.rows), _meet(pool.cols, wanted.cols)
    holders = [holder for holder in pool.holders if holder.rank in near] or pool.holders
    count = len(holders)
    by_rows = size(rows) >= count and size(rows) * size(cols) >= count * _SHARE_ELEMENTS
    found = []
    for i, (rank, held) in enumerate(holders):
        mine = layers if by_rows else layers[(i - order.turn) % count :: count]
        if mine and order.source_rank in (None, rank):
            boxes = _boxes(held, wanted, _part(rows, i, count) if by_rows else rows, cols)
            if boxes:
                place = (order.target, order.rank, wanted.tensor)
                found.append(Transfer(wanted.param, rank, held.tensor, *place, mine, boxes))
    return found


@lru_cache(maxsize=1 << 14)
def _meet(cells: Runs, wanted: Runs) -> Runs:
    """The stretches of `cells` that `wanted` covers."""
    return join(Run(span.at, span.length, span.at) for span in overlap(cells, wanted))


def _part(rows: Runs, index: int, count: int) -> Runs:
    """The index-th of `count` nearly equal parts of the rows."""
    total = size(rows)
    stretches = [(run.at, run.length) for run in rows]
    part = window(stretches, total * index // count, total * (index + 1) // count)
    return tuple(Run(run.at, run.length, run.at) for run in part)


@lru_cache(maxsize=1 << 14)
def _boxes(held: Holding, wanted: Holding, rows: Runs, cols: Runs) -> tuple[CopyBox, ...]:
    """Copies from one holder's tensor to another's, limited to the given cells."""
    row_spans = _fuse(overlap(_within(held.rows, rows), wanted.rows))
    col_spans = _fuse(overlap(_within(held.cols, cols), wanted.cols))
    if len(wanted.shape) == 1:
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
