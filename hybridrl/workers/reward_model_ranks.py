"""The reward model over Ray actors, on dedicated ranks or colocated with the actor.

Answers go to the ranks by reference, and one number for each comes back.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from hybridrl.batch import Minibatch, RankBatch
from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.schema import ClusterConfig
from hybridrl.data.packing import partition_rows
from hybridrl.types import Group
from hybridrl.workers.columns import ColumnGroup


class RayRewardModel(ColumnGroup):
    """Implements RewardModel over workers that have a method `scores`."""

    def __init__(
        self, workers: WorkerGroup, cluster: ClusterConfig, *, shared: bool, **partitioning: Any
    ) -> None:
        """
        Args:
            workers: dedicated workers, or the trainer's.
            shared: the workers are the trainer's, which builds them.
            partitioning: further arguments of ColumnGroup.
        """
        super().__init__(workers, (), cluster, **partitioning)
        self._shared = shared

    @property
    def own_workers(self) -> list[WorkerGroup]:
        """The dedicated workers; empty if the reward model uses the trainer's."""
        return [] if self._shared else [self.workers]

    async def build(self) -> None:
        if not self._shared:
            await super().build()

    async def scores(self, groups: Sequence[Group]) -> np.ndarray:
        blocks = list({id(group.block): group.block for group in groups}.values())
        batch = ray.put(_partitioned(groups, blocks, self._partitioning))
        found = await self.workers.all("scores", batch, *blocks)
        return found[-1]  # the last rank is on the last pipeline stage


def _partitioned(groups: Sequence[Group], blocks: Sequence[Any], partitioning: dict[str, Any]) -> RankBatch:
    """The batch of one minibatch that the ranks get, without its blocks, which are sent separately."""
    number = {id(block): i for i, block in enumerate(blocks)}
    placed = [(number[id(group.block)], t) for group in groups for t in group.trajectories]
    count = len(placed)
    length_N = np.array([t.prompt_tokens + t.response_tokens for _, t in placed], np.int64)
    rows = partition_rows(np.arange(count), length_N, **partitioning)
    return RankBatch(
        step=0,
        blocks=(),
        block_N=np.array([block for block, _ in placed], np.int64),
        row_N=np.array([t.row for _, t in placed], np.int64),
        group_N=np.zeros(count, np.int64),
        reward_N=np.zeros(count, np.float32),
        advantage_N=None,
        minibatches=(Minibatch(0, rows, num_tokens=count, num_sequences=count),),
    )
