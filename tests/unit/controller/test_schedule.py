"""The schedule keeps the bound on staleness, loses and repeats no group, and never stops for good."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_runs import Delays, Simulation

from hybridrl.controller.schedule import Plan, Schedule

PLANS = st.builds(
    Plan,
    prompts_per_step=st.integers(1, 8),
    steps=st.integers(1, 10),
    max_lag=st.integers(1, 8),
    order=st.sampled_from(["fifo", "finished"]),
    stale=st.just("wait"),
    replaced=st.integers(0, 12),
)
DELAYS = st.builds(
    Delays,
    seed=st.integers(0, 10**6),
    slow_share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    slow=st.sampled_from([5.0, 50.0]),
    step_s=st.sampled_from([0.1, 3.0, 30.0]),
    flat_share=st.sampled_from([0.0, 0.3, 1.0]),
    kill_at=st.frozensets(st.integers(1, 9), max_size=3).map(tuple),
)


def every_group_is_accounted_for(run: Simulation) -> None:
    trained = [index for indices in run.trained.values() for index in indices]
    left = [*run.schedule.open, *run.schedule.to_start_again]
    counts = Counter([*trained, *run.dropped, *run.flat, *left])
    flat = set(run.flat)  # a kill may repeat a flat group that was found after the last checkpoint
    assert all(n == 1 for index, n in counts.items() if index not in flat)
    assert set(counts) == set(range(run.schedule.next_index))
    assert not flat & {*trained, *run.dropped}


@settings(max_examples=300, deadline=None)
@given(PLANS, DELAYS)
def test_with_wait_no_group_is_trained_late_lost_or_twice(plan: Plan, delays: Delays) -> None:
    run = Simulation(plan, delays).play()
    assert list(run.trained) == list(range(1, plan.steps + 1))
    assert max(run.lags, default=0) <= plan.max_lag
    assert run.most_open <= (plan.max_lag + 1) * plan.prompts_per_step
    assert not run.dropped and not run.aborts
    every_group_is_accounted_for(run)


@settings(max_examples=150, deadline=None)
@given(PLANS, DELAYS, st.sampled_from(["mask", "drop"]))
def test_mask_and_drop_lose_and_repeat_nothing(plan: Plan, delays: Delays, stale) -> None:
    changed = Plan(
        prompts_per_step=plan.prompts_per_step,
        steps=plan.steps,
        max_lag=plan.max_lag,
        order="finished",
        stale=stale,
        replaced=plan.replaced,
    )
    run = Simulation(changed, delays).play()
    assert list(run.trained) == list(range(1, plan.steps + 1))
    if stale == "drop":
        assert max(run.lags, default=0) <= plan.max_lag
    else:
        assert not run.dropped
    every_group_is_accounted_for(run)


@settings(max_examples=100, deadline=None)
@given(DELAYS, st.integers(1, 8), st.floats(1.0, 2.0), st.integers(0, 8))
def test_on_policy_a_prompt_is_aborted_at_most_once(
    delays: Delays, prompts: int, oversample: float, replaced: int
) -> None:
    plan = Plan(
        prompts_per_step=prompts,
        steps=8,
        order="finished",
        open_groups=int(prompts * oversample),
        replaced=replaced,
    )
    run = Simulation(plan, delays).play()
    assert list(run.trained) == list(range(1, 9))
    assert set(run.lags) <= {0}
    assert max(run.aborts.values(), default=0) <= 1
    every_group_is_accounted_for(run)


@pytest.mark.parametrize("max_lag", [4, 8])
def test_looking_one_step_ahead_would_break_the_bound(max_lag: int) -> None:
    """The groups due by the next step alone say too little: half of the groups are slow here."""

    class OneStep(Schedule):
        def _quotas(self):
            return list(super()._quotas())[:2]

    plan = Plan(prompts_per_step=16, steps=60, max_lag=max_lag, order="finished")
    delays = Delays(slow=60.0, step_s=1.0)
    assert max(Simulation(plan, delays).play().lags) == max_lag
    assert max(Simulation(plan, delays, OneStep).play().lags) > max_lag


def test_finished_groups_go_first_and_the_slow_one_when_it_is_due() -> None:
    schedule = Schedule(Plan(prompts_per_step=1, steps=9, max_lag=1, order="finished"))
    assert schedule.start(schedule.startable()) == [0, 1]
    schedule.finish(1, oldest=0)
    assert schedule.choose().trained == [1]
    schedule.serve(1)
    assert schedule.start(schedule.startable()) == [2]
    schedule.finish(2, oldest=1)
    assert not schedule.ready() and schedule.waits_for_bound
    schedule.finish(0, oldest=0)
    assert schedule.ready() and schedule.choose().trained == [0]


def test_fifo_waits_for_the_next_prompt_in_order() -> None:
    schedule = Schedule(Plan(prompts_per_step=1, steps=9, max_lag=1))
    schedule.start(2)
    schedule.finish(1, oldest=0)
    assert not schedule.ready()
    schedule.finish(0, oldest=0)
    assert [schedule.choose().trained, schedule.choose().trained] == [[0], [1]]


def test_a_flat_group_is_replaced_at_once_until_the_budget_is_used_up() -> None:
    schedule = Schedule(Plan(prompts_per_step=2, steps=1, replaced=1))
    assert schedule.start(schedule.startable()) == [0, 1]
    schedule.finish(0, oldest=0, flat=True)
    assert schedule.start(schedule.startable()) == [2]
    schedule.finish(1, oldest=0, flat=True)
    assert schedule.startable() == 0 and not schedule.ready()
    schedule.finish(2, oldest=0)
    assert schedule.choose().trained == [2]


def test_a_group_that_ended_early_is_no_longer_awaited() -> None:
    plan = Plan(prompts_per_step=1, steps=3, order="finished", open_groups=2)
    schedule = Schedule(plan)
    schedule.start(schedule.startable())
    schedule.finish(1, oldest=0)
    chosen = schedule.choose()
    assert (chosen.trained, chosen.aborted, chosen.unfinished) == ([1], [0], [0])
    assert not schedule.finish(0, oldest=0) and schedule.startable() == 0
    schedule.serve(1)
    assert schedule.start(schedule.startable()) == [0, 2]


def test_answers_of_a_group_that_started_again_since_do_not_finish_it() -> None:
    schedule = Schedule(Plan(prompts_per_step=1, steps=3, order="finished", open_groups=2))
    schedule.start(schedule.startable())
    schedule.finish(1, oldest=0)
    schedule.choose()
    schedule.serve(1)
    assert schedule.start(schedule.startable()) == [0, 2]
    assert not schedule.finish(0, oldest=0) and not schedule.finish(0, oldest=0, flat=True)
    assert schedule.finish(0, oldest=1) and schedule.choose().trained == [0]
