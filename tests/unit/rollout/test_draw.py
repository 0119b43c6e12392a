"""Counter-based sampling: the distribution is right, and a draw depends on seed and position only."""

import pytest
import torch

from hybridrl.rollout.draw import draw, truncated, uniform

SPREAD = torch.tensor([0.5, 0.0, 0.25, 0.125, 0.0, 0.125])


def repeated(weight_V, rows):
    return weight_V.expand(rows, -1)


def counters(rows):
    """Seeds and positions as a run has them: neighbouring numbers."""
    index = torch.arange(rows)
    return 7_919_000 + index // 8, index % 8


def test_a_draw_is_the_same_in_any_company():
    seed, position = counters(64)
    weight = torch.rand(64, 50, generator=torch.Generator().manual_seed(0))
    together = draw(weight, seed, position)
    alone = torch.cat([draw(weight[i : i + 1], seed[i : i + 1], position[i : i + 1]) for i in range(64)])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(together, alone)
    assert torch.equal(draw(weight[order], seed[order], position[order]), together[order])


def test_frequencies_are_the_weights():
    rows = 200_000
    drawn = draw(repeated(SPREAD, rows), *counters(rows)).bincount(minlength=6)
    # Five standard deviations of a binomial count; columns of weight zero are never drawn.
    bound = 5 * (rows * SPREAD * (1 - SPREAD)).sqrt()
    assert ((drawn - rows * SPREAD).abs() <= bound).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_weights_need_not_sum_to_one(scale):
    weight = repeated(SPREAD, 1000)
    assert torch.equal(draw(weight * scale, *counters(1000)), draw(weight, *counters(1000)))


def test_a_column_of_weight_zero_is_never_drawn_not_even_at_the_edges():
    weight = torch.tensor([0.0, 1e-30, 0.0, 1.0, 0.0, 0.0])
    assert set(draw(repeated(weight, 10_000), *counters(10_000)).tolist()) <= {1, 3}


@pytest.mark.parametrize("step", ["seed", "position"])
def test_neighbouring_counters_are_independent(step):
    index, same = torch.arange(100_000), torch.zeros(100_000, dtype=torch.int64)
    number = uniform(index, same) if step == "seed" else uniform(same, index)
    assert 0 <= number.min() and number.max() < 1
    centred = number - 0.5
    # Mean and lag-one correlation of uniform numbers are within five standard deviations of zero.
    assert abs(centred.mean()) < 5 * (1 / 12 / 100_000) ** 0.5
    assert abs((centred[1:] * centred[:-1]).mean()) < 5 * (1 / 144 / 100_000) ** 0.5
    assert number.histc(16, 0, 1).sub(100_000 / 16).abs().max() < 5 * (100_000 / 16) ** 0.5


def test_seed_and_position_do_not_cancel():
    seed, position = torch.arange(300), torch.arange(300)
    grid = uniform(seed.repeat_interleave(300), position.repeat(300))
    assert len(grid.unique()) == 300 * 300


def kept(prob, top_k, top_p, min_p):
    """Token by token, as the docstring says it."""
    order = sorted(range(len(prob)), key=lambda token: -prob[token])
    found = set()
    for rank, token in enumerate(order):
        likelier = sum(prob[t] for t in order[:rank])
        if rank < top_k and likelier <= top_p and prob[token] >= min_p * prob[order[0]]:
            found.add(token)
    return found


@pytest.mark.parametrize(
    "top_k, top_p, min_p", [(2, 1.0, 0.0), (99, 0.6, 0.0), (99, 1.0, 0.3), (3, 0.7, 0.2)]
)
def test_truncation_keeps_what_each_rule_keeps(top_k, top_p, min_p):
    prob = torch.tensor([0.08, 0.4, 0.02, 0.3, 0.2])
    weight = truncated(
        prob[None], torch.tensor([top_k]), torch.tensor([top_p]), torch.tensor([min_p]) if min_p else None
    )
    stays = weight[0] > 0
    assert set(stays.nonzero().flatten().tolist()) == kept(prob.tolist(), top_k, top_p, min_p)
    assert torch.equal(weight[0][stays], prob[stays])


def test_rows_are_truncated_by_their_own_rules():
    prob = torch.tensor([[0.5, 0.3, 0.2]]).repeat(3, 1)
    weight = truncated(prob, torch.tensor([1, 3, 3]), torch.tensor([1.0, 0.4, 1.0]), None)
    assert (weight > 0).sum(dim=1).tolist() == [1, 1, 3]


def test_a_row_that_keeps_every_token_draws_as_it_does_alone():
    """Whatever others in its batch leave out."""
    prob = torch.rand(64, 50, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    seed, position = counters(64)
    all_of_it = truncated(prob, torch.full((64,), 50), torch.ones(64), None)
    assert torch.equal(draw(all_of_it, seed, position), draw(prob, seed, position))
