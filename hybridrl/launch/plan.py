"""What a config comes to on a machine: how many ranks, engines, optimizer steps; and the folders of a run."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hybridrl.config.check import optimizer_steps
from hybridrl.config.schema import Config, EngineParallel
from hybridrl.config.training import TrainParallel
from hybridrl.reshard.topology import Topology
from hybridrl.trainer.setup import Host

Resume = Literal["never", "if_possible", "required"]
"""if_possible: from the newest checkpoint, and from the beginning where nothing was saved."""


@dataclass(frozen=True, slots=True)
class RunShape:
    """Counts that follow from a config; the batch identity that is printed before a run."""

    parallel: TrainParallel
    """Of the trainer, with its dp."""

    num_engines: int
    engine: EngineParallel
    trajectories_per_step: int
    optimizer_steps_per_step: int

    critic: TrainParallel | None = None
    """With its dp; None: on the actor's ranks, if there is one."""

    reference: TrainParallel | None = None
    """Of reference and teacher, as `critic`."""

    @property
    def trainer_ranks(self) -> int:
        return self.parallel.num_ranks

    @classmethod
    def of(cls, cfg: Config) -> "RunShape":
        """Actor, critic, reference and engines each fill all GPUs; without any there is one replica of each.
        The config may say otherwise."""
        engine, batch = cfg.rollout.parallel, cfg.batch
        gpus = _num_gpus(cfg)
        critic, reference = cfg.critic.parallel, cfg.reference.parallel
        return cls(
            parallel=with_dp(cfg.actor.parallel, cfg),
            critic=critic and with_dp(critic, cfg),
            reference=reference and with_dp(reference, cfg),
            num_engines=cfg.rollout.num_engines or max(1, gpus // engine.tp),
            engine=engine,
            trajectories_per_step=batch.prompts_per_step * cfg.algorithm.samples_per_prompt,
            optimizer_steps_per_step=optimizer_steps(cfg),
        )


def with_dp(parallel: TrainParallel, cfg: Config) -> TrainParallel:
    """With the data-parallel size that the devices of the config leave."""
    return parallel.model_copy(update={"dp": parallel.dp or max(1, _num_gpus(cfg) // parallel.model_ranks)})


def trainer_host(cfg: Config) -> Host:
    """What the trainer's ranks compute on."""
    return "cuda" if _num_gpus(cfg) else "cpu"


def _num_gpus(cfg: Config) -> int:
    return cfg.cluster.nodes * (cfg.cluster.gpus_per_node or 0)


@dataclass(frozen=True, slots=True)
class Seats:
    """The node of every worker: replicas of trainer and engines are spread so that each node has of both."""

    trainer: tuple[int, ...]
    """Node of each rank."""

    engine: tuple[int, ...]
    reward: tuple[int, ...]
    critic: tuple[int, ...] = ()
    reference: tuple[int, ...] = ()

    @classmethod
    def of(cls, shape: RunShape, num_nodes: int) -> "Seats":
        """Neighbouring ranks share a node. Rewards are computed on the first, beside the controller."""
        beside = [_spread(one.num_ranks if one else 0, num_nodes) for one in (shape.critic, shape.reference)]
        return cls(
            _spread(shape.trainer_ranks, num_nodes), _spread(shape.num_engines, num_nodes), (0,), *beside
        )

    def topology(self, engine_ranks: int) -> Topology | None:
        """Which trainer ranks and engine ranks share a node; None: there is one node.

        Args:
            engine_ranks: of each engine.
        """
        if {*self.trainer, *self.engine} == {0}:
            return None
        assert {*self.engine} <= {*self.trainer}, "every node has a trainer rank"
        size = max(self.trainer.count(node) for node in self.trainer)
        place = _Devices(self.trainer, size)
        targets = tuple(tuple(place.take(node) for _ in range(engine_ranks)) for node in self.engine)
        return Topology(place.of_trainer, targets, size)

    @property
    def per_node(self) -> list[int]:
        """Workers on each node."""
        nodes = (*self.trainer, *self.engine, *self.reward, *self.critic, *self.reference)
        return [nodes.count(node) for node in range(max(nodes) + 1)]


class _Devices:
    """Numbers for the places of trainer ranks; engine ranks share them in turn."""

    def __init__(self, trainer: tuple[int, ...], size: int) -> None:
        """
        Args:
            trainer: node of each rank, neighbours on one node.
            size: devices of a node.
        """
        self.of_trainer = tuple(node * size + rank - trainer.index(node) for rank, node in enumerate(trainer))
        self._trainer, self._size, self._taken = trainer, size, Counter[int]()

    def take(self, node: int) -> int:
        """The next device of a node for an engine rank."""
        self._taken[node] += 1
        return node * self._size + (self._taken[node] - 1) % self._trainer.count(node)


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
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def exports(self) -> Path:
        """Of models that are made while the training goes on, one sub-folder a step."""
        return self.folder / "exports"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def job(self) -> Path:
        """What was handed to Slurm."""
        return self.folder / "slurm"
