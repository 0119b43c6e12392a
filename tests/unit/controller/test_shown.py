"""Which answers a user reads does not depend on the order in which they end."""

import random

import pytest

from hybridrl.controller.shown import evenly, of_groups, of_lot
from hybridrl.types import Group, Prompt, Trajectory


def _groups(count: int, samples: int = 4) -> list[Group]:
    return [
        Group(
            Prompt(f"train/{i}", (1,), {}),
            [Trajectory(row, 1, 1, 1, "stop", 0) for row in range(samples)],
            None,
            index=i,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("prompts_per_step, count", [(16, 2), (16, 3), (512, 3), (4, 8)])
def test_lots_of_any_order_and_size_keep_the_same_answers(prompts_per_step: int, count: int) -> None:
    groups, rng = _groups(prompts_per_step), random.Random(7)
    expected = {id(t) for t in of_lot(groups, prompts_per_step, count)}
    assert len(expected) >= min(prompts_per_step, count)
    for _ in range(5):
        rng.shuffle(groups)
        cut = rng.randrange(1, prompts_per_step)
        kept = [t for lot in (groups[:cut], groups[cut:]) for t in of_lot(lot, prompts_per_step, count)]
        assert {id(t) for t in kept} == expected


def test_answers_of_a_step_have_different_places_in_their_groups() -> None:
    groups = _groups(16)
    assert {t.row for t in of_lot(groups, 16, 1)} == {0, 1, 2, 3}
    assert not of_lot(groups, 16, 0)


def test_branches_are_not_shown() -> None:
    (group,) = _groups(1, samples=2)
    group.trajectories[0].branch = 1
    assert [t.row for t in of_groups([group])] == [1]
    assert [t.row for t in of_lot([group], 1, 3)] == [1]


def test_some_are_spread_evenly_over_all() -> None:
    (group,) = _groups(1, samples=9)
    assert [t.row for t in evenly(group.trajectories, 3)] == [0, 3, 6]
    assert len(evenly(group.trajectories, 20)) == 9 and evenly([], 3) == []
