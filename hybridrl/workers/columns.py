"""Groups of dedicated ranks besides the actor's, each with its own parallel layout: the critic, and frozen
policies.

They get the actor's batches, partitioned over their own ranks, and compute columns. A column goes by
reference from the rank that has it to the ranks that need it: the driver never opens one.
"""

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
from hybridrl.hosts import stacks
from hybridrl.trainer.checkpoints import critic_part


@ray.remote(max_restarts=0)
class RoleWorker:
    """One rank of such a group. Every method except `pid` is collective."""

    def __init__(self, role: Callable[..., Any], *arguments: Any) -> None:
        """
        Args:
            role: CriticRanks, FrozenRanks or RewardModelRanks.
            arguments: arguments of the role's constructor.
        """
        self._make = partial(role, *arguments)

    def pid(self) -> int:
        return stacks.answer()

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
    """A group of ranks that computes columns for the actor's ranks."""

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
            columns: names of the columns that they compute.
            dp: data-parallel size of the group.
            microbatch_tokens: most tokens of a microbatch on one rank; no trajectory is longer.
            attention_length: see data.packing.pack_minibatches.
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
        """Compute the columns of a batch."""
        own = [partitioned(minibatch, batch.length_N, **self._partitioning) for minibatch in minibatches]
        await self.workers.all("load", ray.put(batch.for_ranks(own)), *batch.blocks)

    def column(self, name: str) -> ray.ObjectRef:
        return column_of(self.workers, name)


class RayCritic(ColumnGroup):
    """The critic on dedicated ranks: it gets the returns, and is trained at the same time as the actor."""

    async def resume(self, checkpoint: Path | None) -> None:
        """Build the critic, with the weights of its part of the actor's `checkpoint` if that is given."""
        part = critic_part(checkpoint) if checkpoint else None
        await self.workers.all("build", part, timeout_s=self._cluster.start_timeout_s)

    async def take(self, returns: ray.ObjectRef) -> None:
        await self.workers.all("take", returns)

    async def step(self, index: int) -> dict[str, float]:
        """Take one optimizer step on minibatch `index`; returns its metrics."""
        return (await self.workers.all("step", index))[0]

    async def save(self, checkpoint: Path) -> None:
        """Write the critic's part of the actor's `checkpoint`, which is valid only with both parts."""
        part = critic_part(checkpoint)
        shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed before the actor's part
        await self.workers.all("save", part)

    async def finish_saving(self) -> None:
        await self.workers.all("finish_saving")


def partitioned(minibatch: Minibatch, length_N: np.ndarray, **partitioning: Any) -> Minibatch:
    """A minibatch with the same trajectories, partitioned over another group of ranks.

    Args:
        length_N: tokens of every trajectory of the batch.
        partitioning: further arguments of data.packing.partition_rows.
    """
    rows = np.array(sorted(n for rank in minibatch.rows for rows in rank for n in rows), np.int64)
    return replace(minibatch, rows=partition_rows(rows, length_N[rows], **partitioning))


def column_of(workers: WorkerGroup, name: str) -> ray.ObjectRef:
    """A column of the batch that the ranks hold. All ranks take part in the call; the last one returns it."""
    return [actor.column.remote(name) for actor in workers.actors][-1]
