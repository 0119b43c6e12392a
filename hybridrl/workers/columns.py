"""Ranks beside the actor's, each group cut in its own way: the critic, and policies that are only asked.

They get the actor's batches, dealt to their own ranks, and compute columns. A column goes from the rank that
has it to the ranks that take it, by reference: the driver never opens one.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from hybridrl.batch import Batch, Minibatch, RankBatch, TokenBlock
from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.schema import ClusterConfig
from hybridrl.data.packing import partition_rows
from hybridrl.trainer.checkpoints import critic_part


@ray.remote(max_restarts=0)
class RoleWorker:
    """One rank beside the actor's. Every method but `pid` is collective."""

    def __init__(self, role: Callable[..., Any], *arguments: Any) -> None:
        """
        Args:
            role: CriticRanks, FrozenRanks or RewardModelRanks.
            arguments: that it is made from.
        """
        self._make = partial(role, *arguments)

    def pid(self) -> int:
        return os.getpid()

    def build(self, checkpoint: Path | None = None) -> None:
        self._role = self._make()
        if checkpoint is not None:
            self._role.restore(checkpoint)

    def load(self, batch: RankBatch, *blocks: TokenBlock) -> None:
        self._role.load(batch.with_blocks(blocks))

    def scores(self, batch: RankBatch, *blocks: TokenBlock) -> np.ndarray | None:
        return self._role.scores(batch.with_blocks(blocks))

    def column(self, name: str) -> np.ndarray | None:
        return self._role.column(name)

    def take(self, return_U: np.ndarray) -> None:
        self._role.take(return_U)

    def step(self, index: int) -> dict[str, float]:
        return self._role.step(index)

    def save(self, folder: Path) -> None:
        self._role.save(folder)

    def finish_saving(self) -> None:
        self._role.finish_saving()


class ColumnGroup:
    """Ranks that compute columns for the actor's."""

    def __init__(
        self,
        workers: WorkerGroup,
        columns: Sequence[str],
        cluster: ClusterConfig,
        *,
        dp: int,
        microbatch_tokens: int,
        attention_length: float,
    ) -> None:
        """
        Args:
            columns: what they compute.
            dp: their data-parallel size.
            microbatch_tokens: of one microbatch on one of them; no trajectory is longer.
            attention_length: as in data.packing.plan_minibatches.
        """
        self.workers, self.columns = workers, columns
        self._cluster = cluster
        self._partitioning = {
            "num_ranks": dp,
            "microbatch_tokens": microbatch_tokens,
            "attention_length": attention_length,
        }

    async def build(self) -> None:
        await self.workers.all("build", timeout_s=self._cluster.start_timeout_s)

    async def load(self, batch: Batch, minibatches: Sequence[Minibatch]) -> None:
        """Compute their columns of a batch."""
        own = [partitioned(minibatch, batch.length_N, **self._partitioning) for minibatch in minibatches]
        await self.workers.all("load", ray.put(batch.for_ranks(own)), *batch.blocks)

    def column(self, name: str) -> ray.ObjectRef:
        return column_of(self.workers, name)


class RayCritic(ColumnGroup):
    """The critic, which takes the returns and is trained beside the actor."""

    async def resume(self, checkpoint: Path | None) -> None:
        """Build it, with the weights of its part of the actor's `checkpoint` if given."""
        part = critic_part(checkpoint) if checkpoint else None
        await self.workers.all("build", part, timeout_s=self._cluster.start_timeout_s)

    async def take(self, returns: ray.ObjectRef) -> None:
        await self.workers.all("take", returns)

    async def step(self, index: int) -> dict[str, float]:
        """One optimizer step on minibatch `index`; its metrics."""
        return (await self.workers.all("step", index))[0]

    async def save(self, checkpoint: Path) -> None:
        """Write its part of the actor's `checkpoint`; both are committed, or it counts for nothing."""
        part = critic_part(checkpoint)
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed before the actor's was there
        await self.workers.all("save", part)

    async def finish_saving(self) -> None:
        await self.workers.all("finish_saving")


def partitioned(minibatch: Minibatch, length_N: np.ndarray, **partitioning: Any) -> Minibatch:
    """The trajectories of an optimizer step, on other ranks.

    Args:
        length_N: tokens of every trajectory of the batch.
        dealing: of data.packing.share_out.
    """
    rows = np.array(sorted(n for rank in minibatch.rows for rows in rank for n in rows), np.int64)
    return replace(minibatch, rows=partition_rows(rows, length_N[rows], **partitioning))


def column_of(workers: WorkerGroup, name: str) -> ray.ObjectRef:
    """A column of the batch that the ranks hold. They all take part; the last one has it."""
    return [actor.column.remote(name) for actor in workers.actors][-1]
