"""Answers whose judge failed: they leave their groups, are counted, and end the run if they are many."""

import controller_fakes as fakes
import pytest

from hybridrl.bench.workloads import fake_clock
from hybridrl.controller.evaluate import Evaluator
from hybridrl.controller.loop import run
from hybridrl.controller.unjudged import leave_out, num_episodes, refuse_unjudged, unjudged_metrics
from hybridrl.errors import RewardError
from hybridrl.types import Group, Prompt, Trajectory


def trajectory(episode=0, *, unjudged="", agent=0, ended="done"):
    reward = None if unjudged else 1.0
    given = {"reward": reward, "unjudged": unjudged, "episode": episode, "agent": agent, "ended": ended}
    return Trajectory(0, 1, 2, 2, "stop", 0, **given)


def group(*trajectories, greedy=None):
    prompt = Prompt("train/0", (1,), {})
    return Group(prompt, list(trajectories), "block", greedy=greedy)


def test_an_answer_without_a_reward_leaves_its_group_and_the_others_stay():
    one = group(trajectory(0), trajectory(1, unjudged="timeout: 5 s"), trajectory(2))
    assert leave_out([one]) == 2
    assert [t.episode for t in one.trajectories] == [0, 2] and one.unjudged == ("timeout: 5 s",)


def test_an_answer_without_an_environment_leaves_alone():
    one = group(*(trajectory(0, ended=None, unjudged=why) for why in ("", "timeout: x", "")))
    leave_out([one])
    assert len(one.trajectories) == 2 and len(one.unjudged) == 1 and num_episodes([one]) == 2


def test_all_roles_of_an_episode_leave_together():
    one = group(
        trajectory(0), trajectory(0, agent=1, unjudged="garbage: x"), trajectory(1), trajectory(1, agent=1)
    )
    assert leave_out([one]) == 4
    assert [(t.episode, t.agent) for t in one.trajectories] == [(1, 0), (1, 1)]
    assert one.unjudged == ("garbage: x",)


def test_a_group_without_a_greedy_reward_leaves():
    greedy = group(trajectory(unjudged="http_500"))
    one = group(trajectory(0), trajectory(1), greedy=greedy)
    leave_out([one])
    assert one.trajectories == [] and one.unjudged == ("http_500", "http_500")


@pytest.mark.parametrize(
    ("failures", "judged", "most", "refused"),
    [
        (0, 0, 0.0, False),
        (1, 99, 0.0, True),
        (25, 75, 0.25, False),
        (26, 74, 0.25, True),
        (3, 0, 1.0, True),
    ],
)
def test_too_many_end_the_run(failures, judged, most, refused):
    def look():
        refuse_unjudged(
            ["timeout: first", *["x: y"] * failures][:failures], judged=judged, most=most, what="step 3"
        )

    if refused:
        text = (
            f"{failures} of {failures + judged} answers of step 3.*max_unjudged = {most:g}; the first: time"
        )
        with pytest.raises(RewardError, match=text):
            look()
    else:
        look()


def test_failures_are_counted_by_kind():
    assert unjudged_metrics(["timeout: a", "timeout: b", "http_500: c"]) == {
        "reward/unjudged": 3.0,
        "reward/unjudged/timeout": 2.0,
        "reward/unjudged/http_500": 1.0,
    }


class FailingJudge(fakes.World):
    """No reward for the second answer to every prompt in `fails`."""

    fails: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()

    async def score(self, groups, *, keep_text=()) -> None:
        await super().score(groups, keep_text=keep_text)
        for one in groups:
            for i, t in enumerate(one.trajectories):
                if (one.prompt.uid in self.fails and i == 1) or one.prompt.uid in self.whole:
                    t.reward, t.unjudged = None, "timeout: no reply"


def trained(world, **reward):
    cfg = fakes.config(
        run={"steps": 2, "evaluate_every": 0},
        **({"reward": {"name": "exact_match", **reward}} if reward else {}),
    )
    fake_clock.run(run(cfg, world.roles()))
    return world


def test_a_run_goes_on_without_the_answers_that_have_no_reward():
    world = FailingJudge()
    world.fails, world.whole = ("train/1",), ("train/6",)
    trained(world, max_unjudged=0.5)
    sizes = [[len(g.trajectories) for g in batch.groups] for batch in world.batches]
    assert sizes == [[2, 1, 2, 2], [2, 2, 2]]
    assert world.metrics[0]["reward/unjudged"] == 1.0 and world.metrics[1]["reward/unjudged/timeout"] == 2.0
    assert ("unjudged", "an answer has no reward: timeout: no reply") in world.warnings


def test_a_run_ends_at_the_first_one_if_the_config_says_so():
    world = FailingJudge()
    world.fails = ("train/1",)
    with pytest.raises(RewardError, match="1 of 8 answers of step 1.*max_unjudged = 0; the first: timeout"):
        trained(world, max_unjudged=0.0)


def test_held_out_answers_without_a_reward_are_no_zeros():
    class Judge:
        async def score(self, groups, *, keep_text=()):
            for number, one in enumerate(groups):
                for t in one.trajectories:
                    t.reward = None if number == 0 else 1.0
                    t.unjudged = "" if number else "timeout: x"

    prompts = [Prompt(f"heldout/{i}", (1,), {}, source="s") for i in range(4)]
    found = fake_clock.run(Evaluator(fakes.config(), prompts, fakes.World(served=0), Judge()).run(1))
    assert found["val-core/s/reward/mean_at_1"] == 1.0 and found["val-aux/unjudged"] == 1.0
