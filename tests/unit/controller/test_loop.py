"""The loop on in-process fakes: order, staleness, errors, where it stops and where it goes on."""

import re

import controller_fakes as fakes
import pytest

from hybridrl.bench.workloads import fake_clock
from hybridrl.config.run_shape import engines_sleep
from hybridrl.controller.evaluate import Evaluator
from hybridrl.controller.loop import run


def play(cfg, world, resumed=None) -> None:
    evaluator = Evaluator(cfg, [fakes.Prompt("held/0", (1,), {}, "held")], world, world)
    fake_clock.run(run(cfg, world.roles(evaluator), resumed))


def test_a_synchronous_step_samples_from_the_version_before_it() -> None:
    world = fakes.World()
    play(fakes.config(), world)
    assert [batch.step for batch in world.batches] == [1, 2, 3, 4, 5, 6]
    assert [{t.version for t in batch.trajectories} for batch in world.batches] == [
        {0},
        {1},
        {2},
        {3},
        {4},
        {5},
    ]


@pytest.mark.parametrize("max_lag", [1, 2, 3])
def test_answers_are_at_most_max_lag_updates_old_and_the_bound_is_reached(max_lag: int) -> None:
    world = fakes.World(
        update_s=0.01
    )  # a trainer slower than the engine: rollout runs ahead as far as it may
    play(fakes.config(batch={"max_lag": max_lag}), world)
    lags = [batch.step - 1 - t.version for batch in world.batches for t in batch.trajectories]
    assert max(lags) == max_lag
    assert min(lags) >= 0
    assert max(metrics["rollout/lag/max"] for metrics in world.metrics) == max_lag


def test_engines_rest_while_the_trainer_works_unless_they_run_ahead() -> None:
    def phases(max_lag: int) -> str:
        world = fakes.World()
        play(fakes.config(batch={"max_lag": max_lag}), world)
        letters = {"generated": "g", "sleep": "r", "load": "l"}
        return "".join(letters.get(event[0], "") for event in world.events)

    assert re.fullmatch("(g+rl){6}g*", phases(max_lag=0))
    assert "r" not in phases(max_lag=1)


@pytest.mark.parametrize(
    ("max_lag", "swap", "gpus", "expected"),
    [(0, "drain", 0, True), (1, "drain", 8, False), (1, "in_flight", 0, False), (1, "in_flight", 8, True)],
)
def test_engines_sleep_if_nothing_runs_or_requests_can_be_paused(max_lag, swap, gpus, expected) -> None:
    rollout, cluster = {"swap": swap}, {"gpus_per_node": gpus}
    cfg = fakes.config(batch={"max_lag": max_lag}, rollout=rollout, cluster=cluster)
    assert engines_sleep(cfg) == expected


@pytest.mark.parametrize("max_lag", [0, 2])
def test_no_prompt_is_taken_that_no_step_trains_on(max_lag: int) -> None:
    world = fakes.World()
    play(fakes.config(batch={"max_lag": max_lag}), world)
    assert world.prompts.taken == 6 * 4


def test_groups_are_trained_in_the_order_of_their_prompts() -> None:
    world = fakes.World()
    play(fakes.config(batch={"max_lag": 1}), world)
    uids = [group.prompt.uid for batch in world.batches for group in batch.groups]
    assert uids == [f"train/{i}" for i in range(24)]


def test_held_out_is_measured_before_at_the_interval_and_at_the_end() -> None:
    world = fakes.World()
    play(fakes.config(run={"steps": 5}), world)
    assert sorted(world.evaluations) == [0, 2, 4, 5]
    assert world.evaluations[0] == {
        "val-core/held/reward/mean_at_1": 0.0,
        "val-core/held/reward/best_at_1": 0.0,
    }


def test_checkpoints_come_at_the_interval_and_at_the_end() -> None:
    world = fakes.World()
    play(fakes.config(run={"steps": 5}), world)
    assert [event[1] for event in world.events if event[0] == "save"] == [3, 5]


@pytest.mark.parametrize("max_lag", [0, 2])
def test_a_run_that_is_asked_to_stop_ends_its_step_and_saves_it(max_lag: int) -> None:
    world = fakes.World(stop_in_step=4, update_s=0.01)
    play(fakes.config(batch={"max_lag": max_lag}), world)
    assert [batch.step for batch in world.batches] == [1, 2, 3, 4] and world.version == world.served == 4
    assert 4 in world.evaluations


def test_a_stop_that_comes_in_the_last_step_saves_it_once() -> None:
    world = fakes.World(stop_in_step=6)
    play(fakes.config(), world)
    assert [event[1] for event in world.events if event[0] == "save"] == [3, 6]


@pytest.mark.parametrize("max_lag", [0, 2])
@pytest.mark.parametrize("stop_in_step", [None, 4])
def test_a_checkpoint_holds_every_group_that_was_started_and_not_trained_on(
    max_lag: int, stop_in_step
) -> None:
    world = fakes.World(update_s=0.01, stop_in_step=stop_in_step)
    play(fakes.config(batch={"max_lag": max_lag}), world)
    saves = [event for event in world.events if event[0] == "save"]
    for (_, step, progress), groups in zip(saves, world.saved, strict=True):
        trained = [group.index for batch in world.batches[:step] for group in batch.groups]
        kept = [*groups.indices, *groups.unfinished]
        assert sorted([*trained, *kept]) == list(range(progress["prompts"]["taken"]))
        assert bool(kept) == (max_lag > 0 and step < 6)


@pytest.mark.parametrize("max_lag", [0, 2])
def test_a_resumed_run_trains_on_what_the_uninterrupted_one_trains_on(max_lag: int) -> None:
    cfg = fakes.config(batch={"max_lag": max_lag})
    whole, rest = fakes.World(update_s=0.01), fakes.World(update_s=0.01, version=3)
    play(cfg, whole)
    rest.prompts.load_state_dict(next(event for event in whole.events if event[0] == "save")[2]["prompts"])
    play(cfg, rest, whole.saved[0])
    assert [batch.step for batch in rest.batches] == [4, 5, 6]
    for again, first in zip(rest.batches, whole.batches[3:], strict=True):
        assert [g.index for g in again.groups] == [g.index for g in first.groups]
        assert [g.prompt for g in again.groups] == [g.prompt for g in first.groups]
        assert again.score_N.tolist() == first.score_N.tolist()
        assert min(t.version for t in again.trajectories) >= again.step - 1 - max_lag
    seeds = {task.index: task.sampling.seed for task in whole.tasks}
    assert all(seeds[task.index] == task.sampling.seed for task in rest.tasks)
    assert len(set(seeds.values())) == len(seeds)


@pytest.mark.parametrize("max_lag", [0, 1])
def test_an_error_of_the_engine_ends_the_run_after_the_steps_that_were_sampled(max_lag: int) -> None:
    world = fakes.World(fail_at_prompt=9)
    with pytest.raises(RuntimeError, match="engine broke"):
        play(fakes.config(batch={"max_lag": max_lag}), world)
    assert [batch.step for batch in world.batches] == [1, 2]


def test_a_swap_that_fails_ends_the_run() -> None:
    class Torn(fakes.World):
        async def push(self, version):
            if version == 2:
                raise ValueError("torn")
            return await super().push(version)

    world = Torn()
    with pytest.raises(ValueError, match="torn"):
        play(fakes.config(), world)
    assert [event for event in world.events if event[0] == "observed"] == [("observed", 1)]


def test_findings_of_a_step_reach_the_person() -> None:
    world = fakes.World()
    world.prompts.take = lambda count: [fakes.Prompt("train/0", (1, 2), {})] * count
    play(fakes.config(run={"steps": 1}), world)
    assert {about for about, _ in world.warnings} == {"groups", "mask"}
