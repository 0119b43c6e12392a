"""Numbers of other frameworks and of papers, on batches small enough to check by hand: every expected value
is made from the formula of the source named beside it.
"""

import math

import pytest
import torch

from hybridrl.algorithms.base import Known, OneRank, Tokens, Totals
from hybridrl.algorithms.objective import Objective
from hybridrl.config.presets import PRESETS
from hybridrl.config.schema import AlgorithmConfig


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def preset(name, **changes):
    return AlgorithmConfig.model_validate({**PRESETS[name].algorithm, **changes})


SEQ_T = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3])
TOKENS = Tokens(SEQ_T, torch.ones(8, dtype=torch.bool), 4)
GROUP_N = torch.tensor([0, 0, 1, 1])
REWARD_N = column(1.0, 0.0, 0.5, 2.0)


def gradient(config, advantage_T, logp_T, tokens=None, **columns):
    """The loss, and its gradient in each log-probability."""
    tokens = tokens or Tokens(torch.zeros(len(logp_T), dtype=torch.int64), logp_T == logp_T, 1)
    objective = Objective(config, max_response_tokens=16)
    logp_T = logp_T.clone().requires_grad_()
    if objective.prepares:
        zeros_N = torch.zeros(tokens.num_seqs)
        known = Known(0, zeros_N, zeros_N.long(), advantage_T, tokens, columns)
        columns |= objective.prepare(known, OneRank()).columns
    totals = Totals(len(logp_T), tokens.num_seqs)
    loss, _ = objective(logp_T, None, columns, advantage_T, tokens, totals)
    loss.backward()
    return float(loss.detach()), logp_T.grad.tolist()


# Losses on whole answers. Two answers: log ratios (0.2, -0.5) and (0.1, 0.3, -1.0), that is -0.3 and -0.6.

ANSWERS = Tokens(torch.tensor([0, 0, 1, 1, 1]), torch.ones(5, dtype=torch.bool), 2)
OLD_T = column(-1.0, -1.0, -2.0, -2.0, -2.0)
LOGP_T = OLD_T + column(0.2, -0.5, 0.1, 0.3, -1.0)
ADVANTAGE_T = column(1.0, 1.0, -2.0, -2.0, -2.0)


def on_answers(loss, advantage_T=ADVANTAGE_T):
    config = AlgorithmConfig(loss=loss, aggregate="seq_mean_token_sum")
    return gradient(config, advantage_T, LOGP_T, ANSWERS, old_logp=OLD_T)


def test_topr_truncates_the_ratio_of_the_whole_answer():
    # Le Roux et al. 2025 (arXiv:2503.14286): weight 1 on positive answers, min(pi / mu, 1) of the whole
    # answer on the others.
    w = math.exp(-0.6)
    _, found = on_answers("topr")
    assert found == pytest.approx([-0.5, -0.5, w, w, w], abs=1e-12)
    _, same = on_answers("topr", -ADVANTAGE_T)
    assert same == pytest.approx([0.5 * math.exp(-0.3)] * 2 + [-1.0] * 3, abs=1e-12)


def test_topr_by_tokens_truncates_the_ratio_of_each_token():
    # ROLL, "topr" (actor_pg_worker.py, mid-2026): min(r, 1) of each token.
    _, found = on_answers("topr_token")
    assert found == pytest.approx([-0.5, -0.5, 1.0, 1.0, math.exp(-1)], abs=1e-12)


def test_kimi_squares_the_log_ratio_of_the_whole_answer():
    # Kimi k1.5 (arXiv:2501.12599): gradient of log pi(y) A - tau / 2 (log pi(y) / pi_i(y))^2.
    loss, found = on_answers({"name": "kimi_k15", "tau": 0.1})
    expected = [(-1.0 + 0.1 * -0.3) / 2] * 2 + [(2.0 + 0.1 * -0.6) / 2] * 3
    assert found == pytest.approx(expected, abs=1e-12)
    value = (2.3 + 0.05 * 0.09 + 2 * -6.6 + 0.05 * 0.36) / 2
    assert loss == pytest.approx(value, abs=1e-12)


def test_dro_squares_the_log_ratio_of_the_whole_answer():
    # Richemond et al. 2024 (arXiv:2405.19107): the gradient of 1/2 (s - V - beta log pi(y) / pi_old(y))^2 is
    # -beta times that of A log pi(y) - beta / 2 (log pi(y) / pi_old(y))^2.
    _, found = on_answers({"name": "dro", "beta": 0.5})
    expected = [(-1.0 + 0.5 * -0.3) / 2] * 2 + [(2.0 + 0.5 * -0.6) / 2] * 3
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "loss,weight", [({"name": "kimi_k15", "tau": 0.1}, 0.1), ({"name": "dro", "beta": 0.5}, 0.5)]
)
def test_a_square_by_tokens_is_an_option(loss, weight):
    # ROLL, "kimi15" and verl 0.9.1, "dro": (log r)^2 of each token.
    _, found = on_answers({**loss, "over": "token"})
    moved = [0.2, -0.5, 0.1, 0.3, -1.0]
    expected = [(-a + weight * m) / 2 for a, m in zip(ADVANTAGE_T.tolist(), moved, strict=True)]
    assert found == pytest.approx(expected, abs=1e-12)


# verl 0.9.1, compute_policy_loss_dppo_kl (verl/trainer/ppo/core_algos.py): binary KL at most clip_ratio_high
# where A > 0, clip_ratio_low elsewhere, or p moves back.


def binary_kl(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def dppo_kl(advantage_T, p_T, old_T, **options):
    config = AlgorithmConfig(loss={"name": "dppo_kl", **options}, aggregate="token_mean")
    return gradient(config, advantage_T, torch.log(p_T), old_logp=torch.log(old_T))


def test_dppo_kl_has_a_bound_for_each_sign_of_the_advantage():
    up, down = binary_kl(0.5, 0.7), binary_kl(0.5, 0.3)
    assert up == pytest.approx(down) and 0.05 < up < 0.1
    p_T, old_T = column(0.7, 0.3, 0.3, 0.7), column(0.5, 0.5, 0.5, 0.5)
    for low, high, kept in ((0.05, 0.1, [1, 0, 1, 1]), (0.1, 0.05, [0, 1, 1, 1])):
        _, found = dppo_kl(column(1, -1, 1, -1), p_T, old_T, delta_low=low, delta_high=high)
        expected = [-1.4 / 4, 0.6 / 4, -0.6 / 4, 1.4 / 4]
        assert found == pytest.approx([k * e for k, e in zip(kept, expected, strict=True)], abs=1e-7)


IMPOSSIBLE = {"never sampled": (0.5, 0.0), "never given": (0.0, 0.5), "neither": (0.0, 0.0)}


@pytest.mark.parametrize("p,old", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
@pytest.mark.parametrize("loss", ["dppo_kl", "dppo_tv"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_impossible_log_probability_is_masked(loss, p, old, sign):
    config = AlgorithmConfig(loss=loss, aggregate="token_mean")
    logp_T, old_T = torch.log(column(0.5, p)), torch.log(column(0.5, old))
    value, found = gradient(config, column(sign, sign), logp_T, old_logp=old_T)
    assert value == pytest.approx(-sign * math.log(0.5) / 2, abs=1e-12)
    assert found == pytest.approx([-sign / 2, 0.0], abs=1e-12)


def test_a_probability_above_1_is_masked_by_its_divergence():
    config = AlgorithmConfig(loss="dppo_kl", aggregate="token_mean")
    _, found = gradient(config, column(1, -1), column(0.1, 0.1), old_logp=column(-0.5, -0.5))
    assert found == [0.0, 0.0]
