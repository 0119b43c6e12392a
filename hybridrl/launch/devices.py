"""Which GPU every worker of a run computes on.

Trainer and engines share the GPUs: rank after rank each fills the nodes. Engine ranks then change places
inside their node so that most of an engine's bytes lie on its GPU already. A process sees its own GPUs only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hybridrl.cluster.env import worker_environment
from hybridrl.config.load import LoadedConfig
from hybridrl.config.schema import Config
from hybridrl.errors import ConfigError, HybridRLError, ResourceError
from hybridrl.hosts import cuda
from hybridrl.hosts.machine import Machine
from hybridrl.launch.shape import RunShape, Seats, devices
from hybridrl.layout.base import Layout
from hybridrl.reshard.placement import place
from hybridrl.reshard.topology import Topology

Visible = Mapping[str, Sequence[str]]
"""By the name of a group of workers: what CUDA_VISIBLE_DEVICES is for each of them."""


def with_gpus(loaded: LoadedConfig, machine: Machine) -> LoadedConfig:
    """The config with the GPUs that this machine has, where it leaves open how many there are."""
    cluster = loaded.config.cluster
    if cluster.gpus_per_node is not None or not machine.gpus:
        return loaded
    counted = cluster.model_copy(update={"gpus_per_node": len(machine.gpus)})
    return replace(loaded, config=loaded.config.model_copy(update={"cluster": counted}))


def environment(interface: str, gpus: str, *, trains: bool) -> dict[str, str]:
    """Variables of a worker.

    Args:
        interface: of the network that it talks over.
        gpus: that it sees; "": none, whatever the machine has.
        trains: or scores, with Megatron.
    """
    network = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    ours = cuda.WORKER | (cuda.TRAINER if trains else {})
    return worker_environment({"CUDA_VISIBLE_DEVICES": gpus, **ours, **network})


def separate_engines(loaded: LoadedConfig) -> Iterator[HybridRLError]:
    """Engines on devices of their own: nothing places them there."""
    if loaded.config.cluster.placement == "separate":
        yield ResourceError(
            "cluster.placement = separate: engines on devices of their own are not there yet. What places "
            "workers, and what writes weights, takes every device for one that trainer and engines share",
            where=loaded.where("cluster.placement"),
            fix="cluster.placement=colocated, the default",
        )


def unshared_gpus(loaded: LoadedConfig) -> list[HybridRLError]:
    """A GPU that not every role has its part of: weights go from the rank on a GPU to the engine on it."""
    cluster, shape = loaded.config.cluster, RunShape.of(loaded.config)
    per_node = cluster.gpus_per_node
    if not per_node:
        return []
    wrong = [*_idle(loaded, shape, cluster.nodes * per_node), *_crowded(loaded, shape, per_node)]
    if loaded.config.actor.lora is not None:
        wrong.append(
            ConfigError(
                f"actor.lora with {per_node} GPUs a node: Transformer Engine's layers take no adapters yet",
                where=loaded.where("actor.lora"),
                fix="train all weights: leave actor.lora out; adapters train with cluster.gpus_per_node=0",
            )
        )
    return wrong


def _idle(loaded: LoadedConfig, shape: RunShape, gpus: int) -> Iterator[HybridRLError]:
    replica = shape.parallel.model_ranks
    if shape.trainer_ranks != gpus:
        yield ResourceError(
            f"the trainer has {shape.trainer_ranks} ranks, {replica} a replica, and the cluster {gpus} GPUs: "
            "each takes one",
            where=loaded.where("actor.parallel", "cluster.gpus_per_node"),
            fix=f"actor.parallel.dp={gpus // replica}"
            if gpus % replica == 0
            else f"choose tp, cp and pp so that their product divides {gpus}",
        )


def _crowded(loaded: LoadedConfig, shape: RunShape, per_node: int) -> Iterator[HybridRLError]:
    nodes, tp = loaded.config.cluster.nodes, shape.engine.tp
    most = -(-shape.num_engines // nodes)
    where = loaded.where("rollout.parallel.tp", "rollout.num_engines", "cluster.gpus_per_node")
    parts = shape.engine_parts
    if parts > 1 and (tp % parts or shape.num_engines * parts > nodes):
        yield ResourceError(
            f"rollout.parallel.tp = {tp}, num_engines = {shape.num_engines}, on {nodes} x {per_node} GPUs: "
            "an engine that is larger than a node fills nodes of its own, evenly",
            where=where,
            fix=f"rollout.parallel.tp={per_node}",
        )
    elif parts == 1 and most * tp > per_node:
        yield ResourceError(
            f"{most} engines of {tp} ranks on a node of {per_node} GPUs: no two share a GPU",
            where=where,
            fix=f"rollout.num_engines={nodes * (per_node // tp)}",
        )


@dataclass(frozen=True, slots=True)
class Devices:
    topology: Topology | None
    """Where trainer ranks and engine ranks sit; None: on one node, without GPUs."""

    visible: Visible
    """Without GPUs, of no group."""

    @classmethod
    def of(
        cls,
        cfg: Config,
        seats: Seats,
        names: Sequence[Sequence[str]],
        source: Layout,
        engine: Layout,
        *,
        parts: int = 1,
    ) -> "Devices":
        """
        Args:
            parts: nodes that each engine is on.
            names: of the GPUs of each node, as CUDA takes them; without GPUs nothing is read of it.
            source: of the trainer.
            engine: of every engine.
        """
        if not cfg.cluster.gpus_per_node:
            return cls(seats.topology(engine.world_size), {})
        size = cfg.cluster.gpus_per_node
        numbered = seats.topology(engine.world_size, size, parts=parts)
        assert numbered is not None, "there are GPUs"
        topology = place(source, (engine,) * len(numbered.targets), numbered, "node")

        def name(device: int) -> str:
            return names[device // size][device % size]

        beside = {
            "critic": seats.critic,
            "reference": seats.reference,
            "reward model": seats.reward_model,
        }
        visible = {
            group: [name(device) for device in devices(nodes, size)] for group, nodes in beside.items()
        }
        visible["trainer"] = [name(device) for device in topology.source]
        share = engine.world_size // parts
        of_engines = [
            [",".join(map(name, ranks[first : first + share])) for first in range(0, len(ranks), share)]
            for ranks in topology.targets
        ]
        visible["engine"] = [gpus[0] for gpus in of_engines]
        visible["engine part"] = [part for gpus in of_engines for part in gpus[1:]]
        return cls(topology, visible)
