"""Source parameters cut at every edge of every holding: who holds some of a cell holds all of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from typing import NamedTuple

from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.runs import Run, Runs, join


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Where holdings of a parameter overlap: one object for all layers and experts that are cut alike."""

    rows: Runs
    cols: Runs
    owners: tuple[int, ...]
    """Which of the holdings."""


class Cell(NamedTuple):
    """A part of one parameter, of one expert, on some layers and for some experts.

    Every rank of every holding has it.
    """

    layers: range
    experts: range
    patch: Patch
    holdings: tuple[Holding, ...]
    """In the order of the patch's owners."""


class Cells:
    """The cells of a source layout, made when they are asked for."""

    def __init__(self, source: Layout) -> None:
        self._groups: dict[str, dict[tuple[range, range], list[Holding]]] = {}
        for held in source.holdings:
            alike = self._groups.setdefault(held.param, {})
            alike.setdefault((held.layers, held.experts), []).append(held)
        self._made: dict[tuple[str, range, range], list[Cell]] = {}
        self._last: dict[str, tuple[_Maps, list[Patch]]] = {}

    def of_rank(self, rank: int) -> Iterator[tuple[str, Cell]]:
        """(parameter, cell) of all that a rank holds."""
        for param, groups in self._groups.items():
            for (layers, experts), holdings in groups.items():
                if _holds(holdings, rank):
                    for cell in self._cells(param, layers, experts):
                        if _holds(cell.holdings, rank):
                            yield param, cell

    def rendezvous(self, wanted: Holding) -> Iterator[Cell]:
        """Those on layers and of experts that a target holding has."""
        first, end = wanted.layers.start, wanted.layers.stop
        first_expert, end_expert = wanted.experts.start, wanted.experts.stop
        for layers, experts in self._groups.get(wanted.param, ()):
            if (
                layers.start < end
                and first < layers.stop
                and experts.start < end_expert
                and first_expert < experts.stop
            ):
                yield from self._cells(wanted.param, layers, experts)

    def _cells(self, param: str, layers: range, experts: range) -> list[Cell]:
        key = (param, layers, experts)
        if key not in self._made:
            holdings = self._groups[param][layers, experts]
            self._made[key] = [
                Cell(layers, experts, patch, tuple([holdings[i] for i in patch.owners]))
                for patch in self._patches(param, holdings)
            ]
        return self._made[key]

    def _patches(self, param: str, holdings: list[Holding]) -> list[Patch]:
        """The same objects as long as the maps do not change; from stage to stage they seldom do."""
        maps = tuple([(held.rows, held.cols) for held in holdings])
        last = self._last.get(param)
        if last is None or last[0] != maps:
            last = self._last[param] = (maps, [Patch(*found) for found in _cut(maps)])
        return last[1]


_Maps = tuple[tuple[Runs, Runs], ...]


def _holds(holdings: list[Holding] | tuple[Holding, ...], rank: int) -> bool:
    for held in holdings:
        if rank in held.ranks:
            return True
    return False


@lru_cache(maxsize=1 << 12)
def _cut(maps: _Maps) -> list[tuple[Runs, Runs, tuple[int, ...]]]:
    """(rows, columns, who covers them) of all cells between the edges of the maps; local is canonical."""
    row_maps = _by_owners([rows for rows, _ in maps])
    col_maps = _by_owners([cols for _, cols in maps])
    return [
        (rows, cols, tuple(sorted(row_owners & col_owners)))
        for (row_owners, rows), (col_owners, cols) in product(row_maps.items(), col_maps.items())
        if row_owners & col_owners
    ]


def _by_owners(maps: list[Runs]) -> dict[frozenset[int], Runs]:
    """Stretches of a dimension that the same maps cover, by the indices of those."""
    edges = sorted({edge for runs in maps for run in runs for edge in (run.at, run.at + run.length)})
    index = {edge: i for i, edge in enumerate(edges)}
    owners: list[set[int]] = [set() for _ in edges]
    for i, runs in enumerate(maps):
        for run in runs:
            for j in range(index[run.at], index[run.at + run.length]):
                owners[j].add(i)
    flat_ranges: dict[frozenset[int], list[Run]] = {}
    for (start, stop), names in zip(pairwise(edges), owners, strict=False):
        flat_ranges.setdefault(frozenset(names), []).append(Run(start, stop - start, start))
    return {names: join(runs) for names, runs in flat_ranges.items() if names}
