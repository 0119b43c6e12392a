"""Numbers of other frameworks and of papers, on batches small enough to check by hand: every expected value
is made from the formula of the source named beside it.
"""

import math

import pytest
import torch

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import OneRank, Tokens
from hybridrl.algorithms.columns import argument
from hybridrl.algorithms.compare import diff
from hybridrl.algorithms.plugins import build
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import ConfigError
from tests.support.by_hand import column, gradient, preset

SEQ_T = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3])
TOKENS = Tokens(SEQ_T, torch.ones(8, dtype=torch.bool), 4)
GROUP_N = torch.tensor([0, 0, 1, 1])
REWARD_N = column(1.0, 0.0, 0.5, 2.0)


# NeMo-RL, ReinforcePlusPlusAdvantageEstimator (nemo_rl/algorithms/advantage_estimator.py, commit 00925dd1):
# A_t = s - mean_g - c KL_t with minus_baseline (its default), then (A - mean) / sqrt(var), var with n, over
# all trained tokens; KL_t is calculate_kl (nemo_rl/algorithms/utils.py): k3, log ratio within +-20, value
# within +-10.


def nemo_reinforce_plus_plus(run_ranks, num_ranks):
    """The advantages of one batch, dealt to ranks by trajectory, [T]."""
    config = preset(
        "nemo_rl/reinforce_plus_plus", kl={"coefficient": 0.1, "in": "reward", "estimator": "k3_clamped"}
    )
    columns = {
        "old_logp": column(-1.0, -2.0, -0.5, -0.5, -3.0, -1.0, -2.0, -1.0),
        "ref_logp": column(-1.5, -1.0, -0.5, -0.1, 2.0, -1.0, -2.5, -1.2),
    }
    found_T = torch.zeros(8, dtype=torch.float64)

    def rank(r, reduce):
        here_T = SEQ_T % num_ranks == r
        tokens = Tokens(SEQ_T[here_T], TOKENS.mask_T[here_T], 4)
        own = {argument(c): values[here_T] for c, values in columns.items()}
        found_T[here_T] = load_estimator(config)(
            REWARD_N, GROUP_N, tokens=tokens, reduce=reduce, **own
        ).advantage_T

    run_ranks(num_ranks, rank)
    return found_T


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_nemo_reinforce_plus_plus_has_a_group_baseline_and_charges_each_token_its_own_kl(
    run_ranks, num_ranks
):
    x = [0.5, -1.0, 0.0, -0.4, -5.0, 0.0, 0.5, 0.2]
    kl = [min(math.exp(-v) - 1 + v, 10) for v in x]
    outcome = [0.5, 0.5, -0.5, -0.5, -0.5, -0.75, 0.75, 0.75]
    raw = [s - 0.1 * k for s, k in zip(outcome, kl, strict=True)]
    middle = sum(raw) / 8
    spread = math.sqrt(sum((a - middle) ** 2 for a in raw) / 8)
    expected = column(*((a - middle) / spread for a in raw))
    assert kl[4] == 10 and raw[4] == -1.5
    found_T = nemo_reinforce_plus_plus(run_ranks, num_ranks)
    torch.testing.assert_close(found_T, expected, rtol=1e-6, atol=1e-6)


def test_a_penalty_by_token_has_no_discount():
    with pytest.raises(ConfigError, match="discount = 0.9 with penalty = token"):
        load_estimator(
            AlgorithmConfig(estimator={"name": "reinforce_plus_plus", "penalty": "token", "discount": 0.9})
        )


def test_a_group_baseline_needs_groups():
    one = AlgorithmConfig(
        estimator={"name": "reinforce_plus_plus", "baseline": "group"}, samples_per_prompt=1
    )
    with pytest.raises(ConfigError, match="samples_per_prompt"):
        load_estimator(one)


# prime-rl, default_loss_fn (src/prime_rl/trainer/rl/loss.py, mid-2026): ratio = exp(logp - engine's logp),
# -A ratio where p - p_inference is within +-0.2 in the direction of A, plus 1e-3 (log ratio)^2; Qi et al.
# 2026 (arXiv:2602.04879) defines the same trust region around the policy that sampled.


@pytest.mark.parametrize("name,drift", [("prime_rl/grpo", 1e-3), ("dppo", 0.0)])
def test_the_trust_region_is_around_the_policy_that_sampled(name, drift):
    logp_T = torch.log(column(0.5, 0.5, 0.5, 0.5))
    rollout_T = torch.log(column(0.4, 0.25, 0.8, 0.6))
    # The trainer's own log-probabilities before the update are far off, and must not matter.
    far_T = torch.log(column(0.1, 0.5, 0.5, 0.9))
    _, found = gradient(preset(name), column(1, 1, -1, -1), logp_T, rollout_logp=rollout_T, old_logp=far_T)
    ratio = [1.25, 2.0, 0.625, 0.5 / 0.6]
    kept = [1.0, 0.0, 0.0, 1.0]  # +0.1, +0.25, -0.3, -0.1
    expected = [
        (-a * r * k + 2 * drift * math.log(r)) / 4
        for a, r, k in zip([1, 1, -1, -1], ratio, kept, strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-12)


def test_diff_shows_the_anchor_and_what_is_not_kept():
    found = diff("grpo", "prime_rl", "trl")
    (choice,) = [c for c in found.choices if c.key == "correction"]
    assert (choice.a, choice.b) == ("['bypass']", "[]") and "old_logp" in choice.why
    assert any("relative_length" in note for note in found.notes)
    assert any("sequence_mask" in note for note in found.notes)


def test_diff_shows_who_pays_for_the_kl():
    found = {c.key: (c.a, c.b) for c in diff("reinforce_plus_plus", "openrlhf", "nemo_rl").choices}
    assert found["estimator.penalty"] == ("return", "token")
    assert found["estimator.baseline"] == ("none", "group")


# NeMo-RL, calculate_kl (nemo_rl/algorithms/utils.py, commit 00439539): k1, k2 and k3 within +-10 by default;
# OpenRLHF, compute_approx_kl (openrlhf/models/utils.py, mid-2026): the same, also of k1 in the reward.

AWAY = {"k1_clamped": 30.0, "k2_clamped": -5.0, "k3_clamped": -5.0}  # x; unclamped 30, 12.5 and 142.4


@pytest.mark.parametrize("name,x", AWAY.items())
def test_a_clamped_estimator_is_10_far_away_and_has_no_gradient_there(name, x):
    logp_T = column(-1.0, -1.0).requires_grad_()
    kl_T = build("kl", name, {}, where="algorithm.kl.estimator")(logp_T, logp_T.detach() - column(x, 0.5))
    kl_T.sum().backward()
    near = {"k1_clamped": 0.5, "k2_clamped": 0.125, "k3_clamped": math.exp(-0.5) - 0.5}[name]
    assert kl_T.tolist() == pytest.approx([10.0, near], abs=1e-12)
    assert logp_T.grad[0] == 0 and logp_T.grad[1] > 0


@pytest.mark.parametrize("name", ["nemo_rl/grpo", "openrlhf/grpo", "verl/grpo", "slime/grpo"])
def test_kl_in_the_loss_of_a_framework_that_clamps_is_at_most_10(name):
    config = preset(name)
    config = config.model_copy(update={"kl": config.kl.model_copy(update={"coefficient": 1.0})})
    zeros_T = column(0.0, 0.0)
    loss, _ = gradient(config, zeros_T, column(-6.0, -1.0), old_logp=zeros_T, ref_logp=column(-1.0, -1.0))
    assert loss == pytest.approx(5.0, abs=1e-12)


def test_kl_in_the_reward_of_openrlhf_is_at_most_10():
    config = preset("openrlhf/reinforce_plus_plus")
    config = config.model_copy(update={"kl": config.kl.model_copy(update={"coefficient": 0.1})})
    tokens = Tokens(torch.tensor([0, 1]), torch.ones(2, dtype=torch.bool), 2)
    out = load_estimator(config)(
        column(1.0, 0.0),
        torch.tensor([0, 1]),
        tokens=tokens,
        reduce=OneRank(),
        old_logp_T=column(-0.5, -0.5),
        ref_logp_T=column(-40.5, -0.5),
    )
    # Returns 1 - 0.1 * 10 and 0: equal. With the 40 nats that the log ratio is, they would be -3 and 0.
    assert out.advantage_T.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


# TRL 1.10 and later, GRPOConfig.use_bias_correction_kl = True (trl/trainer/grpo_config.py): the KL term is
# r k3 with the gradient through r = exp(logp - old_logp), whose derivative is r x.


@pytest.mark.parametrize("name", ["trl/grpo", "trl/dr_grpo"])
def test_trl_corrects_the_bias_of_its_kl(name):
    config = preset(name)
    changed = {"kl": config.kl.model_copy(update={"coefficient": 1.0}), "aggregate": "token_mean"}
    old_T, ref_T = column(-1.0, -2.0), column(-2.0, -1.0)
    _, found = gradient(
        config.model_copy(update=changed), column(0, 0), column(-1.0, -1.5), old_logp=old_T, ref_logp=ref_T
    )
    assert found == pytest.approx([1.0 / 2, math.exp(0.5) * -0.5 / 2], abs=1e-12)


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


# GDPO (Liu et al. 2026, arXiv:2601.05242): the sum of the normalised parts is whitened over the answers of
# the batch; verl 0.9.1, compute_gdpo_outcome_advantage: over its trained tokens.

PARTS_NK = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
LENGTH_N = torch.tensor([2, 3, 1, 2])


@pytest.mark.parametrize("name,counts", [("gdpo", [1, 1, 1, 1]), ("verl/gdpo", [2, 3, 1, 2])])
def test_gdpo_is_whitened_over_answers_or_over_tokens(name, counts):
    a = math.sqrt(0.5)  # in a pair each part is +-1 / sqrt(2)
    total = [a - a, a - a, 2 * a, -2 * a]
    n = sum(counts)
    middle = sum(t * c for t, c in zip(total, counts, strict=True)) / n
    variance = sum((t - middle) ** 2 * c for t, c in zip(total, counts, strict=True)) / (n - 1)
    found_N = load_estimator(preset(name))(REWARD_N, GROUP_N, reward_parts_NK=PARTS_NK, length_N=LENGTH_N)
    expected = [(t - middle) / math.sqrt(variance) for t in total]
    assert found_N.tolist() == pytest.approx(expected, abs=5e-6)
