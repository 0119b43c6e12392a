"""Which GPU every worker of a run computes on.

Colocated trainer and engines: the ranks of each fill the GPUs of the nodes in order. Engine ranks are then
permuted inside their node so that most bytes of an engine rank are on its GPU already. Separate ones: trainer
ranks fill the first GPUs and engine ranks the last ones, each with a receiver. A process sees its own GPUs
only.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hybridrl.cluster.env import worker_environment
from hybridrl.config.schema import Config
from hybridrl.hosts import cuda
from hybridrl.launch.shape import Placement, devices
from hybridrl.layout.base import Layout
from hybridrl.reshard.placement import place
from hybridrl.reshard.topology import Topology

Visible = Mapping[str, Sequence[str]]
"""Name of a group of workers -> CUDA_VISIBLE_DEVICES of each of them."""


def environment(interface: str, gpus: str, *, trains: bool) -> dict[str, str]:
    """Variables of a worker.

    Args:
        interface: network interface that it talks over.
        gpus: CUDA_VISIBLE_DEVICES; "" hides all GPUs of the machine.
        trains: whether it trains or scores with Megatron.
    """
    network = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    ours = cuda.WORKER | (cuda.trainer_environment() if trains else {})
    return worker_environment({"CUDA_VISIBLE_DEVICES": gpus, **ours, **network})


@dataclass(frozen=True, slots=True)
class Devices:
    topology: Topology | None
    """Devices of trainer ranks and engine ranks; None: there is one node, without GPUs, and all share it."""

    visible: Visible
    """Visible GPUs of every group; empty without GPUs."""

    @classmethod
    def of(
        cls,
        cfg: Config,
        placement: Placement,
        names: Sequence[Sequence[str]],
        source: Layout,
        engine: Layout,
        *,
        parts: int = 1,
    ) -> "Devices":
        """
        Args:
            parts: nodes that each engine spans.
            names: GPUs of each node, as CUDA names them; not read if there are no GPUs.
            source: layout of the trainer.
            engine: layout of every engine.
        """
        if not cfg.cluster.gpus_per_node:
            return cls(placement.topology(engine.world_size, parts=parts), {})
        size = cfg.cluster.gpus_per_node
        numbered = placement.topology(engine.world_size, size, parts=parts)
        assert numbered is not None, "there are GPUs"
        topology = place(source, (engine,) * len(numbered.targets), numbered, "node")

        def name(device: int) -> str:
            return names[device // size][device % size]

        dedicated = {
            "critic": placement.critic,
            "reference": placement.reference,
            "reward model": placement.reward_model,
        }
        visible = {
            group: [name(device) for device in devices(nodes, size)] for group, nodes in dedicated.items()
        }
        for group, model, nodes in (
            ("judge", cfg.judge, placement.judge),
            ("frozen", cfg.frozen, placement.frozen),
        ):
            visible[group] = _of_served(nodes, model.tp, size, name) if model else []
        visible["trainer"] = [name(device) for device in topology.source]
        share = engine.world_size // parts
        of_engines = [
            [",".join(map(name, ranks[first : first + share])) for first in range(0, len(ranks), share)]
            for ranks in topology.targets
        ]
        visible["engine"] = [gpus[0] for gpus in of_engines]
        visible["engine receiver"] = [name(device) for device in topology.agents]
        visible["engine part"] = [part for gpus in of_engines for part in gpus[1:]]
        return cls(topology, visible)


def _of_served(nodes: Sequence[int], tp: int, size: int, name: Callable[[int], str]) -> list[str]:
    """Visible GPUs of each engine of a model that is not trained: they fill a node from its last GPU, since
    the policy's own ranks, where they do not fill a node, begin with its first.

    Args:
        nodes: node of each engine.
        size: GPUs of a node.
    """
    taken, found = Counter[int](), []
    for node in nodes:
        first = size - tp - taken[node] * tp % (size // tp * tp)
        found.append(",".join(name(node * size + i) for i in range(first, first + tp)))
        taken[node] += 1
    return found
