"""What a config comes to on a machine: how many ranks, engines, optimizer steps; and the folders of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hybridrl.config.check import optimizer_steps
from hybridrl.config.schema import Config, EngineParallel
from hybridrl.config.training import TrainParallel

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

    @property
    def trainer_ranks(self) -> int:
        return self.parallel.num_ranks

    @classmethod
    def of(cls, cfg: Config) -> "RunShape":
        """Trainer and engines each fill all GPUs; without any there is one replica and one engine. The config
        may say otherwise."""
        parallel, engine, batch = cfg.actor.parallel, cfg.rollout.parallel, cfg.batch
        gpus = cfg.cluster.nodes * (cfg.cluster.gpus_per_node or 0)
        dp = parallel.dp or max(1, gpus // parallel.model_ranks)
        return cls(
            parallel=parallel.model_copy(update={"dp": dp}),
            num_engines=cfg.rollout.num_engines or max(1, gpus // engine.tp),
            engine=engine,
            trajectories_per_step=batch.prompts_per_step * cfg.algorithm.samples_per_prompt,
            optimizer_steps_per_step=optimizer_steps(cfg),
        )


@dataclass(frozen=True, slots=True)
class Seats:
    """The node of every worker: replicas of trainer and engines are spread so that each node has of both."""

    trainer: tuple[int, ...]
    """Node of each rank."""

    engine: tuple[int, ...]
    reward: tuple[int, ...]

    @classmethod
    def of(cls, shape: RunShape, num_nodes: int) -> "Seats":
        """Neighbouring ranks share a node. Rewards are computed on the first, beside the controller."""
        return cls(_spread(shape.trainer_ranks, num_nodes), _spread(shape.num_engines, num_nodes), (0,))

    @property
    def per_node(self) -> list[int]:
        """Workers on each node."""
        nodes = (*self.trainer, *self.engine, *self.reward)
        return [nodes.count(node) for node in range(max(nodes) + 1)]


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
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def job(self) -> Path:
        """What was handed to Slurm."""
        return self.folder / "slurm"
