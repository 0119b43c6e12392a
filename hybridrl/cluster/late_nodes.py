"""Nodes that may join Ray after a run has begun, and leave it again.

Each has a placement group of its own, which Ray fills when the node comes; until then an autoscaler sees it
as something to start a node for. No actor is placed on a node before the run has asked it for its network and
its GPUs.

Waits: come() waits for a node without end.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from hybridrl.cluster.network import networks
from hybridrl.cluster.placement import bundle, gpu_names, in_group

_AT_START_S = 3.0
"""How long a run that begins waits for Ray to place groups on nodes that are there."""

_NODE_ID = "ray.io/node-id"
"""Label that Ray gives to every node."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """What is known of a node that has come."""

    interface: str
    """Network interface that its workers talk over."""

    gpus: Sequence[str]
    """Its GPUs, as CUDA names them."""


class LateNodes:
    def __init__(self, groups: Mapping[int, PlacementGroup], num_gpus: int, timeout_s: float) -> None:
        """
        Args:
            groups: the placement group of each node, by the number of the node in the run.
            num_gpus: GPUs of a node.
            timeout_s: how long a node that has come may take to answer.
        """
        self._groups, self._num_gpus, self._timeout_s = groups, num_gpus, timeout_s
        self._filled = {node: group.ready() for node, group in groups.items()}
        self._there: dict[int, Arrived] = {}
        self._asking = asyncio.Lock()

    def __contains__(self, node: int) -> bool:
        """Whether a node may come late."""
        return node in self._groups

    def before(self, node: int) -> int:
        """Number of late nodes that precede a node in the run."""
        return sum(late < node for late in self._groups)

    @property
    def absent(self) -> list[int]:
        """Nodes that have not come."""
        return sorted(self._groups.keys() - self._there.keys())

    def is_there(self, node: int) -> bool:
        """Whether a node has come, and has not gone since. Ray places its group again when it is back."""
        if node in self._there and not self._is_filled(node):
            del self._there[node]
            self._filled[node] = self._groups[node].ready()
        return node in self._there

    def place(self, node: int) -> dict[str, Any]:
        """Ray's options for an actor on the node."""
        return in_group(self._groups[node], 0)

    def interface(self, node: int) -> str:
        """Network interface of a node that has come."""
        return self._there[node].interface

    def named(self, node: int, gpus: str) -> str:
        """CUDA's names of some GPUs of a node that has come.

        Args:
            gpus: their positions in the node, as "0,1".
        """
        return ",".join(self._there[node].gpus[int(gpu)] for gpu in gpus.split(",") if gpu)

    def look(self) -> None:
        """See which nodes are there when the run begins."""
        if not self._filled:
            return
        filled, _ = ray.wait([*self._filled.values()], num_returns=len(self._filled), timeout=_AT_START_S)
        for node, ready in self._filled.items():
            if ready in filled:
                self._there[node] = self._asked(node)

    async def come(self, node: int) -> None:
        """Wait until a node is there.

        Raises:
            ResourceError: it has no network interface with the address that Ray uses for it.
            RayError: it went away again.
        """
        await self._filled[node]
        async with self._asking:
            if node not in self._there:
                self._there[node] = await asyncio.to_thread(self._asked, node)

    def _is_filled(self, node: int) -> bool:
        return placement_group_table(self._groups[node])["state"] == "CREATED"

    def _asked(self, node: int) -> Arrived:
        (network,) = networks(self.place, [node], timeout_s=self._timeout_s)
        gpus = gpu_names(self.place, [node], self._num_gpus)[0] if self._num_gpus else []
        return Arrived(network.interface, gpus)


@dataclass(frozen=True, slots=True)
class LateNode:
    """One of them."""

    nodes: LateNodes
    number: int

    def is_there(self) -> bool:
        return self.nodes.is_there(self.number)

    async def come(self) -> None:
        await self.nodes.come(self.number)


NONE = LateNodes({}, 0, 0.0)
"""The late nodes of a run that begins with all of its nodes."""


@contextlib.contextmanager
def awaited(
    slots: Mapping[int, int], gpus_per_node: int, *, apart_from: Sequence[str], timeout_s: float
) -> Iterator[LateNodes]:
    """Ask Ray for slots on nodes that may come late; they are given back after the context.

    Args:
        slots: number of actors on each node, by the number of the node in the run.
        apart_from: Ray's ids of the other nodes of the run.
        timeout_s: as in LateNodes.
    """
    others = {_NODE_ID: f"!in({','.join(apart_from)})"}
    groups = {
        node: placement_group([bundle(count, gpus_per_node)], "STRICT_PACK", bundle_label_selector=[others])
        for node, count in slots.items()
    }
    try:
        late = LateNodes(groups, gpus_per_node, timeout_s)
        late.look()
        yield late
    finally:
        for group in groups.values():
            remove_placement_group(group)
