"""The placement of a run's workers, the layout of its models over them, and the paths in its folder."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hybridrl.config.load import LoadedConfig
from hybridrl.config.run_shape import RunShape, num_gpus
from hybridrl.config.schema import Config
from hybridrl.config.sft_rm import SupervisedConfig
from hybridrl.config.training import TrainParallel
from hybridrl.hosts.machine import Machine
from hybridrl.layout.trainers import TrainerLayout, layout_of
from hybridrl.models.spec import ModelSpec
from hybridrl.reshard.topology import Topology
from hybridrl.trainer.setup import DeviceKind

AnyConfig = Config | SupervisedConfig

Resume = Literal["never", "if_possible", "required"]
"""if_possible: from the newest checkpoint, or from the beginning if nothing was saved."""


def with_gpus(loaded: LoadedConfig[Any], machine: Machine) -> LoadedConfig[Any]:
    """The config with the GPUs that this machine has, where it leaves open how many there are."""
    cluster = loaded.config.cluster
    if cluster.gpus_per_node is not None or not machine.gpus:
        return loaded
    counted = cluster.model_copy(update={"gpus_per_node": len(machine.gpus)})
    return replace(loaded, config=loaded.config.model_copy(update={"cluster": counted}))


def trainer_host(cfg: AnyConfig) -> DeviceKind:
    """The kind of device that the trainer's ranks compute on."""
    return "cuda" if num_gpus(cfg.cluster) else "cpu"


def trainer_layout(
    cfg: Config | SupervisedConfig, model: ModelSpec, parallel: TrainParallel
) -> TrainerLayout:
    """Layout of a model over the trainer's ranks.

    Raises:
        LayoutError: the model does not divide over them, or a key has no meaning for the backend.
    """
    kind, on_gpu = layout_of(cfg.actor.backend), trainer_host(cfg) == "cuda"
    kind.refuse_keys(model, parallel)
    return kind.of(model, on_gpu=on_gpu, **parallel.sizes)


@dataclass(frozen=True, slots=True)
class Placement:
    """The node of every worker: ranks of the trainer and engines are spread so that each node has both. If
    engines have dedicated devices, these are the last ones, and the trainer's models are on the others."""

    trainer: tuple[int, ...]
    """Node of each rank."""

    engine: tuple[int, ...]
    """Node of each engine, or of each part of an engine that spans several nodes; the parts of an engine are
    consecutive."""

    reward: tuple[int, ...]
    critic: tuple[int, ...] = ()
    reference: tuple[int, ...] = ()
    reward_model: tuple[int, ...] = ()
    judge: tuple[int, ...] = ()
    """Node of each engine of the model that judges."""

    frozen: tuple[int, ...] = ()
    """Node of each engine of the frozen player."""

    receiver: tuple[int, ...] = ()
    """Node of the receiver of each rank of each engine, if engines have dedicated devices."""

    @classmethod
    def of_config(cls, cfg: Config) -> "Placement":
        cluster = cfg.cluster
        return cls.of(RunShape.of(cfg), cluster.nodes, gpus_per_node=cluster.gpus_per_node)

    @classmethod
    def of(cls, shape: RunShape, num_nodes: int, *, gpus_per_node: int | None = None) -> "Placement":
        """Neighbouring ranks share a node. Rewards are computed on the first node, where the controller
        is."""
        engines = _spread(shape.num_engines * shape.engine_parts, num_nodes)
        trainer, receiver = _spread(shape.trainer_ranks, num_nodes), ()
        if shape.separate:
            trainer, engines = _dedicated_nodes(shape, num_nodes, gpus_per_node or 0)
            receiver = tuple(n for n in engines for _ in range(shape.engine.tp // shape.engine_parts))
            num_nodes = max(trainer) + 1
        shardings = (shape.critic, shape.reference, shape.reward_model)
        dedicated = [_spread(sharding.num_ranks if sharding else 0, num_nodes) for sharding in shardings]
        served = {
            "judge": _spread(shape.judge_engines, num_nodes),
            "frozen": _spread(shape.frozen_engines, num_nodes),
        }
        return cls(trainer, engines, (0,), *dedicated, **served, receiver=receiver)

    def topology(self, engine_ranks: int, gpus_per_node: int = 0, *, parts: int = 1) -> Topology | None:
        """Which trainer ranks and engine ranks share a device; None: there is one node, without GPUs, and
        all share it.

        Args:
            engine_ranks: ranks of each engine.
            parts: nodes that each engine spans.
            gpus_per_node: 0: each trainer rank is a device, which engine ranks of its node share; if engines
                have dedicated devices, each of their ranks is a device too.
        """
        if self.receiver:
            return self._separate(engine_ranks, gpus_per_node)
        if not gpus_per_node and {*self.trainer, *self.engine} == {0}:
            return None
        assert {*self.engine} <= {*self.trainer}, "every node has a trainer rank"
        ranks_on = Counter(self.trainer)
        size = gpus_per_node or max(ranks_on.values())
        nodes = [node for node in self.engine for _ in range(engine_ranks // parts)]
        of_engines = devices(nodes, size, ranks_on)
        targets = tuple(zip(*[iter(of_engines)] * engine_ranks, strict=True))
        return Topology(tuple(devices(self.trainer, size, ranks_on)), targets, size)

    def _separate(self, engine_ranks: int, gpus_per_node: int) -> Topology:
        """Every device has a trainer rank or an engine rank, and that one a receiver."""
        every = (*self.trainer, *self.receiver)
        size = gpus_per_node or max(Counter(every).values())
        numbers = devices(every, size)
        of_engines = tuple(numbers[len(self.trainer) :])
        targets = tuple(zip(*[iter(of_engines)] * engine_ranks, strict=True))
        return Topology(tuple(numbers[: len(self.trainer)]), targets, size, of_engines)

    @property
    def per_node(self) -> list[int]:
        """Workers on each node."""
        dedicated = (*self.critic, *self.reference, *self.reward_model)
        served = (*self.engine, *self.receiver, *self.judge, *self.frozen)
        nodes = (*self.trainer, *self.reward, *dedicated, *served)
        return [nodes.count(node) for node in range(max(nodes) + 1)]


def devices(nodes: Iterable[int], size: int, used: Mapping[int, int] | None = None) -> list[int]:
    """Numbers of the devices that workers on these nodes take, in order.

    Args:
        size: devices of a node.
        used: node -> how many of its devices are taken in turn; None: all.
    """
    taken, found = Counter[int](), []
    for node in nodes:
        found.append(node * size + taken[node] % (used[node] if used else size))
        taken[node] += 1
    return found


def _dedicated_nodes(
    shape: RunShape, num_nodes: int, per_node: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Nodes of the trainer's ranks, which fill the first devices, and of the engines' parts, which fill the
    last ones.

    Args:
        per_node: GPUs of a node; 0: nodes are only divided between the two, as one engine part a node.
    """
    parts = shape.num_engines * shape.engine_parts
    if not per_node:
        others = min(parts, num_nodes - 1)
        trainer, engines = _spread(shape.trainer_ranks, num_nodes - others), _spread(parts, max(1, others))
        return trainer, tuple(num_nodes - max(1, others) + node for node in engines)
    share = shape.engine.tp // shape.engine_parts
    first = num_nodes * per_node - parts * share
    trainer = tuple(rank // per_node for rank in range(shape.trainer_ranks))
    return trainer, tuple((first + part * share) // per_node for part in range(parts))


def _spread(count: int, num_nodes: int) -> tuple[int, ...]:
    return tuple(i * num_nodes // count for i in range(count))


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Paths inside a run folder."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def bundles(self) -> Path:
        """Folder of the step bundles."""
        return self.folder / "bundles"

    @property
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def exports(self) -> Path:
        """Folder of the models that are exported while the training goes on, one sub-folder per step."""
        return self.folder / "exports"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def job(self) -> Path:
        """Folder of what was handed to Slurm."""
        return self.folder / "slurm"
