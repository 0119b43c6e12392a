"""Rewards that include a reward model: what a rule gives, plus the weighted score of the model.

JudgedReward is a Reward, so dynamic sampling, greedy baselines, shaping and the estimator all see the sum. It
waits for rule and model, which run concurrently.
Shape letters: N trajectories.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from hybridrl.config.schema import REWARD_MODEL
from hybridrl.controller.roles import Reward, RewardModel
from hybridrl.errors import RewardError
from hybridrl.types import Group, Trajectory

RULE = "rule"
"""Name of the part that the rule gave, if it names no parts itself."""


class JudgedReward:
    def __init__(self, rule: Reward, model: RewardModel, weight: float, *, judges_alone: bool) -> None:
        """
        Args:
            weight: factor of the model's score.
            judges_alone: the rule gives 0 to every answer.
        """
        self._rule, self._model, self._weight, self._alone = rule, model, weight, judges_alone

    async def score(self, groups: Sequence[Group], *, keep_text: Collection[Trajectory] = ()) -> None:
        """Implements Reward.score.

        Raises:
            RewardError: a score is not a finite number, or the rule raised it.
        """
        _, score_N = await asyncio.gather(
            self._rule.score(groups, keep_text=keep_text), self._model.scores(groups)
        )
        _refuse_non_finite(groups, score_N)
        trajectories = [t for group in groups for t in group.trajectories]
        for trajectory, score in zip(trajectories, score_N.tolist(), strict=True):
            self._add(trajectory, score)

    def _add(self, trajectory: Trajectory, score: float) -> None:
        given = trajectory.reward
        if given is None:  # the rule's own judge failed
            return
        trajectory.reward_parts = judged_parts(trajectory.reward_parts, given, score, alone=self._alone)
        trajectory.reward = given + self._weight * score


def judged_parts(parts: Mapping[str, float], given: float, score: float, *, alone: bool) -> dict[str, float]:
    """Parts of the sum: the rule's parts, or its reward if it names none, and the model's score."""
    own = {} if alone else parts or {RULE: given}
    return {**own, REWARD_MODEL: score}


def _refuse_non_finite(groups: Sequence[Group], score_N: np.ndarray) -> None:
    uids = [group.prompt.uid for group in groups for _ in group.trajectories]
    wrong = [uid for uid, finite in zip(uids, np.isfinite(score_N), strict=True) if not finite]
    if wrong:
        raise RewardError(
            f"the reward model's score of {len(wrong)} of {len(uids)} answers is not a finite number",
            where=f"first: an answer to {wrong[0]}",
            fix="check its weights; actor.precision=fp32 or bf16 has more range than fp16",
        )
