"""A reward with a model in it: rule plus weight times score, for whoever looks at rewards."""

import asyncio
from dataclasses import dataclass
from typing import Any

import controller_fakes as fakes
import numpy as np
import pytest

from hybridrl.batch import Batch
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.controller.advantage import load_credit
from hybridrl.controller.evaluate import Evaluator
from hybridrl.controller.judged_reward import JudgedReward
from hybridrl.errors import RewardError
from hybridrl.types import Group, Prompt, Trajectory


@dataclass
class Rule:
    """Position in the group; with parts, where they are given."""

    parts: dict[str, float]

    async def score(self, groups, *, keep_text=()) -> None:
        for group in groups:
            for i, trajectory in enumerate(group.trajectories):
                trajectory.reward, trajectory.reward_parts = float(i), dict(self.parts)


@dataclass
class Model:
    """The length of the prompt's uid after its slash, or what `value` says."""

    value: float | None = None

    async def scores(self, groups) -> np.ndarray:
        found = [
            self.value or int(group.prompt.uid.split("/")[1]) for group in groups for _ in group.trajectories
        ]
        return np.array(found, np.float32)


def groups(*uids: int) -> list[Group]:
    def answers() -> list[Trajectory]:
        return [Trajectory(row, 2, 1, 1, "stop", 0) for row in range(2)]

    return [Group(Prompt(uid=f"train/{uid}", token_ids=(1,), row={}), answers(), None) for uid in uids]


def judged(parts: dict[str, float], *, weight: float = 0.5, alone: bool = False, value: float | None = None):
    found = groups(4, 7)
    reward = JudgedReward(Rule(parts), Model(value), weight, judges_alone=alone)
    asyncio.run(reward.score(found))
    return [t for group in found for t in group.trajectories]


def test_the_reward_is_the_rules_plus_the_weighted_score() -> None:
    assert [t.reward for t in judged({})] == [2.0, 3.0, 3.5, 4.5]
    assert [t.reward for t in judged({}, weight=-1.0)] == [-4.0, -3.0, -7.0, -6.0]


def test_parts_tell_rule_and_model_apart() -> None:
    assert judged({})[3].reward_parts == {"rule": 1.0, "reward_model": 7.0}
    assert judged({"format": 0.2})[3].reward_parts == {"format": 0.2, "reward_model": 7.0}
    assert judged({}, alone=True)[3].reward_parts == {"reward_model": 7.0}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_no_number_ends_the_run(value: float) -> None:
    with pytest.raises(RewardError, match=r"score of 4 of 4 answers.*\(first: an answer to train/4\)"):
        judged({}, value=value)


@dataclass
class Judge(fakes.World):
    """The rule finds every group flat; the model likes every other answer to a prompt of even number."""

    async def score(self, groups, *, keep_text=()) -> None:
        for group in groups:
            for trajectory in group.trajectories:
                trajectory.reward = 0.0

    async def scores(self, groups) -> np.ndarray:
        even = [int(group.prompt.uid.split("/")[1]) % 2 == 0 for group in groups]
        return np.array(
            [
                even * (i % 2)
                for even, g in zip(even, groups, strict=True)
                for i in range(len(g.trajectories))
            ],
            np.float32,
        )

    def roles(self, evaluator: Any = None) -> Any:
        from dataclasses import replace

        return replace(super().roles(evaluator), reward=JudgedReward(self, self, 1.0, judges_alone=True))


def test_dynamic_sampling_looks_at_the_sum() -> None:
    world = Judge(served=0)
    cfg = fakes.config(algorithm={"dynamic_sampling": {}})
    found = fakes.first_step(cfg, world)
    assert [group.prompt.uid for group in found.groups] == ["train/0", "train/2", "train/4", "train/6"]
    assert found.metrics["rollout/prompts_sampled"] == 7


def test_a_greedy_baseline_is_judged_as_the_answers_are() -> None:
    world = Judge(served=0, credit=load_credit(AlgorithmConfig.model_validate({"estimator": "remax"})))
    found = fakes.first_step(fakes.config(), world)
    assert [group.greedy_reward for group in found.groups] == [0.0] * 4
    assert found.groups[0].trajectories[1].reward == 1.0


def test_the_estimator_sees_the_sum() -> None:
    found = groups(4, 7)
    asyncio.run(JudgedReward(Rule({}), Model(), 0.5, judges_alone=False).score(found))
    for group in found:
        group.block = "block"
    batch = Batch.pack(1, found)
    assert batch.score_N.tolist() == [2.0, 3.0, 3.5, 4.5]


def test_held_out_answers_are_judged_alike_where_no_rule_does() -> None:
    world = Judge(served=0)
    prompts = world.prompts.take(2)
    reward = JudgedReward(world, world, 2.0, judges_alone=True)
    cfg = fakes.config()
    cfg = cfg.model_copy(update={"evaluate": cfg.evaluate.model_copy(update={"samples_per_prompt": 2})})
    found = asyncio.run(Evaluator(cfg, prompts, world, reward).run(0))
    assert found == {"val-core/train/reward/mean_at_2": 0.5, "val-core/train/reward/best_at_2": 1.0}
