"""One trainer rank per actor that learns from examples, and the role over all of them.

Every method of SupervisedWorker except `pid` is collective: RaySupervised calls it on all ranks, in the same
order.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from hybridrl.batch import Batch, Minibatch, RankBatch, TokenBlock
from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.schema import ClusterConfig
from hybridrl.trainer import checkpoints
from hybridrl.trainer.roles.supervised import Supervised
from hybridrl.trainer.setup import RankSetup
from hybridrl.types import PolicyVersion, StepReport


@ray.remote(max_restarts=0)
class SupervisedWorker:
    def __init__(self, setup: RankSetup, num_steps: int) -> None:
        self._setup, self._num_steps = setup, num_steps

    def pid(self) -> int:
        return os.getpid()

    def build(self, checkpoint: Path | None) -> list[str]:
        """Build the model with the weights of the model folder, then those of `checkpoint` if given.

        Returns:
            What a person is to be told about the checkpoint.
        """
        self._model = Supervised(self._setup, self._num_steps)
        return [] if checkpoint is None else self._model.restore(checkpoint)

    def step(self, batch: RankBatch, *blocks: TokenBlock) -> StepReport:
        """One optimizer step; blocks are top-level arguments so that Ray maps them from its store."""
        return self._model.step(batch.with_blocks(blocks))

    def evaluate(self, batch: RankBatch, *blocks: TokenBlock) -> dict[str, float]:
        return self._model.evaluate(batch.with_blocks(blocks))

    def save(self, folder: Path, progress: Mapping[str, Any]) -> None:
        self._model.save(folder, {"progress": progress, "critic_apart": False})

    def export(self, folder: Path) -> None:
        self._model.export(folder)


class RaySupervised:
    """ExampleTrainer over a group of SupervisedWorkers."""

    def __init__(self, workers: WorkerGroup, cluster: ClusterConfig, folder: Path, keep: int) -> None:
        """
        Args:
            folder: of the run's checkpoints, one sub-folder a step.
            keep: how many of them stay.
        """
        self.workers, self.version = workers, 0
        self._cluster, self._folder, self._keep = cluster, folder, keep

    async def build(self, checkpoint: Path | None, version: PolicyVersion) -> list[str]:
        """
        Returns:
            What a person is to be told about the checkpoint.
        """
        notes = await self.workers.all("build", checkpoint, timeout_s=self._cluster.start_timeout_s)
        self.version = version
        return notes[0]

    async def step(self, batch: Batch, minibatch: Minibatch) -> StepReport:
        reports: list[StepReport] = await self.workers.all("step", *_sent(batch, minibatch))
        self.version = reports[0].version
        return reports[0]

    async def evaluate(self, batch: Batch, minibatch: Minibatch) -> dict[str, float]:
        return (await self.workers.all("evaluate", *_sent(batch, minibatch)))[0]

    async def save(self, step: int, progress: Mapping[str, Any]) -> None:
        await self.workers.all("save", checkpoints.named(self._folder, step), progress)
        checkpoints.delete_old(self._folder, self._keep)

    async def export(self, folder: Path) -> None:
        await self.workers.all("export", folder)


def _sent(batch: Batch, minibatch: Minibatch) -> tuple[ray.ObjectRef, ...]:
    """What every rank is called with. Tokens go into Ray's store once, for all of them."""
    blocks = [ray.put(block) for block in batch.blocks]
    return ray.put(batch.for_ranks([minibatch])), *blocks
