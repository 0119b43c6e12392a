"""What a step trains on: groups that teach something, greedy baselines, texts; and what the rest becomes."""

import asyncio
from dataclasses import dataclass

import controller_fakes as fakes
import pytest

from hybridrl.bench.workloads import fake_clock
from hybridrl.config.schema import AlgorithmConfig, DynamicSamplingConfig
from hybridrl.controller.advantage import load_credit
from hybridrl.controller.loop import run
from hybridrl.controller.selection import with_signal
from hybridrl.types import Group, Prompt, Trajectory


class Uneven(fakes.World):
    """Every other prompt is solved by all answers."""

    async def score(self, groups, *, keep_text=()) -> None:
        await super().score(groups, keep_text=keep_text)
        for group in groups:
            for trajectory in group.trajectories:
                trajectory.text = "an answer"
                if int(group.prompt.uid.split("/")[1]) % 2:
                    trajectory.reward = 1.0


def collected(world: fakes.World, **algorithm):
    return fakes.first_step(fakes.config(algorithm=algorithm), world)


def test_without_dynamic_sampling_every_group_stays() -> None:
    world = Uneven()
    found = collected(world)
    assert [g.prompt.uid for g in found.groups] == [f"train/{i}" for i in range(4)]
    assert world.prompts.taken == 4 and "rollout/kept_share" not in found.metrics


def test_flat_groups_are_replaced_until_the_step_is_full() -> None:
    world = Uneven()
    found = collected(world, dynamic_sampling={})
    assert [g.prompt.uid for g in found.groups] == ["train/0", "train/2", "train/4", "train/6"]
    assert found.metrics["rollout/prompts_sampled"] == world.prompts.taken == 7
    assert found.metrics["rollout/kept_share"] == 4 / 7
    assert found.metrics["rollout/sampled_score"] == 5 / 7  # three groups have 1 and 1, four 0 and 1


def test_a_flat_group_is_replaced_while_others_are_sampled() -> None:
    class Slow(Uneven):
        def seconds(self, task) -> float:
            return 0.05 if task.index == 0 else 0.001

    world = Slow()
    collected(world, dynamic_sampling={})
    order = [event[1] for event in world.events if event[0] == "generated"]
    assert order.index("train/4") < order.index("train/0")


class Solved(fakes.World):
    """Every answer is right, but for those to one prompt."""

    hard = "none"

    async def score(self, groups, *, keep_text=()) -> None:
        for group in groups:
            for i, trajectory in enumerate(group.trajectories):
                trajectory.reward = float(i or group.prompt.uid != self.hard)


def test_when_replacements_are_used_up_a_step_trains_on_what_was_found() -> None:
    world = Solved()
    world.hard = "train/9"
    found = collected(world, dynamic_sampling={"max_rounds": 3})
    assert [g.prompt.uid for g in found.groups] == ["train/9"]
    assert world.prompts.taken == 4 + 4 + 4
    ((about, text),) = world.warnings
    assert about == "dynamic_sampling" and "1 of 4 groups carry a signal after 12 prompts" in text


def test_a_step_on_solved_prompts_has_groups_all_the_same() -> None:
    found = collected(Solved(), dynamic_sampling={"max_rounds": 2})
    assert [group.index for group in found.groups] == [0, 1, 2, 3]
    assert found.metrics["rollout/kept_share"] == 0.0


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
    flat = Group(Prompt("train/1", (1,), {}), [Trajectory(0, 1, 1, 1, "stop", 0, 1.0)], None)
    found = with_signal([flat, group, group], DynamicSamplingConfig(**limits))
    assert found == [False, expected, expected]


def test_remax_takes_the_reward_of_a_greedy_answer_as_its_baseline() -> None:
    world = Uneven(credit=load_credit(AlgorithmConfig.model_validate({"estimator": "remax"})))
    found = collected(world, estimator="remax")
    assert [(t.sampling.temperature, t.greedy and t.greedy.temperature) for t in world.tasks] == [
        (1.0, 0.0)
    ] * 4
    # the fake's reward of the first answer to a prompt, and all there is of a greedy one
    assert [g.greedy_reward for g in found.groups] == [0.0, 1.0, 0.0, 1.0]
    assert [len(g.trajectories) for g in found.groups] == [2] * 4


def test_a_step_keeps_as_many_texts_as_it_shows() -> None:
    found = fakes.first_step(fakes.config(run={"samples_kept": 3}), Uneven())
    assert sum(t.text is not None for group in found.groups for t in group.trajectories) == 3


def test_an_error_of_the_reward_ends_the_run() -> None:
    class Broken(fakes.World):
        async def score(self, groups, *, keep_text=()) -> None:
            raise OSError("no reward")

    with pytest.raises(OSError, match="no reward"):
        collected(Broken())


@dataclass
class Straggler(fakes.World):
    """Every third prompt takes its time."""

    generate_s: float = 0.001

    def seconds(self, task) -> float:
        return 0.03 if task.index % 3 == 0 else self.generate_s


def play(world: fakes.World, **batch) -> fakes.World:
    fake_clock.run(run(fakes.config(batch=batch), world.roles()))
    return world


def shares(metrics: dict[str, float]) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("goodput/"))


@pytest.mark.parametrize(
    "batch",
    [
        {},
        {"max_lag": 2},
        {"max_lag": 2, "order": "finished"},
        {"max_lag": 1, "order": "finished", "stale": "drop"},
        {"max_lag": 1, "order": "finished", "stale": "mask"},
        {"order": "finished", "oversample": 1.5},
    ],
)
def test_every_token_and_every_second_of_an_engine_has_one_cause(batch) -> None:
    world = play(Straggler(update_s=0.002), **batch)
    assert all(shares(metrics) == pytest.approx(1) for metrics in world.metrics)
    names = ("with_gradient", "no_gradient", "stale", "flat", "aborted")
    settled = sum(metrics[f"rollout/tokens/{name}"] for metrics in world.metrics for name in names)
    sampled = sum(metrics["rollout/tokens/sampled"] for metrics in world.metrics)
    assert sampled == settled + world.metrics[-1]["rollout/tokens/in_flight"] > 0


def test_groups_beyond_a_step_are_aborted_and_start_first_in_the_next() -> None:
    world = play(Straggler(), order="finished", oversample=1.5)
    assert all(len(batch.groups) == 4 for batch in world.batches)
    assert {t.version for t in world.batches[1].trajectories} == {1}
    trained = [group.index for batch in world.batches for group in batch.groups]
    assert len(set(trained)) == len(trained)
    again = [task.index for task in world.tasks[6:8]]
    assert again == sorted({0, 1, 2, 3, 4, 5} - set(trained[:4]))
    assert set(again) <= {group.index for group in world.batches[1].groups}
    first = {task.index: task.sampling.seed for task in world.tasks[:6]}
    assert [task.sampling.seed for task in world.tasks[6:8]] == [first[index] for index in again]


def test_dropped_groups_are_counted_and_not_trained_on() -> None:
    class Stuck(fakes.World):
        def seconds(self, task) -> float:
            return 60.0 if task.index == 1 else 0.0

    world = play(Stuck(update_s=0.002), order="finished", stale="drop", max_lag=1)
    trained = [group.index for batch in world.batches for group in batch.groups]
    assert 1 not in trained and len(trained) == 24
    assert sum(metrics["rollout/groups/dropped"] for metrics in world.metrics) == 1
    assert sum(metrics["rollout/tokens/stale"] for metrics in world.metrics) == 1  # what it had sampled


def test_tokens_that_are_too_old_are_masked_and_their_reward_stays() -> None:
    class Late(fakes.World):
        def seconds(self, task) -> float:
            return 0.05 if task.index == 1 else 0.0

    world = play(Late(update_s=0.005), order="finished", stale="mask", max_lag=1)
    (step,) = [batch for batch in world.batches if any(group.index == 1 for group in batch.groups)]
    rows = [n for n, g in enumerate(step.group_N) if step.groups[g].index == 1]
    assert step.step > 2 and step.oldest == step.step - 2
    assert step.trained_N[rows].tolist() == [0, 0] and step.stale_N is not None
    assert step.stale_N[rows].tolist() == [1, 1] and step.stale_N.sum() == 2
    assert step.score_N[rows].tolist() == [0.0, 1.0]
    masked = step.for_ranks([]).with_blocks(step.blocks)
    assert sum(int(block.loss_mask_T.sum()) for block in masked.blocks) == int(step.trained_N.sum())


def test_the_bound_is_what_a_step_waits_for() -> None:
    class OneSlow(fakes.World):
        def seconds(self, task) -> float:
            return 0.05 if task.index == 0 else 0.0

    world = play(OneSlow(), order="finished", max_lag=1)
    assert [min(g.index for g in batch.groups) for batch in world.batches[:2]] == [1, 0]
    assert "wait_for_bound" in world.spans


def test_a_late_reward_of_an_aborted_group_does_not_count_for_its_second_start() -> None:
    class LateReward(fakes.World):
        async def score(self, groups, *, keep_text=()) -> None:
            await super().score(groups, keep_text=keep_text)
            if self.served == 0 and any(group.index == 0 for group in groups):
                await asyncio.sleep(0.05)

        def seconds(self, task) -> float:
            return 0.1 if self.served or task.index == 4 else 0.001 * (1 + (task.index > 0))

    world = play(LateReward(update_s=0.01), order="finished", oversample=1.5)
    assert {t.version for t in world.batches[1].trajectories} == {1}
    assert 0 in {group.index for group in world.batches[1].groups}
    settled = [world.metrics[-1]["rollout/tokens/in_flight"], world.metrics[0]["rollout/tokens/in_flight"]]
    assert settled == [0.0, 2.0]  # the late answers are in flight until their reward comes


class Slow(fakes.World):
    """An episode of every group ended at its deadline."""

    async def score(self, groups, *, keep_text=()) -> None:
        await super().score(groups, keep_text=keep_text)
        for group in groups:
            group.overdue = (f"an episode of {group.prompt.uid} reached its deadline",)


def test_the_user_hears_what_a_program_did_at_its_deadline() -> None:
    world = Slow()
    collected(world)
    assert ("overdue", "an episode of train/0 reached its deadline") in world.warnings
