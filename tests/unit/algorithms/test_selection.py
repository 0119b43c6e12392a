"""Choices over a whole batch: exact, and the same for any split over ranks."""

import math
from collections import Counter

import pytest
import torch

from hybridrl.algorithms.base import OneRank, Tokens
from hybridrl.algorithms.selection import (
    draw_copies,
    largest_share,
    random_per_token,
    smallest_with_mean,
    token_covariance,
)


def flat_tokens(count):
    return Tokens(torch.zeros(count, dtype=torch.int64), torch.ones(count, dtype=torch.bool), 1)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 1.0])
def test_the_largest_share_is_the_top_of_the_sorted_list(ragged, share):
    batch = ragged(0)
    value_T = batch.columns["value"].float()
    trained = sorted(value_T[batch.mask_T].tolist(), reverse=True)
    expected = set(trained[: max(int(share * len(trained)), 1)])
    chosen_T = largest_share(value_T, share, batch.tokens, OneRank())
    assert set(value_T[chosen_T].tolist()) == expected and not chosen_T[~batch.mask_T].any()


@pytest.mark.parametrize(
    "values", [[-1.0, 2.0, -3.0, 0.0], [1e-30, -1e-30, 1e30, -1e30], [-0.5, -0.25, -2.0, -1.0]]
)
def test_order_holds_for_both_signs_and_all_sizes(values):
    chosen_T = largest_share(torch.tensor(values), 0.5, flat_tokens(4), OneRank())
    assert sorted(torch.tensor(values)[chosen_T].tolist()) == sorted(torch.tensor(values).tolist())[2:]


def test_ties_at_the_border_are_all_in():
    # By position they would depend on which rank holds which trajectory.
    assert largest_share(torch.tensor([1.0, 5.0, 5.0, 5.0]), 0.25, flat_tokens(4), OneRank()).tolist() == [
        0,
        1,
        1,
        1,
    ]


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_choose_what_one_rank_would(ragged, run_ranks, num_ranks):
    batch = ragged(1)
    mine = [list(range(r, len(batch.reward_N), num_ranks)) for r in range(num_ranks)]

    def choose(part, reduce):
        covariance_T = token_covariance(
            part.columns["advantage"], part.columns["old_logp"], part.tokens, reduce
        )
        share_T = largest_share(covariance_T, 0.1, part.tokens, reduce)
        kept_T = smallest_with_mean(part.columns["value"].square(), 0.3, part.tokens, reduce)
        return torch.stack([share_T, kept_T, random_per_token(7, 3, part.tokens)])

    whole = choose(batch, OneRank())
    for rank, found in enumerate(run_ranks(num_ranks, lambda r, reduce: choose(batch.rows(mine[r]), reduce))):
        here_T = torch.isin(batch.seq_T, torch.tensor(mine[rank])) & batch.mask_T
        assert torch.equal(found[:, batch.rows(mine[rank]).mask_T], whole[:, here_T])


def test_covariance_by_hand(ragged):
    batch = ragged(2)
    a, b = (torch.tensor(sum(batch.trained(n), [])).double() for n in ("advantage", "old_logp"))
    found_T = token_covariance(batch.columns["advantage"], batch.columns["old_logp"], batch.tokens, OneRank())
    expected = (a - a.mean()) * (b - b.mean())
    torch.testing.assert_close(found_T[batch.mask_T].float(), expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bound", [1e-9, 0.05, 0.5, 100.0])
def test_as_many_of_the_smallest_as_the_mean_allows(ragged, bound):
    batch = ragged(3)
    value_T = batch.columns["value"].square().float()
    ranked = sorted(value_T[batch.mask_T].tolist())
    keep = max((k for k in range(len(ranked) + 1) if sum(ranked[:k]) <= bound * k), default=0)
    kept_T = smallest_with_mean(value_T, bound, batch.tokens, OneRank())
    assert sorted(value_T[kept_T].tolist()) == ranked[:keep]


def test_random_numbers_are_uniform_and_fresh_at_every_step():
    draws = [random_per_token(0, step, flat_tokens(20_000)) for step in (0, 1)]
    for draw_T in draws:
        assert abs(float(draw_T.mean()) - 0.5) < 0.01 and abs(float(draw_T.var()) - 1 / 12) < 0.003
    assert abs(float(torch.corrcoef(torch.stack(draws))[0, 1])) < 0.03
    assert torch.equal(draws[0], random_per_token(0, 0, flat_tokens(20_000)))


def test_an_empty_batch_chooses_nothing():
    none = torch.zeros(0)
    assert len(largest_share(none, 0.5, flat_tokens(0), OneRank())) == 0
    assert len(smallest_with_mean(none, 0.5, flat_tokens(0), OneRank())) == 0


def test_copies_follow_the_power_of_the_reward():
    reward_N, group_N = torch.tensor([0.0, 1.0, -2.0]), torch.zeros(3, dtype=torch.int64)
    counts = Counter()
    for step in range(2000):
        drawn = draw_copies(reward_N, group_N, "pow", power=2.0, seed=(0, step)).tolist()
        counts.update(dict(enumerate(drawn)))
        assert sum(drawn) == 3
    # 6000 draws with probabilities 0, 1/5, 4/5: a deviation of 0.03 is six standard deviations
    assert counts[0] == 0 and counts[1] / 6000 == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("way", ["max_min", "max_random"])
def test_two_ends_of_each_group(ragged, way):
    batch = ragged(4)
    copies = draw_copies(batch.reward_N, batch.group_N, way, power=2.0, seed=(0, 0)).tolist()
    for g in set(batch.groups):
        own = [i for i, h in enumerate(batch.groups) if h == g]
        drawn = [batch.rewards[i] for i in own if copies[i]]
        assert len(drawn) == 2 and max(batch.rewards[i] for i in own) in drawn
        assert way == "max_random" or min(batch.rewards[i] for i in own) in drawn


def test_all_rewards_zero_are_drawn_alike():
    drawn = draw_copies(torch.zeros(4), torch.zeros(4, dtype=torch.int64), "pow", power=2.0, seed=(0, 0))
    assert int(drawn.sum()) == 4 and math.isfinite(float(drawn.max()))
