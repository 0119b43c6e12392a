"""How little a swap can move, counted from what the layouts say that ranks hold. Knows nothing of planners.

A device must receive what its engine rank needs and its trainer rank does not hold, each element once.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np

from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.runs import Runs

Held = dict[str, list[Holding]]
"""Canonical parameter -> what one rank holds of it."""


def held_by_rank(layout: Layout) -> list[Held]:
    """By rank."""
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
    edges = [
        np.unique([edge for pair in (*wanted, *have) for r in pair[dim] for edge in (r.at, r.at + r.length)])
        for dim in (0, 1)
    ]
    both = _painted(wanted, edges) & _painted(have, edges)
    heights, widths = (np.diff(found) for found in edges)
    return int(heights @ both @ widths) if both.size else 0


def _painted(rectangles: _Rectangles, edges: list[np.ndarray]) -> np.ndarray:
    """bool [row cells, column cells]"""
    grid = np.zeros([max(0, len(found) - 1) for found in edges], bool)
    for rows, cols in rectangles:
        for row, col in product(rows, cols):
            r, c = (np.searchsorted(e, (x.at, x.at + x.length)) for e, x in zip(edges, (row, col)))
            grid[slice(*r), slice(*c)] = True
    return grid
