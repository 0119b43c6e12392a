"""Proves a plan without running it: every element of every target exactly once, from a rank that holds it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.runs import Runs, size
from hybridrl.reshard.plan import CopyBox, Job, Transfer


@dataclass(frozen=True, slots=True)
class Proof:
    """What a plan moves, in elements."""

    num_tensors: int
    """Target tensors, over all targets and ranks."""

    num_boxes: int
    elements: int
    bound: int
    """The least that any plan must write: what the target ranks hold, replicas included."""

    imbalance: float
    """Most that a source rank sends over the mean of those that hold anything."""


def prove(job: Job, transfers: Sequence[Transfer]) -> Proof:
    """Check a plan of all ranks.

    Raises:
        LayoutError: an element is written twice or never, or comes from elsewhere; names tensor and range.
    """
    inbox: dict[tuple[int, int, str], list[Transfer]] = {}
    for transfer in transfers:
        inbox.setdefault((transfer.target, transfer.target_rank, transfer.target_tensor), []).append(transfer)
    origins: _Origins = {}
    for held in job.source.holdings:
        for rank in held.ranks:
            origins.setdefault((rank, held.tensor), []).append(held)
    num_tensors = bound = 0
    for target, layout in enumerate(job.targets):
        for wanted in layout.holdings:
            for rank in wanted.ranks:
                where = f"target {target}, rank {rank}, {wanted.tensor}"
                _prove_tensor(wanted, inbox.pop((target, rank, wanted.tensor), []), origins, where)
            num_tensors += len(wanted.ranks) * len(wanted.layers)
            bound += len(wanted.ranks) * len(wanted.layers) * size(wanted.rows) * size(wanted.cols)
    if inbox:
        raise LayoutError(f"the plan writes {next(iter(inbox))}, which no target holds")
    sent = _sent(job.source, transfers)
    num_boxes = sum(len(transfer.boxes) * len(transfer.layers) for transfer in transfers)
    return Proof(num_tensors, num_boxes, sum(sent), bound, max(sent) * len(sent) / sum(sent))


_Origins = dict[tuple[int, str], list[Holding]]
"""Source rank and tensor -> what it holds under that name, one for each range of layers."""


def _sent(source: Layout, transfers: Sequence[Transfer]) -> list[int]:
    """Elements by source rank, for every rank that holds any."""
    sent = dict.fromkeys((rank for held in source.holdings for rank in held.ranks), 0)
    for transfer in transfers:
        elements = sum(box.shape[0] * box.shape[1] for box in transfer.boxes)
        sent[transfer.source_rank] += len(transfer.layers) * elements
    return list(sent.values())


def _prove_tensor(wanted: Holding, transfers: list[Transfer], origins: _Origins, where: str) -> None:
    """Layers that the same transfers fill are alike, so each such set is looked at once."""
    for transfer in transfers:
        _prove_origin(wanted, transfer, origins, where)
    for members in {tuple(layer in transfer.layers for transfer in transfers) for layer in wanted.layers}:
        boxes = [
            box
            for transfer, inside in zip(transfers, members, strict=True)
            if inside
            for box in transfer.boxes
        ]
        _prove_cover(wanted, boxes, where)


def _prove_cover(wanted: Holding, boxes: list[CopyBox], where: str) -> None:
    """Count the writes of every cell between neighbouring edges."""
    targets = [_upright(box.target, box.shape, wanted) for box in boxes]
    row_edges = _edges(wanted.rows, [(row, rows) for (row, _), (rows, _) in targets])
    col_edges = _edges(wanted.cols, [(col, cols) for (_, col), (_, cols) in targets])
    missing = np.zeros((len(row_edges), len(col_edges)), np.int64)
    for row in wanted.rows:
        for col in wanted.cols:
            missing[_cells(row_edges, row.local, row.length), _cells(col_edges, col.local, col.length)] += 1
    for (row, col), (rows, cols) in targets:
        missing[_cells(row_edges, row, rows), _cells(col_edges, col, cols)] -= 1
    if missing.any():
        i, j = (int(index) for index in np.argwhere(missing)[0])
        verdict = "never written" if missing[i, j] > 0 else "written too often"
        raise LayoutError(f"element ({row_edges[i]}, {col_edges[j]}) is {verdict}", where=where)


def _prove_origin(wanted: Holding, transfer: Transfer, origins: _Origins, where: str) -> None:
    """Both ends of every box must be the same elements of the parameter."""
    held = _origin(transfer, origins)
    if held is None or held.param != wanted.param:
        raise LayoutError(f"rank {transfer.source_rank} does not hold {transfer.source_tensor}", where=where)
    for box in transfer.boxes:
        (row, col), shape = _upright(box.source, box.shape, wanted)
        (to_row, to_col), _ = _upright(box.target, box.shape, wanted)
        rows = _elements(held.rows, row, shape[0]), _elements(wanted.rows, to_row, shape[0])
        cols = _elements(held.cols, col, shape[1]), _elements(wanted.cols, to_col, shape[1])
        if rows[0] != rows[1] or cols[0] != cols[1]:
            raise LayoutError(
                f"{box} takes rows {rows[0]} for {rows[1]}, columns {cols[0]} for {cols[1]}", where=where
            )


def _origin(transfer: Transfer, origins: _Origins) -> Holding | None:
    held = origins.get((transfer.source_rank, transfer.source_tensor), ())
    return next((h for h in held if all(layer in h.layers for layer in transfer.layers)), None)


def _elements(runs: Runs, local: int, length: int) -> list[tuple[int, int]]:
    """The stretches (at, length) of the parameter at [local, local + length) of a holder, in its order."""
    found: list[tuple[int, int]] = []
    for run in sorted(runs, key=lambda run: run.local):
        first, last = max(local, run.local), min(local + length, run.local + run.length)
        if first < last:
            at = run.at + first - run.local
            if found and sum(found[-1]) == at:
                found[-1] = (found[-1][0], found[-1][1] + last - first)
            else:
                found.append((at, last - first))
    return found


_Pair = tuple[int, int]


def _upright(start: _Pair, shape: _Pair, held: Holding) -> tuple[_Pair, _Pair]:
    """A vector is one row in a plan and one column in a layout."""
    if len(held.shape) == 1:
        return (start[1], start[0]), (shape[1], shape[0])
    return start, shape


def _edges(runs: Runs, stretches: list[tuple[int, int]]) -> list[int]:
    stretches = stretches + [(run.local, run.length) for run in runs]
    return sorted({edge for start, length in stretches for edge in (start, start + length)})


def _cells(edges: list[int], start: int, length: int) -> slice:
    return slice(edges.index(start), edges.index(start + length))
