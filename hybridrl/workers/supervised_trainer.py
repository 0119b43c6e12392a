"""One rank of supervised training (SFT, RM) per actor, and the role over all of them.

Every method of SupervisedWorker except `pid` is collective: RaySupervised calls it on all ranks, in the same
order.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from hybridrl.batch import Batch, Minibatch, RankBatch, TokenBlock
from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.schema import ClusterConfig
from hybridrl.hosts import stacks
from hybridrl.trainer import checkpoints
from hybridrl.trainer.roles.supervised import Supervised
from hybridrl.trainer.setup import RankSetup
from hybridrl.types import PolicyVersion, StepReport


@ray.remote(max_restarts=0)
class SupervisedWorker:
    def __init__(self, setup: RankSetup, num_steps: int) -> None:
        self._setup, self._num_steps = setup, num_steps

    def pid(self) -> int:
        return stacks.answer()

    def build(self, checkpoint: Path | None) -> list[str]:
        """Build the model with the weights of the model folder, then those of `checkpoint` if given.

        Returns:
            Notes for the user about the checkpoint.
        """
        self._model = Supervised(self._setup, self._num_steps)
        return [] if checkpoint is None else self._model.restore(checkpoint)

    def step(self, batch: RankBatch, *blocks: TokenBlock) -> StepReport:
        """Take one optimizer step. Blocks are top-level arguments so that Ray maps them from its store."""
        return self._model.step(batch.with_blocks(blocks))

    def evaluate(self, batch: RankBatch, *blocks: TokenBlock) -> dict[str, float]:
        return self._model.evaluate(batch.with_blocks(blocks))

    def save(self, folder: Path, progress: Mapping[str, Any]) -> None:
        self._model.save(folder, {"progress": progress, "critic_apart": False})

    def export(self, folder: Path) -> None:
        self._model.export(folder)


class RaySupervised:
    """Implements ExampleTrainer over a group of SupervisedWorkers."""

    def __init__(
        self, workers: WorkerGroup, cluster: ClusterConfig, folder: Path, keep: checkpoints.Keep
    ) -> None:
        """
        Args:
            folder: folder of the run's checkpoints, with one sub-folder per step.
            keep: number of checkpoints that are kept.
        """
        self.workers, self.version = workers, 0
        self._cluster, self._folder, self._keep = cluster, folder, keep

    async def build(self, checkpoint: Path | None, version: PolicyVersion) -> list[str]:
        """Build the model on all ranks.

        Returns:
            Notes for the user about the checkpoint.
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
    """Arguments of a call to every rank. Tokens go into Ray's object store once for all ranks."""
    blocks = [ray.put(block) for block in batch.blocks]
    return ray.put(batch.for_ranks([minibatch])), *blocks
