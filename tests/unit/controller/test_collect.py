"""What a step trains on: groups that teach something, greedy baselines, and no seed twice."""

import asyncio
from dataclasses import dataclass, field

import controller_fakes as fakes
import pytest

from hybridrl.config.schema import AlgorithmConfig, DynamicSamplingConfig
from hybridrl.controller.advantage import load_credit
from hybridrl.controller.collect import collect, has_signal
from hybridrl.types import Group, Prompt, Trajectory


@dataclass
class Uneven(fakes.World):
    """Every other prompt is solved by all answers; requests and their seeds are noted."""

    requests: list[tuple[int, int, float]] = field(default_factory=list)

    async def generate(self, prompts, sampling):
        self.requests.append((sampling.seed, len(prompts) * sampling.num_samples, sampling.temperature))
        return await super().generate(prompts, sampling)

    async def score(self, groups, *, keep_text=0) -> None:
        await super().score(groups, keep_text=keep_text)
        for group in groups:
            if int(group.prompt.uid.split("/")[1]) % 2:
                for trajectory in group.trajectories:
                    trajectory.reward = 1.0


def collected(world: fakes.World, **algorithm):
    world.served = 0
    cfg = fakes.config(algorithm=algorithm)
    return asyncio.run(collect(cfg, world.roles(), step=1))


def test_without_dynamic_sampling_every_group_stays() -> None:
    world = Uneven()
    found = collected(world)
    assert [g.prompt.uid for g in found.groups] == [f"train/{i}" for i in range(4)]
    assert found.position == {"taken": 4} and found.metrics == {}


def test_flat_groups_are_replaced_until_the_step_is_full() -> None:
    world = Uneven()
    found = collected(world, dynamic_sampling={})
    assert [g.prompt.uid for g in found.groups] == ["train/0", "train/2", "train/4", "train/6"]
    assert found.metrics["rollout/rounds"] == len(world.requests) == 2
    assert found.metrics["rollout/prompts_sampled"] == world.prompts.taken == 8
    assert found.metrics["rollout/kept_share"] == 0.5
    assert found.metrics["rollout/sampled_score"] == 0.75  # half the groups have 1 and 1, half 0 and 1
    assert found.position == {"taken": 8}


def test_rounds_of_a_step_share_no_seed() -> None:
    world = Uneven()
    collected(world, dynamic_sampling={})
    used = [seed + i for seed, count, _ in world.requests for i in range(count)]
    assert len(set(used)) == len(used)


class Solved(fakes.World):
    """Every answer is right, but for those to one prompt."""

    hard = "none"

    async def score(self, groups, *, keep_text=0) -> None:
        for group in groups:
            for i, trajectory in enumerate(group.trajectories):
                trajectory.reward = float(i or group.prompt.uid != self.hard)


def test_after_the_last_round_a_step_trains_on_what_was_found() -> None:
    world = Solved()
    world.hard = "train/9"
    found = collected(world, dynamic_sampling={"max_rounds": 3})
    assert [g.prompt.uid for g in found.groups] == ["train/9"]
    assert world.prompts.taken == 4 + 4 + 4 and found.metrics["rollout/rounds"] == 3
    ((about, text),) = world.warnings
    assert about == "dynamic_sampling" and "1 of 4 groups carry a signal after 3 rounds" in text


def test_a_step_on_solved_prompts_has_groups_all_the_same() -> None:
    found = collected(Solved(), dynamic_sampling={"max_rounds": 2})
    assert len(found.groups) == 4 and found.metrics["rollout/kept_share"] == 0.0


@pytest.mark.parametrize(
    "rewards,limits,expected",
    [
        ([0, 1, 1, 1], {}, True),
        ([1, 1, 1, 1], {}, False),
        ([0, 1, 1, 1], {"highest": 0.7}, False),
        ([0, 0, 0, 1], {"lowest": 0.3}, False),
        ([0, 0, 1, 1], {"lowest": 0.3, "highest": 0.7}, True),
        ([0.1, 0.2, 0.3, 0.9], {"highest": 0.5}, False),
        ([0.1, 0.2, 0.3, 0.9], {"highest": 0.5, "solved_above": 0.5}, True),
    ],
)
def test_which_groups_teach(rewards, limits, expected) -> None:
    answers = [Trajectory(i, 1, 1, 1, "stop", 0, float(reward)) for i, reward in enumerate(rewards)]
    group = Group(Prompt("train/0", (1,), {}), answers, None)
    assert has_signal(group, DynamicSamplingConfig(**limits)) == expected


def test_remax_takes_the_reward_of_a_greedy_answer_as_its_baseline() -> None:
    world = Uneven(credit=load_credit(AlgorithmConfig(estimator={"name": "remax"})))
    found = collected(world, estimator="remax")
    assert [temperature for _, _, temperature in world.requests] == [1.0, 0.0]
    assert [count for _, count, _ in world.requests] == [8, 4]
    # the fake's reward of the first answer to a prompt, and all there is of a greedy one
    assert [g.greedy_reward for g in found.groups] == [0.0, 1.0, 0.0, 1.0]
    assert [len(g.trajectories) for g in found.groups] == [2] * 4
