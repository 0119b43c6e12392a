"""Splits a rank's transfers into those it writes itself and those it sends to a rank that maps the target."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from hybridrl.errors import SwapError
from hybridrl.reshard.plan import Job, Transfer, plan
from hybridrl.reshard.topology import Topology

Reach = Literal["device", "node"]
"""Which engine ranks' memory a rank can map: those on its device, or all on its node."""


@dataclass(frozen=True, slots=True)
class Routes:
    direct: list[Transfer] = field(default_factory=list)
    """Transfers into memory that this rank maps."""

    sends: dict[int, list[Transfer]] = field(default_factory=dict)
    """Receiving rank -> the transfers that it writes for this rank, in the receiver's order."""

    receives: dict[int, list[Transfer]] = field(default_factory=dict)
    """Sending rank -> the transfers that this rank writes for it."""

    passed_on: list[Transfer] = field(default_factory=list)
    """Transfers from one engine's memory into another's, after all others."""

    forwards: dict[int, list[Transfer]] = field(default_factory=dict)
    """Receiving rank -> the transfers from the engines on this rank's device that it writes for this rank,
    because this rank cannot map their targets; after all others."""

    forwarded: dict[int, list[Transfer]] = field(default_factory=dict)
    """Sending rank -> the transfers from the engines on its device that this rank writes for it."""

    def map(self, change: Callable[[list[Transfer]], list[Transfer]]) -> "Routes":
        """These routes with `change` applied to every list. A peer whose list becomes empty stays."""
        sends, receives, forwards, forwarded = (
            {peer: change(transfers) for peer, transfers in way.items()}
            for way in (self.sends, self.receives, self.forwards, self.forwarded)
        )
        return Routes(change(self.direct), sends, receives, change(self.passed_on), forwards, forwarded)


def routes(job: Job, rank: int, reach: Reach) -> Routes:
    """The transfers of a job that involve one rank.

    Args:
        job: has a topology.
        rank: a rank of the communicator, which is a source rank or an agent.

    Raises:
        SwapError: an engine rank is out of reach, and no rank sits on its device.
    """
    assert job.topology is not None
    found, reachable = Routes(), _Reachability(job.topology, reach, job.lost)
    for transfer in plan(job, source_rank=rank):
        if reachable.reaches(transfer.source_rank, transfer):
            (found.passed_on if transfer.via else found.direct).append(transfer)
        else:
            way = found.forwards if transfer.via else found.sends
            way.setdefault(reachable.writer(transfer), []).append(transfer)
    for target, target_rank in job.topology.written_by(rank):
        for transfer in plan(job, target=target, target_rank=target_rank):
            if not reachable.reaches(transfer.source_rank, transfer):
                way = found.forwarded if transfer.via else found.receives
                way.setdefault(transfer.source_rank, []).append(transfer)
    return found


@dataclass(frozen=True, slots=True)
class _Reachability:
    topology: Topology
    reach: Reach
    lost: frozenset[int]

    def reaches(self, rank: int, transfer: Transfer) -> bool:
        here, there = self.topology.device(rank), self._device(transfer)
        if self.reach == "device":
            return here == there
        return self.topology.node(here) == self.topology.node(there)

    def writer(self, transfer: Transfer) -> int:
        device = self._device(transfer)
        rank = self.topology.rank_on.get(device)
        if rank is None or rank in self.lost:
            raise SwapError(
                f"no rank is left on device {device} to write for engine {transfer.target}, rank "
                f"{transfer.target_rank}, and trainer rank {transfer.source_rank} cannot reach it",
                fix="put an agent on that device",
            )
        return rank

    def _device(self, transfer: Transfer) -> int:
        return self.topology.targets[transfer.target][transfer.target_rank]
