"""mean@k and pass@k with their intervals, against sums over all subsets and the intervals of textbooks."""

import itertools
import math
import random

import pytest

from hybridrl.serve.estimates import mean_at_k, over_prompts, pass_at_k, share


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_subsets_with_a_solved_answer(k: int) -> None:
    rewards = [[0.0, 1.0, 0.0, 1.0, 0.0], [0.0] * 5, [1.0] * 5]
    expected = [
        sum(any(reward > 0 for reward in subset) for subset in itertools.combinations(own, k))
        / math.comb(5, k)
        for own in rewards
    ]
    assert pass_at_k(rewards, k, solved_above=0.0).value == pytest.approx(sum(expected) / 3)


def test_an_answer_is_solved_above_the_limit_and_not_at_it() -> None:
    rewards = [[0.1, 0.1], [0.5, 0.1]]
    assert pass_at_k(rewards, 2, solved_above=0.1).value == 0.5
    assert pass_at_k(rewards, 2, solved_above=0.0).value == 1.0


def test_a_proportion_has_the_interval_of_wilson() -> None:
    found = share([1.0] * 81 + [0.0] * 182)  # the example of Newcombe 1998, table I; z of Student
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=2e-3)


def test_equal_values_have_an_interval_that_is_not_empty() -> None:
    found = pass_at_k([[1.0]] * 20, 1, solved_above=0.0)
    assert found.value == found.high == 1.0 and 0.7 < found.low < 0.9
    none = pass_at_k([[0.0]] * 20, 1, solved_above=0.0)
    assert none.value == none.low == 0.0 and 0.1 < none.high < 0.3


def test_rewards_of_any_range_have_the_interval_of_student() -> None:
    found = mean_at_k([[-1.0, 3.0], [2.0, 4.0], [0.0, 2.0]])  # means 1, 3, 1
    half = 4.302653 * math.sqrt(4 / 3 / 3)
    assert (found.value, found.low, found.high) == pytest.approx((5 / 3, 5 / 3 - half, 5 / 3 + half))
    assert math.isnan(over_prompts([2.0]).low) and math.isnan(share([1.0]).high)


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    chance, hits, shares = random.Random(0), 0, [0.2, 0.5, 0.9]
    for _ in range(400):
        truths = [chance.choice(shares) for _ in range(60)]
        rewards = [[float(chance.random() < p) for _ in range(4)] for p in truths]
        found = mean_at_k(rewards)
        hits += found.low <= sum(shares) / 3 <= found.high
    assert 0.92 <= hits / 400 <= 0.98
