"""Plans who copies what: the intersection of a source layout with target layouts, as data.

A transfer is planned once for all layers and experts of a parameter. Every rank plans alone. The rules read
only the layouts and the topology, so all ranks get the same plan; equal digests prove that they had the same
input. Planning touches no tensor and sends no message.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import gcd
from typing import NamedTuple

import numpy as np

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Holding, Layout, common_range
from hybridrl.layout.runs import Runs
from hybridrl.reshard.cells import Cell, Cells
from hybridrl.reshard.job import CopyBox, Job, Stack, Transfer
from hybridrl.reshard.once import once_each
from hybridrl.reshard.regions import Regions, Wanted
from hybridrl.reshard.shares import Part, Shares

__all__ = ["CopyBox", "Job", "Stack", "Transfer", "plan"]


def plan(
    job: Job, *, source_rank: int | None = None, target: int | None = None, target_rank: int | None = None
) -> list[Transfer]:
    """All transfers of a job, or those of one rank. Together they write every element of every target once.

    Args:
        source_rank: plan only what this source rank copies.
        target, target_rank: plan only what is written into this target, and on this rank of it.

    Returns:
        The transfers, ordered by target, target rank and model table; the order is the same on every rank.

    Raises:
        LayoutError: all ranks that held some weight are lost.
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


@dataclass(frozen=True, slots=True, eq=False)
class _DemandTable:
    """The target ranks that need part of a cell, ordered by target, then by rank."""

    which_T: np.ndarray
    """Index into the list of wanted holdings."""

    target_T: np.ndarray
    rank_T: np.ndarray
    size_T: np.ndarray
    device_T: np.ndarray

    def place(self, demand: int) -> tuple[int, int]:
        """(target, target rank)"""
        return int(self.target_T[demand]), int(self.rank_T[demand])


@dataclass(frozen=True, slots=True, eq=False)
class _Holders:
    """The source ranks that have a cell, in order."""

    rank_H: np.ndarray
    which_H: np.ndarray
    """Index into the cell's holdings."""


class _Sender(NamedTuple):
    """The source rank that copies: from its own tensors, or from those of a target rank on its device."""

    rank: int
    held: Holding
    which: int | Wanted
    """Index into the cell's holdings; or what the target rank holds."""

    via: tuple[int, int] | None = None


class _CellDemand(NamedTuple):
    """Which target holdings and ranks need part of a cell."""

    wanted: list[Wanted]
    """The holdings that `which_T` of the table counts."""

    table: _DemandTable


class _Demands(NamedTuple):
    wanted: list[Wanted]
    table: _DemandTable
    holdings: tuple[Holding, ...]
    holders: _Holders
    shares: Shares

    def holder(self, index: int) -> _Sender:
        which = int(self.holders.which_H[index])
        return _Sender(int(self.holders.rank_H[index]), self.holdings[which], which)


class _Planner:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._cells = Cells(job.source)
        kinds = list(dict.fromkeys(job.targets))
        self._targets = [[i for i, layout in enumerate(job.targets) if layout == kind] for kind in kinds]
        self._kind = {i: kind for kind, members in enumerate(self._targets) for i in members}
        self._held_by = list(once_each(kinds) if job.once_per_node else _wanted(kinds))
        self._wanted: dict[str, list[Wanted]] = {}
        self._common: dict[str, range] = {}
        """Parameter -> the layers on which every target holding of it lies."""
        for wanted in chain.from_iterable(self._held_by):
            held = wanted.held
            self._wanted.setdefault(held.param, []).append(wanted)
            self._common[held.param] = common_range(self._common.get(held.param, held.layers), held.layers)
        self._regions = Regions()
        self._cell_demands: dict[tuple[object, ...], _CellDemand] = {}
        self._tables: dict[tuple[tuple[int, range, int], ...], _DemandTable] = {}
        self._found: dict[tuple[_DemandTable, int, int, int], int] = {}
        self._holders: dict[tuple[range, ...], _Holders] = {}
        self._shared: dict[tuple[_Holders, _DemandTable, tuple[int, ...]], Shares] = {}
        self._device_S = self._device_D = None
        if job.topology is not None:
            self._device_S = np.array(job.topology.source, np.int64)
            self._device_D = np.array([d for devices in job.topology.targets for d in devices], np.int64)
        self._first_D = np.cumsum([0, *(layout.world_size for layout in job.targets)])

    def of_target(self, target: int, rank: int) -> Iterator[_Keyed]:
        for wanted in self._held_by[self._kind[target]]:
            held = wanted.held
            if rank not in held.ranks:
                continue
            for cell in self._cells.overlapping(held):
                if self._regions.elements(cell, wanted):
                    demands = self._demands(held.param, cell)
                    demand = self._find(demands, wanted, (target, rank))
                    for holder, part in demands.shares.of_demand(demand):
                        yield from self._transfer(cell, demands.holder(holder), wanted, (target, rank), part)
                    for other, part in demands.shares.forwarded_to(demand):
                        sender = self._neighbour(demands, other)
                        yield from self._transfer(cell, sender, wanted, (target, rank), part)

    def of_source(self, rank: int) -> Iterator[_Keyed]:
        if rank in self._job.lost:
            return
        yield from self._passed_on(rank)
        for param, cell in self._cells.of_rank(rank):
            demands = self._demands(param, cell)
            for holder in np.flatnonzero(demands.holders.rank_H == rank).tolist() if demands.wanted else ():
                for demand, part in demands.shares.of_holder(holder):
                    wanted = demands.wanted[demands.table.which_T[demand]]
                    place = demands.table.place(demand)
                    yield from self._transfer(cell, demands.holder(holder), wanted, place, part)

    def _passed_on(self, rank: int) -> Iterator[_Keyed]:
        """What a rank copies from the targets on its device to other targets on its node."""
        topology = self._job.topology
        if topology is None or not self._job.once_per_node:
            return
        for place in topology.written_by(rank):
            for wanted in self._held_by[self._kind[place[0]]]:
                if place[1] in wanted.held.ranks:
                    yield from self._passed_on_of(wanted, place)

    def _passed_on_of(self, wanted: Wanted, place: tuple[int, int]) -> Iterator[_Keyed]:
        for cell in self._cells.overlapping(wanted.held):
            if self._regions.elements(cell, wanted):
                demands = self._demands(wanted.held.param, cell)
                mine = self._find(demands, wanted, place)
                sender = self._neighbour(demands, mine)
                for other, part in demands.shares.passed_on(mine):
                    theirs = demands.wanted[demands.table.which_T[other]]
                    yield from self._transfer(cell, sender, theirs, demands.table.place(other), part)

    def _neighbour(self, demands: _Demands, demand: int) -> _Sender:
        """A target rank that passes on what it gets."""
        topology, place = self._job.topology, demands.table.place(demand)
        assert topology is not None
        wanted = demands.wanted[demands.table.which_T[demand]]
        rank = topology.rank_on[topology.targets[place[0]][place[1]]]
        return _Sender(rank, wanted.held, wanted, place)

    def _demands(self, param: str, cell: Cell) -> _Demands:
        """Who holds and who needs a cell. Parameters with the same sharding share the answer."""
        (wanted, table), holders = self._cell_demand(param, cell), self._who_holds(cell)
        same = tuple([w.same for w in wanted]) if self._job.once_per_node else ()
        key = (holders, table, same)
        if key not in self._shared:
            rank_H = holders.rank_H
            device_H = rank_H if self._device_S is None else self._device_S[rank_H]
            node_size = self._job.topology and self._job.topology.node_size
            alike_T = np.array(same, np.int64)[table.which_T] if self._job.once_per_node else None
            self._shared[key] = Shares(device_H, table.device_T, table.size_T, node_size, alike_T)
        return _Demands(wanted, table, cell.holdings, holders, self._shared[key])

    def _cell_demand(self, param: str, cell: Cell) -> _CellDemand:
        """Who needs a cell. Cells that differ in layers share the answer if all targets need these layers."""
        wanted = self._wanted.get(param, ())
        common = self._common.get(param, cell.layers)
        spans = common.start <= cell.layers.start and cell.layers.stop <= common.stop
        key = (cell.patch, cell.experts, None if spans else cell.layers)
        if key not in self._cell_demands:
            sizes = [(w, elements) for w in wanted if (elements := self._regions.elements(cell, w))]
            unit = gcd(*(elements for _, elements in sizes))
            table_key = tuple([(w.kind, w.held.ranks, elements // unit) for w, elements in sizes])
            if table_key not in self._tables:
                self._tables[table_key] = self._demand_table(table_key)
            self._cell_demands[key] = _CellDemand([w for w, _ in sizes], self._tables[table_key])
        return self._cell_demands[key]

    def _transfer(
        self, cell: Cell, sender: _Sender, wanted: Wanted, place: tuple[int, int], part: Part
    ) -> Iterator[_Keyed]:
        """The transfer of a part of a cell; none if the part is smaller than a row or a layer."""
        held, theirs = sender.held, wanted.held
        by_rows, boxes = self._regions.region(cell, sender.which, wanted, part)
        layers, experts = common_range(cell.layers, theirs.layers), common_range(cell.experts, theirs.experts)
        if not by_rows:
            layers = layers[slice(*part.bounds(len(layers)))]
        if not (layers and boxes):
            return
        transfer = Transfer(
            param=theirs.param,
            source_rank=sender.rank,
            source_tensor=held.tensor,
            target=place[0],
            target_rank=place[1],
            target_tensor=theirs.tensor,
            layers=layers,
            boxes=boxes,
            experts=experts,
            source_stack=Stack(held.experts.start, held.step),
            target_stack=Stack(theirs.experts.start, theirs.step),
            via=sender.via,
            fp8=theirs.fp8,
        )
        yield (*place, wanted.index, layers.start, experts.start, sender.rank, *boxes[0].target), transfer

    def _find(self, demands: _Demands, wanted: Wanted, place: tuple[int, int]) -> int:
        """Index of a target rank in the demand table."""
        table, which = demands.table, demands.wanted.index(wanted)
        key = (table, which, *place)
        if key not in self._found:
            alike = (table.target_T == place[0]) & (table.rank_T == place[1]) & (table.which_T == which)
            self._found[key] = int(np.flatnonzero(alike)[0])
        return self._found[key]

    def _who_holds(self, cell: Cell) -> _Holders:
        key = tuple([held.ranks for held in cell.holdings])
        if key not in self._holders:
            places = sorted((rank, i) for i, ranks in enumerate(key) for rank in ranks)
            left = [place for place in places if place[0] not in self._job.lost]
            self._holders[key] = _Holders(*np.array(left, np.int64).T)
        return self._holders[key]

    def _demand_table(self, wanted: tuple[tuple[int, range, int], ...]) -> _DemandTable:
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
        return _DemandTable(which_T[order], target_T[order], rank_T[order], size_T[order], device_T[order])


def _wanted(kinds: Sequence[Layout]) -> Iterator[list[Wanted]]:
    """What each kind of target layout holds."""
    alike: dict[tuple[Runs, Runs, bool], int] = {}
    for kind, layout in enumerate(kinds):
        yield [
            Wanted(kind, index, alike.setdefault((held.rows, held.cols, held.fp8), len(alike)), held)
            for index, held in enumerate(layout.holdings)
        ]


@lru_cache(maxsize=4)
def _planner(job: Job) -> _Planner:
    if job.lost:
        _refuse_unheld(job)
    return _Planner(job)


def _refuse_unheld(job: Job) -> None:
    """
    Raises:
        LayoutError: lost ranks were the only holders of some weight.
    """
    # A source rank plans only what it holds itself, so its own plan would not show the gap.
    cells = Cells(job.source)
    for param, cell in (held for rank in sorted(job.lost) for held in cells.of_rank(rank)):
        holders = sorted({rank for held in cell.holdings for rank in held.ranks})
        if job.lost.issuperset(holders):
            layers = f", layers {cell.layers.start} to {cell.layers.stop - 1}" if "*" in param else ""
            raise LayoutError(
                f"no rank is left that holds {param}{layers}",
                where=f"lost: trainer ranks {holders}",
                fix="resume from the last checkpoint",
            )
