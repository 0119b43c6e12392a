"""Who copies what: the intersection of a source layout with target layouts, as data. No tensors, no communication.

A transfer is planned once for a parameter class and holds on all its layers. Every rank plans alone: the rules read the
layouts only, so all arrive at the same plan, and equal digests say that they started from the same layouts.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import pairwise, product
from typing import NamedTuple

from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.runs import Run, Runs, Span, join, overlap, size, window

_RULES = 1
"""Part of the digest: changes with any rule below."""

_SHARE_ELEMENTS = 1 << 16
"""Replicas share the rows of a box when each gets at least this many elements; smaller boxes go round by layer."""


class CopyBox(NamedTuple):
    """One rectangle: (row, column) in the source and in the target tensor. A vector is a matrix of one row."""

    source: tuple[int, int]
    target: tuple[int, int]
    shape: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Transfer:
    """What one source rank copies into one target tensor, alike on every layer of `layers`. Names carry * for it."""

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
    """(target, target rank) -> source ranks close to it, which are preferred among equals."""

    @property
    def digest(self) -> str:
        """Equal on two ranks if and only if they plan the same."""
        layouts = [[type(layout).__name__, asdict(layout)] for layout in (self.source, *self.targets)]
        near = sorted((*place, *sorted(ranks)) for place, ranks in self.near.items())
        text = json.dumps([_RULES, _SHARE_ELEMENTS, layouts, near], sort_keys=True, default=dict)
        return hashlib.sha256(text.encode()).hexdigest()


def plan(job: Job, *, source_rank: int | None = None, target_rank: int | None = None) -> list[Transfer]:
    """All transfers of a job, or those of one rank. Every element that a target rank holds is written exactly once.

    Args:
        source_rank: only what this source rank copies.
        target_rank: only what is written on this rank of the targets.

    Returns:
        In the order of the model table; the same list on every rank that asks for the same.
    """
    pools = _pools(job.source)
    found: list[Transfer] = []
    for target, layout in enumerate(job.targets):
        for ordinal, wanted in enumerate(layout.holdings):
            for pool in pools.get(wanted.param, ()):
                layers = _common(pool.layers, wanted.layers)
                if layers and (source_rank is None or source_rank in pool.ranks):
                    for rank in wanted.ranks if target_rank is None else {target_rank} & set(wanted.ranks):
                        turn = ordinal + target + rank
                        near = job.near.get((target, rank), frozenset())
                        found += _fill(pool, wanted, layers, target, rank, near, turn, source_rank)
    return found


class _Holder(NamedTuple):
    rank: int
    held: Holding


class _Pool(NamedTuple):
    """Cells of one parameter on some layers, that the same holders have: each cell may come from any of them."""

    layers: range
    rows: Runs
    cols: Runs
    holders: tuple[_Holder, ...]
    ranks: frozenset[int]


@lru_cache(maxsize=16)
def _pools(source: Layout) -> dict[str, list[_Pool]]:
    """Source parameters cut along every boundary of every holding, so that replicas are whole-cell alternatives."""
    stages: dict[tuple[str, range], list[Holding]] = {}
    for held in source.holdings:
        stages.setdefault((held.param, held.layers), []).append(held)
    pools: dict[str, list[_Pool]] = {}
    for (param, layers), holdings in stages.items():
        pools.setdefault(param, []).extend(_cells(layers, holdings))
    return pools


def _cells(layers: range, holdings: list[Holding]) -> list[_Pool]:
    rows = _intervals([held.rows for held in holdings])
    cols = _intervals([held.cols for held in holdings])
    found = []
    for (row_members, row_runs), (col_members, col_runs) in product(rows.items(), cols.items()):
        shared = [holdings[i] for i in row_members & col_members]
        holders = [_Holder(rank, held) for held in shared for rank in held.ranks]
        holders.sort(key=lambda holder: (holder.rank, holder.held.tensor))
        if holders:
            found.append(
                _Pool(layers, row_runs, col_runs, tuple(holders), frozenset(h.rank for h in holders))
            )
    return found


def _intervals(maps: list[Runs]) -> dict[frozenset[int], Runs]:
    """Stretches of a dimension by the set of maps that cover them; local is the canonical position."""
    cuts = sorted({edge for runs in maps for run in runs for edge in (run.at, run.at + run.length)})
    index = {edge: i for i, edge in enumerate(cuts)}
    members: list[set[int]] = [set() for _ in cuts]
    for i, runs in enumerate(maps):
        for run in runs:
            for j in range(index[run.at], index[run.at + run.length]):
                members[j].add(i)
    stretches: dict[frozenset[int], list[Run]] = {}
    for (start, stop), owners in zip(pairwise(cuts), members, strict=False):
        stretches.setdefault(frozenset(owners), []).append(Run(start, stop - start, start))
    return {owners: join(runs) for owners, runs in stretches.items() if owners}


def _fill(
    pool: _Pool,
    wanted: Holding,
    layers: range,
    target: int,
    rank: int,
    near: frozenset[int],
    turn: int,
    only: int | None,
) -> list[Transfer]:
    """Share what `pool` has of `wanted` among its holders."""
    rows, cols = _meet(pool.rows, wanted.rows), _meet(pool.cols, wanted.cols)
    holders = [h for h in pool.holders if h.rank in near] or pool.holders
    count = len(holders)
    by_rows = size(rows) >= count and size(rows) * size(cols) >= count * _SHARE_ELEMENTS
    found = []
    for i, holder in enumerate(holders):
        if only is not None and holder.rank != only:
            continue
        part = _part(rows, i, count) if by_rows else rows
        mine = layers if by_rows else layers[(i - turn) % count :: count]
        boxes = _boxes(holder.held, wanted, part, cols)
        if boxes and mine:
            found.append(
                Transfer(
                    wanted.param, holder.rank, holder.held.tensor, target, rank, wanted.tensor, mine, boxes
                )
            )
    return found


@lru_cache(maxsize=1 << 16)
def _meet(cells: Runs, wanted: Runs) -> Runs:
    """The stretches of `cells` that `wanted` covers."""
    return join(Run(span.at, span.length, span.at) for span in overlap(cells, wanted))


def _part(rows: Runs, index: int, count: int) -> Runs:
    """The index-th of `count` nearly equal parts of the covered rows."""
    total = size(rows)
    stretches = [(run.at, run.length) for run in rows]
    part = window(stretches, total * index // count, total * (index + 1) // count)
    return tuple(Run(run.at, run.length, run.at) for run in part)


@lru_cache(maxsize=1 << 16)
def _boxes(held: Holding, wanted: Holding, rows: Runs, cols: Runs) -> tuple[CopyBox, ...]:
    row_spans = _fuse(overlap(_within(held.rows, rows), _within(wanted.rows, rows)))
    col_spans = _fuse(overlap(_within(held.cols, cols), _within(wanted.cols, cols)))
    if len(wanted.shape) == 1:
        row_spans, col_spans = col_spans, row_spans
    return tuple(
        CopyBox((r.first, c.first), (r.second, c.second), (r.length, c.length))
        for r, c in product(row_spans, col_spans)
    )


def _within(runs: Runs, cells: Runs) -> list[Run]:
    return [Run(span.at, span.length, span.first) for span in overlap(runs, cells)]


def _fuse(spans: Iterable[Span]) -> list[Span]:
    """Spans that are neighbours in both tensors made one, though they may lie apart in the canonical dimension."""
    fused: list[Span] = []
    for span in sorted(spans, key=lambda s: s.second):
        last = fused[-1] if fused else None
        if last and last.first + last.length == span.first and last.second + last.length == span.second:
            fused[-1] = last._replace(length=last.length + span.length)
        else:
            fused.append(span)
    return fused


def _common(a: range, b: range) -> range:
    return range(max(a.start, b.start), min(a.stop, b.stop))
