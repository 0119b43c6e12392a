"""Proves a plan without running it: every target element is written once, from a rank that holds it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Holding, Layout, common_range
from hybridrl.layout.runs import Runs, size
from hybridrl.reshard.plan import CopyBox, Job, Transfer


@dataclass(frozen=True, slots=True)
class Proof:
    """What a plan writes, in elements."""

    num_tensors: int
    """Target tensors, over all targets and ranks."""

    num_boxes: int
    elements: int
    bound: int
    """The least that any plan must write: all that the target ranks hold, replicas included."""

    imbalance: float
    """Most elements that a source rank sends, over the mean of the source ranks that hold any weight."""


def prove(job: Job, transfers: Sequence[Transfer], places: Collection[tuple[int, int]] = ()) -> Proof:
    """Check a plan of all ranks.

    Args:
        places: (target, rank) pairs to check; (): all.

    Raises:
        LayoutError: an element is written twice or never, or comes from a rank that does not hold it; the
            error names tensor and range.
    """
    inbox: dict[tuple[int, int, str], list[Transfer]] = {}
    for transfer in transfers:
        place = (transfer.target, transfer.target_rank, transfer.target_tensor)
        inbox.setdefault(place, []).append(transfer)
    origins: _Origins = {}
    for held in job.source.holdings:
        for rank in held.ranks:
            origins.setdefault((None, rank, held.tensor), []).append(held)
    _prove_passed_on(job, inbox, origins)
    num_tensors = bound = 0
    for target, layout in enumerate(job.targets):
        for wanted in layout.holdings:
            ranks = [rank for rank in wanted.ranks if not places or (target, rank) in places]
            for rank in ranks:
                where = f"target {target}, rank {rank}, {wanted.tensor}"
                mine = _take(inbox, (target, rank, wanted.tensor), wanted)
                _prove_tensor(wanted, mine, origins, where)
            num_tensors += len(ranks) * len(wanted.layers) * (1 if wanted.step else len(wanted.experts))
            bound += len(ranks) * _num_elements(wanted)
    if inbox:
        place, ((first, *_)) = next(iter(inbox.items()))
        layers = f"layers {first.layers.start} to {first.layers.stop - 1}"
        raise LayoutError(f"the plan writes {place}, {layers}, which no target holds")
    sent = _sent(job.source, transfers)
    num_boxes = sum(len(t.boxes) * len(t.layers) * len(t.experts) for t in transfers)
    elements = sum(transfer.elements for transfer in transfers)
    return Proof(num_tensors, num_boxes, elements, bound, max(sent) * len(sent) / sum(sent))


_Origins = dict[tuple[int | None, int, str], list[Holding]]
"""(target, or None for the source; rank; tensor) -> holdings, one per range of layers and of experts."""


def _prove_passed_on(job: Job, inbox: dict[tuple[int, int, str], list[Transfer]], origins: _Origins) -> None:
    """A target rank may forward only what it received from a source rank."""
    for transfer in (t for transfers in list(inbox.values()) for t in transfers if t.via):
        assert transfer.via is not None
        place = (*transfer.via, transfer.source_tensor)
        if place not in origins:
            held = job.targets[transfer.via[0]].holdings
            origins[place] = [h for h in held if transfer.via[1] in h.ranks and h.tensor == place[2]]
        for other in inbox.get(place, ()):
            if other.via and _overlap(transfer, other):
                raise LayoutError(f"{other.via} and {transfer.via} pass {transfer.param} on to each other")


def _overlap(given: Transfer, received: Transfer) -> bool:
    """Whether part of what is forwarded was received by `received`."""
    layers, experts = (
        common_range(given.layers, received.layers),
        common_range(given.experts, received.experts),
    )
    return bool(layers and experts) and any(
        all(
            a < b + n and b < a + m
            for a, b, m, n in zip(one.source, two.target, one.shape, two.shape, strict=True)
        )
        for one, two in product(given.boxes, received.boxes)
    )


def _take(
    inbox: dict[tuple[int, int, str], list[Transfer]], place: tuple[int, int, str], wanted: Holding
) -> list[Transfer]:
    """Remove the transfers to a place, for layers and experts of `wanted`, from the inbox and return them."""
    all_here = inbox.pop(place, [])
    mine = [t for t in all_here if _inside(t.layers, wanted.layers) and _inside(t.experts, wanted.experts)]
    if len(mine) < len(all_here):
        inbox[place] = [t for t in all_here if t not in mine]
    return mine


def _inside(part: range, whole: range) -> bool:
    return bool(part) and whole.start <= part.start and part.stop <= whole.stop


def _num_elements(held: Holding) -> int:
    return len(held.layers) * len(held.experts) * size(held.rows) * size(held.cols)


def _sent(source: Layout, transfers: Sequence[Transfer]) -> list[int]:
    """Number of elements that each source rank sends, for every rank that holds any."""
    sent = dict.fromkeys((rank for held in source.holdings for rank in held.ranks), 0)
    for transfer in transfers:
        if transfer.via is None:
            sent[transfer.source_rank] += transfer.elements
    return list(sent.values())


def _prove_tensor(wanted: Holding, transfers: list[Transfer], origins: _Origins, where: str) -> None:
    """Check one target tensor. Layers and experts that the same transfers fill are checked once."""
    for transfer in transfers:
        _prove_origin(wanted, transfer, origins, where)
    by_layer = {tuple(layer in transfer.layers for transfer in transfers) for layer in wanted.layers}
    by_expert = {tuple(expert in transfer.experts for transfer in transfers) for expert in wanted.experts}
    for on_layer, of_expert in product(by_layer, by_expert):
        boxes = [
            box
            for transfer, layer, expert in zip(transfers, on_layer, of_expert, strict=True)
            if layer and expert
            for box in transfer.boxes
        ]
        _prove_cover(wanted, boxes, where)


def _prove_cover(wanted: Holding, boxes: list[CopyBox], where: str) -> None:
    """Count how often each rectangle between neighbouring edges is written."""
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
    """Source and target of every box must be the same elements of the parameter."""
    held = _origin(transfer, origins)
    if held is None or held.param != wanted.param:
        raise LayoutError(f"rank {transfer.source_rank} does not hold {transfer.source_tensor}", where=where)
    for stack, end in ((transfer.source_stack, held), (transfer.target_stack, wanted)):
        if stack != (end.experts.start, end.step):
            raise LayoutError(f"{end.tensor} keeps its experts {(end.experts.start, end.step)}, not {stack}")
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
    target, rank = transfer.via or (None, transfer.source_rank)
    held = origins.get((target, rank, transfer.source_tensor), ())
    inside = (h for h in held if _inside(transfer.layers, h.layers) and _inside(transfer.experts, h.experts))
    return next(inside, None)


def _elements(runs: Runs, local: int, length: int) -> list[tuple[int, int]]:
    """(at, length) of the parts of the parameter at [local, local + length) of a holder, in its order."""
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
    """The pairs in the layout's orientation: a vector is one row in a plan and one column in a layout."""
    if len(held.shape) == 1:
        return (start[1], start[0]), (shape[1], shape[0])
    return start, shape


def _edges(runs: Runs, flat_ranges: list[tuple[int, int]]) -> list[int]:
    flat_ranges = flat_ranges + [(run.local, run.length) for run in runs]
    return sorted({edge for start, length in flat_ranges for edge in (start, start + length)})


def _cells(edges: list[int], start: int, length: int) -> slice:
    return slice(edges.index(start), edges.index(start + length))
