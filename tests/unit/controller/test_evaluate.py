"""Held-out answers and episodes: how they are sampled, and what is measured of them."""

import asyncio

import controller_fakes as fakes
import pytest

from hybridrl.controller.evaluate import Evaluator, heldout_metrics
from hybridrl.controller.sampling import group_task, heldout_sampling
from hybridrl.controller.stream import refuse_failed
from hybridrl.environments.base import EnvironmentFailedError
from hybridrl.errors import DataError
from hybridrl.types import Group, Prompt, Trajectory


def episode(reward, *, turns=1, agent=0, number=0, ended="done", **reported):
    return Trajectory(
        0,
        1,
        1,
        1,
        "stop",
        0,
        reward,
        turns=turns,
        agent=agent,
        episode=number,
        ended=ended,
        reported=reported,
    )


def group(*members, source="val", failures=()):
    return Group(Prompt("heldout/0", (1,), {}, source), list(members), "block", failures=failures)


def test_pass_at_k_over_episodes_is_of_whole_episodes():
    found = heldout_metrics(
        [
            group(episode(1.0, solved=1.0, turns=2), episode(0.2, turns=4, solved=0.0)),
            group(episode(0.1, solved=0.0, turns=4), episode(0.1, solved=0.0, turns=4)),
        ]
    )
    assert found == pytest.approx(
        {
            "val-core/val/reward/mean_at_2": 0.35,
            "val-core/val/reward/best_at_2": 0.55,
            "val-aux/val/num_turns/mean_at_2": 3.5,
            "val-aux/val/solved/mean_at_2": 0.25,
            "val-aux/val/solved/best_at_2": 0.5,
        }
    )


def test_answers_of_one_turn_have_no_metrics_of_episodes():
    single = Trajectory(0, 1, 1, 1, "stop", 0, 1.0)
    assert heldout_metrics([group(single)]).keys() == {
        "val-core/val/reward/mean_at_1",
        "val-core/val/reward/best_at_1",
    }


def test_budgets_and_sampling_of_an_evaluation_are_its_own():
    cfg = fakes.config(
        evaluate={"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "max_response_tokens": 8},
        rollout={"stop": ("</a>",), "stop_token_ids": (7,)},
    )
    held = heldout_sampling(cfg, 3)
    assert (held.temperature, held.top_p, held.top_k, held.min_p) == (0.7, 0.9, 5, 0.1)
    assert (held.max_response_tokens, held.stop, held.stop_token_ids) == (8, ("</a>",), (7,))
    task = group_task(cfg, 0, Prompt("train/0", (1,), {}), greedy=True)
    for one in (task.sampling, task.greedy):
        assert (one.top_p, one.top_k, one.min_p, one.max_response_tokens) == (1.0, -1, 0.0, 1024)
        assert (one.stop, one.stop_token_ids) == (("</a>",), (7,))


class Engine:
    """Notes what it is asked; every answer is right."""

    def __init__(self):
        self.asked = []

    async def generate(self, prompts, sampling):
        self.asked.append(([p.uid for p in prompts], sampling.max_response_tokens, sampling.seed))
        return [group(Trajectory(0, 1, 1, 1, "stop", 0, 1.0)) for _ in prompts]


class Reward:
    async def score(self, groups, *, keep_text=()):
        return None


def test_prompts_have_limits_of_their_own():
    cfg = fakes.config(rollout={"limit_field": "most", "max_response_tokens": 16})
    rows = [{"most": 4}, {}, {"most": 4}, {"most": 99}, {"most": None}]
    prompts = [Prompt(f"heldout/{i}", (1,), row) for i, row in enumerate(rows)]
    tasks = [group_task(cfg, i, prompt, greedy=False) for i, prompt in enumerate(prompts)]
    assert [task.sampling.max_response_tokens for task in tasks] == [4, 16, 4, 16, 16]
    engine = Engine()
    asyncio.run(Evaluator(cfg, prompts, engine, Reward()).run(0))
    assert [(uids, most) for uids, most, _ in engine.asked] == [
        (["heldout/0", "heldout/2"], 4),
        (["heldout/1", "heldout/3", "heldout/4"], 16),
    ]
    assert len({seed for *_, seed in engine.asked}) == 2


def test_many_prompts_are_answered_in_parts_with_the_seeds_of_one_call():
    cfg = fakes.config(evaluate={"samples_per_prompt": 4, "temperature": 1.0})
    prompts = [Prompt(f"heldout/{i}", (1,), {}) for i in range(150)]
    engine, told = Engine(), []
    advance = lambda done, total: told.append((done, total))
    asyncio.run(Evaluator(cfg, prompts, engine, Reward(), advance=advance).run(0))
    first = heldout_sampling(cfg, 0).seed
    assert [(len(uids), seed - first) for uids, _, seed in engine.asked] == [(64, 0), (64, 256), (22, 512)]
    assert told == [(64, 150), (128, 150), (150, 150)]


@pytest.mark.parametrize("value", [0, -1, "many", 1.5, True])
def test_a_limit_that_is_no_number_of_tokens_is_refused(value):
    cfg = fakes.config(rollout={"limit_field": "most"})
    with pytest.raises(DataError, match=f"prompt train/0: most = {value!r} is no number of tokens"):
        group_task(cfg, 0, Prompt("train/0", (1,), {"most": value}), greedy=False)


def test_a_quarter_of_failed_episodes_may_fail_and_no_more():
    played = [episode(0.0, number=i) for i in range(3)]
    refuse_failed([group(*played, failures=("step took 30 s",))])
    with pytest.raises(EnvironmentFailedError, match="2 of 5 episodes of a step failed.*step took 30 s"):
        refuse_failed([group(*played, failures=("step took 30 s", "the process died"))])
    refuse_failed([group(Trajectory(0, 1, 1, 1, "stop", 0, 1.0))])


def test_roles_of_an_episode_count_as_one():
    roles = [episode(0.0, agent=agent, number=i) for i in range(3) for agent in (0, 1)]
    with pytest.raises(EnvironmentFailedError, match="2 of 5"):
        refuse_failed([group(*roles, failures=("a", "b"))])


def test_a_group_whose_episodes_all_failed_is_no_played_one():
    left = episode(0.0, ended="failed")
    with pytest.raises(EnvironmentFailedError, match="4 of 4"):
        refuse_failed([group(left, failures=("a",) * 4)])
