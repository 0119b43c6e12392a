"""KL in the reward, returns and whitening over packed tokens, against plain Python."""

import math

import pytest
import torch

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import OneRank, Tokens
from hybridrl.algorithms.columns import argument
from hybridrl.algorithms.sequences import at_last_token, discounted_sum, sequence_mean, whiten
from hybridrl.config.schema import AlgorithmConfig

K1_IN_REWARD = {"coefficient": 0.1, "estimator": "k1", "in": "reward"}


def token_rewards(batch, beta):
    """Outcome at the last trained token, less beta * (old_logp - ref_logp) at each."""
    out = []
    for s, old, ref in zip(batch.rewards, batch.trained("old_logp"), batch.trained("ref_logp"), strict=True):
        row = [-beta * (a - b) for a, b in zip(old, ref, strict=True)]
        if row:
            row[-1] += s
        out.append(row)
    return out


def returns(rows, discount):
    out = []
    for row in rows:
        total, back = 0.0, []
        for r in reversed(row):
            total = r + discount * total
            back.append(total)
        out.append(back[::-1])
    return out


def whitened(rows, eps=1e-8):
    every = [x for row in rows for x in row]
    middle = sum(every) / len(every)
    variance = sum((x - middle) ** 2 for x in every) / (len(every) - 1)
    return [[(x - middle) / math.sqrt(variance + eps) for x in row] for row in rows]


def run(config, batch, part=None, reduce=None):
    estimator = load_estimator(config)
    part = part or batch
    columns = {argument(c): part.columns[c] for c in estimator.needs}
    out = estimator(
        reward_N=batch.reward_N,
        group_N=batch.group_N,
        tokens=part.tokens,
        reduce=reduce or OneRank(),
        **columns,
    )
    return out.advantage_T


def assert_rows(batch, column_T, rows, tolerance=1e-12):
    flat = torch.tensor([x for row in rows for x in row], dtype=column_T.dtype)
    torch.testing.assert_close(column_T[batch.mask_T], flat, rtol=tolerance, atol=tolerance)
    assert not column_T[~batch.mask_T].any()


@pytest.mark.parametrize("discount", [1.0, 0.9])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_reinforce_plus_plus_with_kl_in_the_reward(ragged, discount, dtype, tolerance):
    batch = ragged(0, dtype)
    config = AlgorithmConfig(estimator={"name": "reinforce_plus_plus", "discount": discount}, kl=K1_IN_REWARD)
    assert_rows(batch, run(config, batch), whitened(returns(token_rewards(batch, 0.1), discount)), tolerance)


def test_discounting_alone_makes_an_estimator_token_level(ragged):
    batch = ragged(1)
    config = AlgorithmConfig(estimator={"name": "reinforce_plus_plus", "discount": 0.5})
    assert_rows(batch, run(config, batch), whitened(returns(token_rewards(batch, 0.0), 0.5)))


def test_scalar_and_token_forms_agree_without_a_penalty(ragged):
    batch = ragged(2)
    scalar = load_estimator(AlgorithmConfig(estimator="reinforce_plus_plus"))
    advantage_N = scalar(batch.reward_N, batch.group_N, length_N=batch.columns["length"])
    tokens_T = scalar.over_tokens(
        at_last_token(batch.reward_N, batch.tokens), batch.tokens, OneRank()
    ).advantage_T
    torch.testing.assert_close(
        tokens_T[batch.mask_T], advantage_N[batch.seq_T][batch.mask_T], rtol=1e-12, atol=1e-12
    )


def test_a_scalar_estimator_sees_the_penalty_of_the_whole_answer(ragged):
    batch = ragged(3)
    config = AlgorithmConfig(estimator="dr_grpo", kl=K1_IN_REWARD)
    net = [sum(row) for row in token_rewards(batch, 0.1)]
    mean_of = {g: [s for s, h in zip(net, batch.groups, strict=True) if h == g] for g in set(batch.groups)}
    expected = [s - sum(mean_of[g]) / len(mean_of[g]) for s, g in zip(net, batch.groups, strict=True)]
    rows = [[expected[i]] * len(row) for i, row in enumerate(batch.trained("old_logp"))]
    assert_rows(batch, run(config, batch), rows)


@pytest.mark.parametrize("name", ["grpo", "reinforce_plus_plus"])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_together_equal_one(ragged, run_ranks, name, num_ranks):
    batch = ragged(4)
    config = AlgorithmConfig(estimator=name, kl=K1_IN_REWARD)
    whole_T = run(config, batch)
    parts = [list(range(r, len(batch.reward_N), num_ranks)) for r in range(num_ranks)]
    found = run_ranks(num_ranks, lambda rank, reduce: run(config, batch, batch.rows(parts[rank]), reduce))
    for part, part_T in zip(parts, found, strict=True):
        torch.testing.assert_close(
            part_T, whole_T[torch.isin(batch.seq_T, torch.tensor(part))], rtol=1e-12, atol=1e-12
        )


def test_a_rank_without_trajectories_takes_part(ragged, run_ranks):
    batch = ragged(5)
    config = AlgorithmConfig(estimator="reinforce_plus_plus", kl=K1_IN_REWARD)
    parts = [list(range(len(batch.reward_N))), []]
    found = run_ranks(2, lambda rank, reduce: run(config, batch, batch.rows(parts[rank]), reduce))
    assert torch.equal(found[0], run(config, batch)) and len(found[1]) == 0


def test_prompt_and_tool_tokens_do_not_count_in_whitening(ragged):
    batch = ragged(6)
    config = AlgorithmConfig(estimator="reinforce_plus_plus", kl=K1_IN_REWARD)
    before = run(config, batch)
    for name in ("old_logp", "ref_logp"):
        batch.columns[name] = torch.where(batch.mask_T, batch.columns[name], torch.nan)
    assert torch.equal(run(config, batch), before)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 1000])
def test_discounted_sum_by_doubling(length):
    tokens = Tokens(torch.zeros(length, dtype=torch.int64), torch.ones(length, dtype=torch.bool), 1)
    value_T = torch.linspace(-1, 1, length, dtype=torch.float64)
    expected = torch.tensor(returns([value_T.tolist()], 0.97)[0], dtype=torch.float64)
    torch.testing.assert_close(discounted_sum(value_T, 0.97, tokens), expected, rtol=1e-12, atol=1e-12)


def test_whitening_of_one_token_is_zero():
    assert whiten(torch.tensor([3.0]), torch.tensor([True]), OneRank(), eps=1e-8).tolist() == [0.0]


def test_a_trajectory_without_trained_tokens_has_mean_zero():
    tokens = Tokens(torch.tensor([0, 1]), torch.tensor([False, True]), 3)
    assert sequence_mean(torch.tensor([9.0, 2.0]), tokens).tolist() == [0.0, 2.0, 0.0]


def test_a_discount_outside_its_range_is_refused():
    with pytest.raises(Exception, match=r"discount = 1.5 is not in \(0, 1\]"):
        load_estimator(AlgorithmConfig(estimator={"name": "reinforce_plus_plus", "discount": 1.5}))
