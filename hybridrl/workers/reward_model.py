"""The reward model over Ray actors: those of its own ranks, or the actor's ranks that it shares.

Answers go to the ranks by reference, and a number for each comes back.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from hybridrl.batch import Minibatch, RankBatch, TokenBlock
from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.schema import ClusterConfig
from hybridrl.data.packing import share_out
from hybridrl.trainer.setup import TrainerSetup
from hybridrl.types import Group


@ray.remote(max_restarts=0)
class RewardModelWorker:
    """One rank of a reward model with ranks of its own. Every method but `pid` is collective."""

    def __init__(self, setup: TrainerSetup) -> None:
        self._setup = setup

    def pid(self) -> int:
        return os.getpid()

    def build(self) -> None:
        # Imported here: the controller's process, which makes these actors, is spared the seconds.
        from hybridrl.trainer.megatron.reward_model import RewardModelRanks

        self._model = RewardModelRanks(self._setup)

    def scores(self, batch: RankBatch, *blocks: TokenBlock) -> np.ndarray | None:
        return self._model.scores(batch.with_blocks(blocks))


class RayRewardModel:
    """RewardModel over workers that have a method `scores`."""

    def __init__(
        self,
        workers: WorkerGroup,
        cluster: ClusterConfig,
        *,
        shared: bool,
        dp: int,
        microbatch_tokens: int,
        attention_length: float,
    ) -> None:
        """
        Args:
            workers: of its own, or the trainer's.
            shared: they are the trainer's, which builds them.
            dp, microbatch_tokens, attention_length: as of a ColumnGroup.
        """
        self._workers, self._cluster, self._shared = workers, cluster, shared
        self._dealing = {
            "num_ranks": dp,
            "microbatch_tokens": microbatch_tokens,
            "attention_length": attention_length,
        }

    @property
    def own_workers(self) -> list[WorkerGroup]:
        """Those that are not the trainer's."""
        return [] if self._shared else [self._workers]

    async def build(self) -> None:
        for workers in self.own_workers:
            await workers.all("build", timeout_s=self._cluster.start_timeout_s)

    async def scores(self, groups: Sequence[Group]) -> np.ndarray:
        blocks = list({id(group.block): group.block for group in groups}.values())
        batch = ray.put(_dealt(groups, blocks, self._dealing))
        found = await self._workers.all("scores", batch, *blocks, timeout_s=self._cluster.step_timeout_s)
        return found[-1]  # of a rank of the last pipeline stage


def _dealt(groups: Sequence[Group], blocks: Sequence[Any], dealing: dict[str, Any]) -> RankBatch:
    """What ranks need to know of the groups, beside their blocks."""
    number = {id(block): i for i, block in enumerate(blocks)}
    placed = [(number[id(group.block)], t) for group in groups for t in group.trajectories]
    count = len(placed)
    length_N = np.array([t.prompt_tokens + t.response_tokens for _, t in placed], np.int64)
    rows = share_out(np.arange(count), length_N, **dealing)
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
