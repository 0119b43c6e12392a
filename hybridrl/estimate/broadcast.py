"""The least bytes of a swap that must cross the network: every byte that a node lacks enters it once.

It is computed from the layouts alone, as a union of rectangles, so that it does not share an error with the
planner.
"""

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np

from hybridrl.layout.base import Holding, Layout
from hybridrl.reshard.plan import Job

_Span = tuple[int, int]
"""First and last + 1."""

_Block = tuple[_Span, _Span, _Span, _Span]
"""Layers, experts, rows and columns of a parameter."""


def broadcast_bound(job: Job, *, fp8: bool | None = None) -> int:
    """Elements that at least must reach nodes from other nodes.

    Args:
        job: has a topology.
        fp8: count only what engines have in FP8, or only what they have not; None: count both.
    """
    topology = job.topology
    assert topology is not None
    wanted: dict[int, set[tuple[Layout, int]]] = {}
    for layout, devices in zip(job.targets, topology.targets, strict=True):
        for rank, device in enumerate(devices):
            wanted.setdefault(topology.node(device), set()).add((layout, rank))
    held: dict[int, set[tuple[Layout, int]]] = {}
    for rank, device in enumerate(topology.source):
        held.setdefault(topology.node(device), set()).add((job.source, rank))
    found: dict[tuple[frozenset[tuple[Layout, int]], frozenset[tuple[Layout, int]]], int] = {}
    total = 0
    for node, ranks in wanted.items():  # nodes with the same ranks are counted once
        key = frozenset(ranks), frozenset(held.get(node, ()))
        if key not in found:
            found[key] = _lacking(_blocks(key[0], fp8), _blocks(key[1]))
        total += found[key]
    return total


def _blocks(ranks: Iterable[tuple[Layout, int]], fp8: bool | None = None) -> dict[str, set[_Block]]:
    """Parameter -> what these ranks hold of it."""
    found: dict[str, set[_Block]] = {}
    for layout, rank in ranks:
        for held in layout.holdings:
            if rank in held.ranks and (fp8 is None or held.fp8 == fp8):
                found.setdefault(held.param, set()).update(_of(held))
    return found


def _of(held: Holding) -> Iterable[_Block]:
    axes = _spans(held.layers), _spans(held.experts), held.rows, held.cols
    for layers, experts, row, col in product(*axes):
        yield layers, experts, (row.at, row.at + row.length), (col.at, col.at + col.length)


def _spans(numbers: range) -> list[_Span]:
    if numbers.step == 1:
        return [(numbers.start, numbers.stop)]
    return [(number, number + 1) for number in numbers]


def _lacking(wanted: dict[str, set[_Block]], held: dict[str, set[_Block]]) -> int:
    """Elements of the union of `wanted` that are not in `held`."""
    return sum(_difference(sorted(blocks), sorted(held.get(param, ()))) for param, blocks in wanted.items())


def _difference(wanted: Sequence[_Block], held: Sequence[_Block]) -> int:
    if not wanted:  # all that these ranks have of it is padding
        return 0
    edges = [sorted({edge for block in (*wanted, *held) for edge in block[dim]}) for dim in range(4)]
    place = [{edge: i for i, edge in enumerate(of_dim)} for of_dim in edges]
    missing = np.zeros([len(of_dim) - 1 for of_dim in edges], bool)
    for blocks, value in ((wanted, True), (held, False)):
        for block in blocks:
            at = [slice(place[dim][start], place[dim][stop]) for dim, (start, stop) in enumerate(block)]
            missing[tuple(at)] = value
    sizes = [np.diff(np.array(of_dim, np.int64)) for of_dim in edges]
    return int(np.einsum("lerc,l,e,r,c->", missing.astype(np.int64), *sizes))
