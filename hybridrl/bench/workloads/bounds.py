"""How little a swap can move, counted from what the layouts say that ranks hold. Knows nothing of planners.

A device must receive what its engine rank needs and its trainer rank does not hold, each element once. Who
holds an element may send it, so a rank has to send much where few hold what many need: there the most loaded
sender has a lower bound too.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack

from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.runs import Runs
from hybridrl.reshard.topology import Topology

Held = dict[str, list[Holding]]
"""Canonical parameter -> what one rank holds of it."""


def held_by_rank(layout: Layout) -> list[Held]:
    """What each rank holds."""
    found: list[Held] = [{} for _ in range(layout.world_size)]
    for held in layout.holdings:
        for rank in held.ranks:
            found[rank].setdefault(held.param, []).append(held)
    return found


def needed(need: Held) -> int:
    """Elements that a rank holds."""
    return sum(_count(h.layers, h.experts) * _area(_rectangles([h])) for held in need.values() for h in held)


def missing(need: Held, have: Held) -> int:
    """Elements of `need` that `have` does not have: the least that its device must receive."""
    return needed(need) - sum(
        _present(want, have.get(param, ())) for param, wanted in need.items() for want in wanted
    )


Demand = dict[frozenset[int], int]
"""Who holds some elements -> how often these must cross to a device that does not hold them, all together."""


def demand(
    source: Layout, engine: Layout, topology: Topology, *, nearest: bool = False, fp8: bool | None = None
) -> Demand:
    """
    Args:
        engine: all targets are like it.
        nearest: what a node has is not sent to it: only holders on the receiver's node count, if it has any.
        fp8: count only what engines have in FP8, or only what they have not; None: count both.
    """
    wanted: dict[str, list[Holding]] = {}
    for want in (held for held in engine.holdings if fp8 is None or held.fp8 == fp8):
        wanted.setdefault(want.param, []).append(want)
    found: Counter[frozenset[int]] = Counter()
    for held in _alike(source.holdings):
        for want in wanted.get(held[0].param, ()):
            count = _count(*(_common(a, b) for a, b in _extents(held[0], want)))
            if count:
                for owners, area in _owned(_rectangles([want]), _rectangles(held)):
                    ranks = frozenset(rank for i in owners for rank in held[i].ranks)
                    for senders, times in _senders(ranks, want.ranks, topology, nearest=nearest).items():
                        found[senders] += count * area * times
    return dict(found)


def _senders(holders: frozenset[int], wanting: range, topology: Topology, *, nearest: bool) -> Demand:
    """Who may send -> to how many devices of `wanting`, in all targets."""
    by_node: dict[int, set[int]] = {}
    for rank in holders:
        by_node.setdefault(topology.node(topology.source[rank]), set()).add(rank)
    here = {topology.source[rank] for rank in holders}
    away = [devices[r] for devices in topology.targets for r in wanting if devices[r] not in here]
    if not nearest:
        return {holders: len(away)} if away else {}
    return Counter(frozenset(by_node.get(topology.node(device), holders)) for device in away)


def least_peak(demand: Mapping[frozenset[int], float]) -> float:
    """Elements, or bytes, that the most loaded sender sends at least, however the holders share the demand.

    A linear program: shares add up to each demand, and no rank's add up to more than the peak.
    """
    owners = [(place, rank) for place, ranks in enumerate(demand) for rank in sorted(ranks)]
    if not owners:
        return 0.0
    places, ranks = np.array(owners).T
    shares, one = np.arange(len(owners)), np.ones(len(owners))
    _, senders = np.unique(ranks, return_inverse=True)
    met = csr_array((one, (places, shares)), (len(demand), len(owners) + 1))
    num_senders = int(senders.max()) + 1
    sent = csr_array((one, (senders, shares)), (num_senders, len(owners)))
    below = hstack([sent, csr_array(-np.ones((num_senders, 1)))])
    amounts = np.array(list(demand.values()), float)
    cost = np.append(np.zeros(len(owners)), 1.0)
    solved = linprog(cost, below, np.zeros(num_senders), met, amounts / amounts.sum())
    return float(solved.fun * amounts.sum())


def _alike(holdings: Sequence[Holding]) -> Iterator[list[Holding]]:
    """Holdings of a parameter with the same layers and experts."""
    groups: dict[tuple[str, range, range], list[Holding]] = {}
    for held in holdings:
        groups.setdefault((held.param, held.layers, held.experts), []).append(held)
    yield from groups.values()


def _extents(a: Holding, b: Holding) -> tuple[tuple[range, range], tuple[range, range]]:
    return (a.layers, b.layers), (a.experts, b.experts)


@lru_cache(maxsize=1 << 16)
def _owned(wanted: "_Rectangles", have: "_Rectangles") -> list[tuple[tuple[int, ...], int]]:
    """(which of `have` cover some wanted elements, how many these are)"""
    edges = _edges(wanted, have)
    want = _painted(wanted, edges)
    if not want.size:
        return []
    heights, widths = (np.diff(found) for found in edges)
    area = (want * heights[:, None] * widths).ravel()
    covers = np.stack([_painted((one,), edges).ravel() for one in have])[:, area > 0]
    kinds, which = np.unique(covers, axis=1, return_inverse=True)
    sizes = np.zeros(kinds.shape[1], np.int64)
    np.add.at(sizes, which.ravel(), area[area > 0])
    return [(tuple(np.flatnonzero(kind).tolist()), int(size)) for kind, size in zip(kinds.T, sizes)]


def _present(want: Holding, have: Sequence[Holding]) -> int:
    """Elements of one tensor, over its layers and experts, that some of `have` covers."""
    groups: dict[tuple[range, range], list[Holding]] = {}
    for held in have:
        groups.setdefault((held.layers, held.experts), []).append(held)
    return sum(
        _count(_common(layers, want.layers), _common(experts, want.experts))
        * _covered(_rectangles([want]), _rectangles(held))
        for (layers, experts), held in groups.items()
    )


def _count(layers: range, experts: range) -> int:
    return len(layers) * len(experts)


def _common(a: range, b: range) -> range:
    return range(max(a.start, b.start), min(a.stop, b.stop))


_Rectangles = tuple[tuple[Runs, Runs], ...]


def _rectangles(holdings: Sequence[Holding]) -> _Rectangles:
    return tuple((held.rows, held.cols) for held in holdings)


def _area(rectangles: _Rectangles) -> int:
    return _covered(rectangles, rectangles)


@lru_cache(maxsize=1 << 16)
def _covered(wanted: _Rectangles, have: _Rectangles) -> int:
    """Elements in both, each once, on a grid of all edges."""
    edges = _edges(wanted, have)
    both = _painted(wanted, edges) & _painted(have, edges)
    heights, widths = (np.diff(found) for found in edges)
    return int(heights @ both @ widths) if both.size else 0


def _edges(wanted: _Rectangles, have: _Rectangles) -> list[np.ndarray]:
    return [
        np.unique([edge for pair in (*wanted, *have) for r in pair[dim] for edge in (r.at, r.at + r.length)])
        for dim in (0, 1)
    ]


def _painted(rectangles: _Rectangles, edges: list[np.ndarray]) -> np.ndarray:
    """bool [row cells, column cells]"""
    grid = np.zeros([max(0, len(found) - 1) for found in edges], bool)
    for rows, cols in rectangles:
        for row, col in product(rows, cols):
            r, c = (np.searchsorted(e, (x.at, x.at + x.length)) for e, x in zip(edges, (row, col)))
            grid[slice(*r), slice(*c)] = True
    return grid
