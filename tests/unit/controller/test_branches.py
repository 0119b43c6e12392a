"""Branches of an episode: counted once in baselines, with the reward and the advantage of their episode."""

import numpy as np
import pytest

from hybridrl.batch import Batch, TokenBlock
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.controller.advantage import Episodes, load_credit
from hybridrl.rewards.trajectories import share_outcomes
from hybridrl.types import Group, Prompt, Trajectory


def trajectory(row, episode, reward, branch=0, *, agent=0, ended="done"):
    given = {"reward": reward, "episode": episode, "branch": branch, "agent": agent, "ended": ended}
    return Trajectory(row, 1, 2, 2, "stop", 0, **given)


def batch(*groups):
    """Of (episode, reward, branch) for each trajectory of each group."""
    packed = []
    for number, members in enumerate(groups):
        count = len(members)
        block = TokenBlock.from_answers([(1,)] * count, [(2, 3)] * count, [(-1.0, -1.0)] * count, 0)
        prompt = Prompt(f"train/{number}", (1,), {})
        found = [trajectory(row, *member) for row, member in enumerate(members)]
        packed.append(Group(prompt, found, block, index=number))
    return Batch.pack(1, packed)


def advantages(made, **algorithm):
    given = {"samples_per_prompt": 3, "estimator": {"name": "grpo", "scale_by_std": False}, **algorithm}
    credit = load_credit(AlgorithmConfig.model_validate(given))
    credit(made)
    return made.advantage_N.tolist()


def test_an_episode_of_three_branches_weighs_as_much_as_any_other():
    made = batch([(0, 1.0, 0), (0, 1.0, 1), (0, 1.0, 2), (1, 0.0, 0), (2, 0.5, 0)])
    assert advantages(made) == pytest.approx([0.5, 0.5, 0.5, -0.5, 0.0])


def test_without_branches_nothing_changes():
    made = batch([(0, 1.0, 0), (1, 0.0, 0)], [(0, 2.0, 0), (1, 0.0, 0)])
    episodes = Episodes.of(made)
    assert episodes.main_M.tolist() == episodes.of_row_N.tolist() == [0, 1, 2, 3]
    assert advantages(made, samples_per_prompt=2) == pytest.approx([0.5, -0.5, 1.0, -1.0])


def test_answers_without_an_environment_are_episodes_of_their_own():
    made = batch([(0, 1.0, 0), (0, 0.0, 0)])
    for one in made.trajectories:
        one.ended = None
    assert Episodes.of(made).main_M.tolist() == [0, 1]


def test_roles_of_an_episode_each_count():
    made = batch([(0, 1.0, 0), (0, -1.0, 0)])
    made.groups[0].trajectories[1].agent = 1
    assert Episodes.of(made).main_M.tolist() == [0, 1]


def test_shaping_sees_episodes_too():
    made = batch([(0, 5.0, 0), (0, 5.0, 1), (1, 0.0, 0)])
    found = advantages(made, samples_per_prompt=2, shaping=["clip"])
    assert found[0] == found[1] == -found[2] > 0
    np.testing.assert_array_equal(made.reward_N[:2], made.reward_N[0])


def test_branches_get_the_reward_of_the_branch_with_the_last_answer():
    main, branch, other = trajectory(0, 0, 0.7), trajectory(1, 0, None, 1), trajectory(2, 1, None)
    main.reward_parts, other.unjudged = {"exact": 0.7}, "timeout: x"
    lost = trajectory(3, 1, None, 1)
    share_outcomes([main, branch, other, lost])
    assert branch.reward == 0.7 and branch.reward_parts == {"exact": 0.7} and lost.unjudged == "timeout: x"
