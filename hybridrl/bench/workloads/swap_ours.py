"""hybridrl between two Megatron layouts on the same gloo processes, as contenders beside _reshard_peers."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.distributed as dist

from hybridrl.bench.workloads.swap_peers import Swap
from hybridrl.reshard.exchange import Carrier, Exchange, Side
from hybridrl.reshard.execute import best
from hybridrl.reshard.plan import Job, Transfer
from hybridrl.reshard.routes import routes
from hybridrl.reshard.swap import SwapWriter
from hybridrl.reshard.table import Target, tabulate
from hybridrl.reshard.topology import Topology


class OverGloo:
    """What stays on a rank is copied there, the rest is exchanged."""

    def __init__(self, swap: Swap, on_host: Carrier) -> None:
        """
        Args:
            on_host: "messages" takes every rank for another host.
        """
        self._swap = swap
        self._on_host: Carrier = on_host
        self._targets: dict[Target, torch.Tensor] = {
            (0, swap.rank, name): tensor for name, tensor in swap.wanted.items()
        }

    def prepare(self) -> None:
        found = routes(_job(self._swap), self._swap.rank, "device")
        table = tabulate(found.direct)
        self._sources = [self._swap.held[name] for name in table.sources]
        self._local = best("cpu").prepare(
            table, self._sources, [self._targets[name] for name in table.targets]
        )
        group = cast(dist.ProcessGroup, dist.group.WORLD)
        self._exchange = Exchange(
            group,
            self._halves(found.sends),
            self._halves(found.receives),
            self._targets,
            on_host=self._on_host,
        )

    def run(self) -> None:
        self._local.write(self._sources)
        self._exchange.run(self._swap.held)

    def _halves(self, by_peer: Mapping[int, Sequence[Transfer]]) -> dict[int, Side]:
        dtype = next(iter(self._swap.held.values())).dtype
        tables = {peer: tabulate(transfers) for peer, transfers in by_peer.items()}
        return {peer: Side(table, (dtype,) * len(table.targets)) for peer, table in tables.items()}


class InPlace:
    """Every rank writes into the memory of the others."""

    def __init__(self, swap: Swap) -> None:
        self._swap = swap

    def prepare(self) -> None:
        swap = self._swap
        exported = [dict(swap.exported) for _ in range(dist.get_world_size())]
        dist.all_gather_object(exported, dict(swap.exported))
        engines = [(swap.target, exported)]
        self._writer = SwapWriter(swap.source, swap.rank, engines, topology=_job(swap).topology)

    def run(self) -> None:
        self._writer.write(self._swap.held)
        dist.barrier()


def _job(swap: Swap) -> Job:
    size = swap.source.world_size
    return Job(swap.source, (swap.target,), Topology.colocated(size, [swap.target.world_size], size))
