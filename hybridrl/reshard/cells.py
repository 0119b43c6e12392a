"""Splits source parameters into cells, at every edge of every holding.

A rank that holds part of a cell holds all of it, so a cell is the unit for which senders are chosen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from typing import NamedTuple

from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.runs import Run, Runs, join


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """The rows and columns that some holdings of a parameter share.

    All layers and experts with the same sharding use the same object.
    """

    rows: Runs
    cols: Runs
    owners: tuple[int, ...]
    """Indices of those holdings."""


class Cell(NamedTuple):
    """A patch of one parameter on a range of layers and experts. Every rank of its holdings has all of it."""

    layers: range
    experts: range
    patch: Patch
    holdings: tuple[Holding, ...]
    """The holdings that contain the cell, in the order of the patch's owners."""


class Cells:
    """The cells of a source layout, built on demand."""

    def __init__(self, source: Layout) -> None:
        self._groups: dict[str, dict[tuple[range, range], list[Holding]]] = {}
        for held in source.holdings:
            alike = self._groups.setdefault(held.param, {})
            alike.setdefault((held.layers, held.experts), []).append(held)
        self._made: dict[tuple[str, range, range], list[Cell]] = {}
        self._last: dict[str, tuple[_Maps, list[Patch]]] = {}

    def of_rank(self, rank: int) -> Iterator[tuple[str, Cell]]:
        """(parameter, cell) of everything that a rank holds."""
        for param, groups in self._groups.items():
            for (layers, experts), holdings in groups.items():
                if _holds(holdings, rank):
                    for cell in self._cells(param, layers, experts):
                        if _holds(cell.holdings, rank):
                            yield param, cell

    def overlapping(self, wanted: Holding) -> Iterator[Cell]:
        """The cells of the parameter that share a layer and an expert with a target holding."""
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

    def cuts(self, param: str) -> dict[int, tuple[list[Patch], list[tuple[range, range]]]]:
        """Every way in which a parameter is cut: its patches, and the layers and experts that are cut so."""
        found: dict[int, tuple[list[Patch], list[tuple[range, range]]]] = {}
        for place, holdings in self._groups.get(param, {}).items():
            patches = self._patches(param, holdings)
            found.setdefault(id(patches), (patches, []))[1].append(place)
        return found

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
        """The patches of some holdings; the same objects as before while the maps do not change."""
        maps = tuple([(held.rows, held.cols) for held in holdings])
        last = self._last.get(param)
        if last is None or last[0] != maps:  # From one pipeline stage to the next they seldom change.
            last = self._last[param] = (maps, [Patch(*found) for found in split_maps(maps)])
        return last[1]


_Maps = tuple[tuple[Runs, Runs], ...]


def _holds(holdings: list[Holding] | tuple[Holding, ...], rank: int) -> bool:
    for held in holdings:
        if rank in held.ranks:
            return True
    return False


@lru_cache(maxsize=1 << 12)
def split_maps(maps: _Maps) -> list[tuple[Runs, Runs, tuple[int, ...]]]:
    """(rows, columns, indices of the maps that cover them) of every patch; `local` of a run equals `at`."""
    row_maps = _by_owners([rows for rows, _ in maps])
    col_maps = _by_owners([cols for _, cols in maps])
    return [
        (rows, cols, tuple(sorted(row_owners & col_owners)))
        for (row_owners, rows), (col_owners, cols) in product(row_maps.items(), col_maps.items())
        if row_owners & col_owners
    ]


def _by_owners(maps: list[Runs]) -> dict[frozenset[int], Runs]:
    """Indices of maps -> the parts of the dimension that exactly these maps cover."""
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
