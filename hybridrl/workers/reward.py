"""Actors that decode answers and score them, and the Reward role over them."""

import asyncio
import itertools
from collections.abc import Sequence
from itertools import groupby

import ray

from hybridrl.batch import TokenBlock
from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.schema import ClusterConfig, RewardConfig
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.faults import Fault, Planted
from hybridrl.hosts import stacks
from hybridrl.rewards.pool import Score, Scorer
from hybridrl.rewards.trajectories import score_block, transcript, with_turns
from hybridrl.types import Group, Prompt
from hybridrl.workers.planted import before_scores

_STOP_S = 60.0

Shown = tuple[str, tuple[tuple[str, str], ...]]
"""The text of an answer, and the transcript of its episode."""


@ray.remote(max_restarts=0)
class RewardWorker:
    def __init__(self, reward: RewardConfig, tokenizer_folder: str) -> None:
        self._reward, self._folder = reward, tokenizer_folder
        self._faults: Planted | None = None

    def pid(self) -> int:
        return stacks.answer()

    def plant(self, faults: Sequence[Fault]) -> None:
        self._faults = Planted(faults)

    def start(self) -> None:
        self._tokenizer = load_tokenizer(self._folder)
        self._scorer = Scorer(self._reward)

    def score(
        self, prompts: list[Prompt], rows: list[int], keep_text: int, block: TokenBlock
    ) -> list[tuple[Score, Shown | None]]:
        """Scores of the given rows of a block.

        Args:
            prompts: prompt of each row.
            keep_text: number of rows, evenly spread, whose text is returned as well.
        """
        decode, sees = self._tokenizer.decode_answers, self._reward.sees
        if self._faults is not None:
            before_scores(self._faults, block)
        scores, texts = score_block(block, rows, prompts, decode, self._scorer, sees)
        kept = {i * len(rows) // keep_text for i in range(keep_text)}
        return [
            (score, (text, transcript(block, rows[i], decode)) if i in kept else None)
            for i, (score, text) in enumerate(zip(scores, texts, strict=True))
        ]

    def stop(self) -> None:
        self._scorer.close()


class RayReward:
    """Implements Reward over RewardWorkers; blocks are assigned to the workers in turn, call after call."""

    def __init__(self, workers: WorkerGroup, cluster: ClusterConfig) -> None:
        self.workers, self._cluster = workers, cluster
        self._turn = itertools.count()

    async def start(self) -> None:
        await self.workers.all("start", timeout_s=self._cluster.start_timeout_s)

    async def stop(self) -> None:
        """End the processes that compute rewards."""
        await self.workers.all("stop", timeout_s=_STOP_S)

    async def score(self, groups: Sequence[Group], *, keep_text: int = 0) -> None:
        blocks = [list(members) for _, members in groupby(groups, key=lambda group: id(group.block))]
        await asyncio.gather(
            *(
                self._score_block(next(self._turn) % len(self.workers), members, keep_text if i == 0 else 0)
                for i, members in enumerate(blocks)
            )
        )

    async def _score_block(self, rank: int, groups: Sequence[Group], keep_text: int) -> None:
        trajectories = [t for group in groups for t in group.trajectories]
        prompts = [group.prompt for group in groups for _ in group.trajectories]
        rows = [t.row for t in trajectories]
        results = await self.workers.one(rank, "score", prompts, rows, keep_text, groups[0].block)
        for trajectory, (score, shown) in zip(trajectories, results, strict=True):
            trajectory.reward, trajectory.reward_parts = with_turns(trajectory, score)
            trajectory.text, trajectory.transcript = shown or (None, ())
