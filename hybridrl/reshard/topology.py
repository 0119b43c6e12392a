"""Which device every rank sits on. Devices are numbered over the whole job, node after node."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

Targets = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Topology:
    source: tuple[int, ...]
    """Device of each source rank."""

    targets: Targets
    """Device of each rank of each target."""

    node_size: int
    """Devices per node."""

    agents: tuple[int, ...] = ()
    """Devices of agents: processes without a source shard that write for the targets on their device.

    Agents follow the source ranks in the communicator.
    """

    @classmethod
    def colocated(cls, num_ranks: int, sizes: Sequence[int], node_size: int) -> "Topology":
        """Source rank i and target rank i sit on device i. Target ranks count through all targets."""
        return cls(tuple(range(num_ranks)), _partitioned(sizes, 0), node_size)

    @classmethod
    def separate(cls, num_ranks: int, sizes: Sequence[int], node_size: int) -> "Topology":
        """Targets start on the first node without a source rank, and each of their devices has an agent."""
        first = -(-num_ranks // node_size) * node_size
        agents = tuple(range(first, first + sum(sizes)))
        return cls(tuple(range(num_ranks)), _partitioned(sizes, first), node_size, agents)

    def with_targets(self, chosen: Sequence[int]) -> "Topology":
        """The same devices with these targets only, in this order."""
        return replace(self, targets=tuple(self.targets[target] for target in chosen))

    def with_agents_of(self, chosen: Sequence[int]) -> "Topology":
        """The same devices with the agents of these targets only, if targets have agents."""
        if not self.agents:
            return self
        return replace(self, agents=tuple(device for target in chosen for device in self.targets[target]))

    @cached_property
    def rank_on(self) -> dict[int, int]:
        """Device -> rank of the communicator; the first one if several share a device."""
        devices = (*self.source, *self.agents)
        return {device: rank for rank, device in reversed(list(enumerate(devices)))}

    @property
    def num_nodes(self) -> int:
        """Number of nodes with at least one rank."""
        of_targets = (device for devices in self.targets for device in devices)
        return len({self.node(device) for device in (*self.source, *self.agents, *of_targets)})

    def written_by(self, rank: int) -> list[tuple[int, int]]:
        """(target, target rank) of the target ranks on the device of a rank, which writes for them."""
        return [
            (target, target_rank)
            for target, devices in enumerate(self.targets)
            for target_rank, device in enumerate(devices)
            if self.rank_on.get(device) == rank
        ]

    def device(self, rank: int) -> int:
        """Device of a rank of the communicator."""
        return (*self.source, *self.agents)[rank]

    def node(self, device: int) -> int:
        return device // self.node_size


def _partitioned(sizes: Sequence[int], first: int) -> Targets:
    found = []
    for size in sizes:
        found.append(tuple(range(first, first + size)))
        first += size
    return tuple(found)
