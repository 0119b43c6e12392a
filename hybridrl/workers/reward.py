"""Actors that decode answers and score them, and the Reward role over them.

A judge outside the scoring processes is asked first, about the answers of several calls at the same time; the
scoring processes work for one call after the other.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

import ray

from hybridrl.batch import TokenBlock
from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.judge import JudgeConfig
from hybridrl.config.schema import ClusterConfig, RewardConfig
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.faults import Fault, Planted
from hybridrl.hosts import stacks
from hybridrl.rewards.judges.asked import Judges, has_judges
from hybridrl.rewards.pool import Score, Scorer
from hybridrl.rewards.score import Unjudged
from hybridrl.rewards.trajectories import seen_texts, share_outcomes, transcript, with_turns
from hybridrl.types import Group, Prompt, Trajectory
from hybridrl.workers.judge import AskEngines, RayJudge
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

    async def start(self, engines: Sequence[Any] = (), judge: JudgeConfig | None = None) -> None:
        """
        Args:
            engines: workers with engines of the model that judges; none if no rule asks it.
        """
        self._tokenizer = load_tokenizer(self._folder)
        self._scorer, self._one_at_a_time = Scorer(self._reward), asyncio.Lock()
        ask = AskEngines(engines, judge) if judge is not None else None
        self._judges = Judges(self._reward, ask) if has_judges(self._reward) else None

    async def score(
        self, prompts: list[Prompt], rows: list[int], kept: Collection[int], block: TokenBlock
    ) -> tuple[list[tuple[Score | Unjudged, Shown | None]], dict[str, float]]:
        """Scores of the given rows of a block, and what judges were asked since the last call.

        Args:
            prompts: prompt of each row.
            kept: rows whose text is returned as well.
        """
        decode, sees = self._tokenizer.decode_answers, self._reward.sees
        if self._faults is not None:
            before_scores(self._faults, block)
        texts = seen_texts(block, rows, decode, sees)
        scores = await self._scored(texts, prompts)
        shown = [
            (score, (text, transcript(block, row, decode)) if row in kept else None)
            for row, score, text in zip(rows, scores, texts, strict=True)
        ]
        return shown, self._judges.take_counts() if self._judges else {}

    async def _scored(self, texts: list[str], prompts: Sequence[Prompt]) -> list[Score | Unjudged]:
        rows: Sequence[Mapping[str, Any]] = [prompt.row for prompt in prompts]
        if self._judges is not None:
            rows = await self._judges.asked(texts, rows)
        async with self._one_at_a_time:
            uids = [prompt.uid for prompt in prompts]
            return await asyncio.to_thread(self._scorer.judged, texts, rows, uids)

    async def stop(self) -> None:
        if self._judges is not None:
            await self._judges.close()
        self._scorer.close()


class RayReward:
    """Implements Reward over RewardWorkers; blocks are assigned to the workers in turn, call after call."""

    def __init__(self, workers: WorkerGroup, cluster: ClusterConfig, judge: RayJudge | None = None) -> None:
        """
        Args:
            judge: the engines of the model that judges; None: no rule asks it.
        """
        self.workers, self._cluster, self._judge = workers, cluster, judge
        self._turn, self._counts = itertools.count(), Counter[str]()

    @property
    def groups(self) -> list[WorkerGroup]:
        return [self.workers, *([self._judge.workers] if self._judge else [])]

    async def start(self) -> None:
        """Start the engines that judge, then the workers that ask them."""
        given = await self._judge.start(self._cluster.start_timeout_s) if self._judge else ()
        await self.workers.all("start", *given, timeout_s=self._cluster.start_timeout_s)

    def take_counts(self) -> dict[str, float]:
        """What judges were asked since the last call, by metric."""
        taken, self._counts = self._counts, Counter()
        return {name: float(count) for name, count in taken.items()}

    async def stop(self) -> None:
        """End the processes that compute rewards."""
        await asyncio.gather(*(group.all("stop", timeout_s=_STOP_S) for group in self.groups))

    async def score(self, groups: Sequence[Group], *, keep_text: Collection[Trajectory] = ()) -> None:
        kept = {id(trajectory) for trajectory in keep_text}
        blocks = [list(members) for _, members in groupby(groups, key=lambda group: id(group.block))]
        await asyncio.gather(
            *(self._score_block(next(self._turn) % len(self.workers), members, kept) for members in blocks)
        )

    async def _score_block(self, rank: int, groups: Sequence[Group], kept: Collection[int]) -> None:
        scored = [(group.prompt, t) for group in groups for t in group.trajectories if not t.branch]
        prompts, trajectories = [prompt for prompt, _ in scored], [t for _, t in scored]
        rows = [t.row for t in trajectories]
        shown_rows = {t.row for t in trajectories if id(t) in kept}
        results, counts = await self.workers.one(rank, "score", prompts, rows, shown_rows, groups[0].block)
        self._counts.update(counts)
        for trajectory, (score, shown) in zip(trajectories, results, strict=True):
            if isinstance(score, Unjudged):
                trajectory.unjudged = score.why
            else:
                trajectory.reward, trajectory.reward_parts = with_turns(trajectory, score)
            trajectory.text, trajectory.transcript = shown or (None, ())
        for group in groups:
            share_outcomes(group.trajectories)
