"""Losses, corrections and terms of papers and other frameworks, on two answers that are small enough to check
by hand: every expected value is made from the formula of the source named beside it.
"""

import math

import pytest
import torch

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import OneRank, Tokens
from hybridrl.algorithms.plugins import build
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import ConfigError
from tests.support.by_hand import column, gradient

# Two answers of 2 and 3 tokens. Log ratios (0.2, -0.5) and (0.1, 0.3, -1.0): means -0.15 and -0.2, sums -0.3
# and -0.6.
ANSWERS = Tokens(torch.tensor([0, 0, 1, 1, 1]), torch.ones(5, dtype=torch.bool), 2)
OLD_T = column(-1.0, -1.0, -2.0, -2.0, -2.0)
LOGP_T = OLD_T + column(0.2, -0.5, 0.1, 0.3, -1.0)
ADVANTAGE_T = column(1.0, 1.0, -2.0, -2.0, -2.0)
FIRST, SECOND = math.exp(-0.15), math.exp(-0.2)


def on_answers(loss, aggregate, advantage_T=ADVANTAGE_T):
    config = AlgorithmConfig(loss=loss, aggregate=aggregate)
    return gradient(config, advantage_T, LOGP_T, ANSWERS, old_logp=OLD_T)


# TRL, GRPOTrainer with importance_sampling_level = "sequence" (trl/trainer/grpo_trainer.py, July 2026): one
# weight s = exp(mean of the log ratios) for all tokens of an answer, in every loss type.


@pytest.mark.parametrize(
    "aggregate,first,second", [("token_mean", 2 / 5, 3 / 5), ("seq_mean_token_mean", 0.5, 0.5)]
)
def test_dapo_by_sequences_clips_the_geometric_mean_of_an_answer(aggregate, first, second):
    loss, found = on_answers({"name": "ppo_clip", "level": "sequence", "clip_high": 0.28}, aggregate)
    assert loss == pytest.approx(-FIRST * first + 2 * SECOND * second, abs=1e-12)
    # Each token has the share 1 / length of its answer's gradient. No bound is reached: 0.8 < s < 1.28.
    expected = [-FIRST * first / 2] * 2 + [2 * SECOND * second / 3] * 3
    assert found == pytest.approx(expected, abs=1e-12)
    _, clipped = on_answers({"name": "ppo_clip", "level": "sequence", "clip_low": 0.1}, aggregate)
    assert clipped == pytest.approx([expected[0]] * 2 + [0.0] * 3, abs=1e-12)


def test_sapo_by_sequences_gates_the_geometric_mean_of_an_answer():
    loss, found = on_answers({"name": "sapo", "level": "sequence"}, "seq_mean_token_mean")
    gate = [1 / (1 + math.exp(-tau * (s - 1))) for tau, s in ((1.0, FIRST), (1.05, SECOND))]
    assert loss == pytest.approx((-4 * gate[0] + 2 * 4 / 1.05 * gate[1]) / 2, abs=1e-12)
    slope = [4 * g * (1 - g) * s for g, s in zip(gate, (FIRST, SECOND), strict=True)]
    assert found == pytest.approx([-slope[0] / 4] * 2 + [2 * slope[1] / 6] * 3, abs=1e-12)


def test_cispo_by_sequences_weighs_by_the_geometric_mean_of_an_answer():
    loss, found = on_answers({"name": "cispo", "level": "sequence", "clip_low": 0.15}, "token_mean")
    weight = [FIRST, 0.85]  # exp(-0.2) = 0.819 is below 1 - 0.15
    assert loss == pytest.approx((-weight[0] * -2.3 + 2 * weight[1] * -6.6) / 5, abs=1e-12)
    assert found == pytest.approx([-weight[0] / 5] * 2 + [2 * weight[1] / 5] * 3, abs=1e-12)


def test_rloo_clips_the_product_of_ratios():
    # TRL, RLOOTrainer (trl/trainer/rloo_trainer.py, July 2026): ratio = exp(sum of the log ratios), the mean
    # over answers of -min(ratio A, clip(ratio) A).
    p = [math.exp(-0.3), math.exp(-0.6)]  # 0.74 and 0.55
    loss, found = on_answers("product_clip", "seq_mean_token_sum")
    # A > 0: the ratio below 0.8 keeps its gradient. A < 0: it is below 1 - 0.2, and the bound counts.
    assert loss == pytest.approx((-p[0] + 2 * 0.8) / 2, abs=1e-12)
    assert found == pytest.approx([-p[0] / 2] * 2 + [0.0] * 3, abs=1e-12)
    _, wide = on_answers({"name": "product_clip", "clip_low": 0.5}, "seq_mean_token_sum")
    assert wide == pytest.approx([-p[0] / 2] * 2 + [2 * p[1] / 2] * 3, abs=1e-12)


def test_a_product_has_no_mean_over_tokens():
    with pytest.raises(ConfigError, match="product_clip has no meaning with aggregate = token_mean"):
        on_answers("product_clip", "token_mean")


def test_ipo_masks_every_token_that_moved_far():
    # prime-rl, ipo_loss_fn (src/prime_rl/trainer/rl/loss.py, August 2026): -A r where |p - p_inference| is at
    # most 0.1, whatever the sign of A; plus 1e-3 (log r)^2 at all tokens.
    p, old = [0.5, 0.5, 0.5, 0.5], [0.45, 0.35, 0.65, 0.55]
    config = AlgorithmConfig(loss="ipo", aggregate="token_mean", correction=["bypass"])
    logp_T, engine_T = torch.log(column(*p)), torch.log(column(*old))
    loss, found = gradient(config, column(1, -1, 1, -1), logp_T, rollout_logp=engine_T)
    ratio, kept = [a / b for a, b in zip(p, old, strict=True)], [1, 0, 0, 1]
    rows = list(zip([1, -1, 1, -1], ratio, kept, strict=True))
    assert loss == pytest.approx(sum(-a * r * k + 1e-3 * math.log(r) ** 2 for a, r, k in rows) / 4, abs=1e-12)
    expected = [(-a * r * k + 2e-3 * math.log(r)) / 4 for a, r, k in rows]
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("p,old", [(0.5, 0.0), (0.0, 0.5)], ids=["never sampled", "never given"])
def test_ipo_masks_an_impossible_log_probability(p, old):
    logp_T, old_T = torch.log(column(0.5, p)), torch.log(column(0.5, old))
    value, found = gradient(AlgorithmConfig(loss="ipo"), column(1, 1), logp_T, old_logp=old_T)
    assert value == pytest.approx(-0.5, abs=1e-12) and found == pytest.approx([-0.5, 0.0], abs=1e-12)


# FlashREINFORCE (Hu, Zhang, Zhang et al. 2026; verl, docs "FlashREINFORCE"): A = R - mean of the batch, and
# -1/B sum_i m_i A_i / T_i sum_t exp(log q - log p), m_i = [mean of the binary KL(p || q) <= delta].


def binary_kl(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


@pytest.mark.parametrize("delta,kept", [(0.01, [1, 0]), (0.03, [1, 1]), (0.001, [0, 0])])
def test_flash_reinforce_rejects_answers_and_keeps_the_denominator(delta, kept):
    q, p = [0.5, 0.6, 0.3, 0.5, 0.9], [0.45, 0.6, 0.4, 0.4, 0.85]
    d = [binary_kl(a, b) for a, b in zip(p, q, strict=True)]
    means = [(d[0] + d[1]) / 2, (d[2] + d[3] + d[4]) / 3]
    assert 0.001 < means[0] < 0.01 < means[1] < 0.03
    config = AlgorithmConfig(
        loss={"name": "flash_reinforce", "delta": delta}, aggregate="seq_mean_token_mean"
    )
    logp_T, engine_T = torch.log(column(*q)), torch.log(column(*p))
    # The trainer's own log-probabilities before the update are far off, and must not matter.
    loss, found = gradient(
        config, ADVANTAGE_T, logp_T, ANSWERS, rollout_logp=engine_T, old_logp=torch.full((5,), -9.0)
    )
    w = [a / b for a, b in zip(q, p, strict=True)]
    assert loss == pytest.approx(
        (-kept[0] * (w[0] + w[1]) / 2 + 2 * kept[1] * (w[2] + w[3] + w[4]) / 3) / 2, abs=1e-6
    )
    expected = [-kept[0] * x / 4 for x in w[:2]] + [2 * kept[1] * x / 6 for x in w[2:]]
    assert found == pytest.approx(expected, abs=1e-6)


def test_flash_reinforce_rejects_an_answer_with_an_impossible_token():
    config = AlgorithmConfig(loss="flash_reinforce", aggregate="seq_mean_token_mean")
    logp_T = torch.log(column(0.5, 0.5, 0.0, 0.5, 0.5))
    loss, found = gradient(
        config, ADVANTAGE_T, logp_T, ANSWERS, rollout_logp=torch.log(column(*[0.5] * 5)), old_logp=OLD_T
    )
    assert loss == pytest.approx(-0.5) and found == pytest.approx([-0.25, -0.25, 0, 0, 0])


# The same divergences as a rejection that leaves the loss alone: DPPO (arXiv:2602.04879) has both by tokens,
# FlashREINFORCE the mean of the KL by answers.


@pytest.mark.parametrize(
    "divergence,level,highest,kept",
    [
        ("binary_kl", "sequence_mean", 0.01, [1, 1, 0, 0, 0]),
        ("binary_kl", "token", 0.015, [1, 1, 0, 0, 1]),
        ("binary_tv", "token", 0.06, [1, 1, 0, 0, 1]),
        ("binary_tv", "sequence_max", 0.06, [1, 1, 0, 0, 0]),
    ],
)
def test_answers_and_tokens_are_rejected_by_a_binary_divergence(divergence, level, highest, kept):
    old_T = torch.log(column(0.5, 0.6, 0.3, 0.5, 0.9))
    engine_T = torch.log(column(0.45, 0.6, 0.4, 0.4, 0.85))
    config = AlgorithmConfig(
        loss="reinforce",
        correction=[{"name": "reject", "divergence": divergence, "level": level, "highest": highest}],
    )
    _, found = gradient(config, ADVANTAGE_T, old_T, ANSWERS, rollout_logp=engine_T, old_logp=old_T)
    expected = [-a * k / 5 for a, k in zip(ADVANTAGE_T.tolist(), kept, strict=True)]
    assert found == pytest.approx(expected, abs=1e-12)


# Score centering (arXiv:2609.20807, equations 7 to 14): the score of a token of the engine's head has the
# coefficient q w - alpha p, that of the sampled token w.


def centred(cap, p, q, sampled):
    """Gradients in the log-probabilities of the sampled token and of the head, at A = 1."""
    made = build("policy_loss", "score_centering", {"cap": cap}, where="algorithm.loss")
    logp_T = torch.log(column(p[sampled])).requires_grad_()
    head_TK = torch.log(column(*p)).unsqueeze(0).requires_grad_()
    one = Tokens(torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool), 1)
    columns = {"rollout_logp_T": torch.log(column(q[sampled])), "head_logp_TK": head_TK}
    columns["engine_head_logp_TK"] = torch.log(column(*q)).unsqueeze(0)
    made(logp_T=logp_T, advantage_T=column(1.0), tokens=one, **columns).loss_T.sum().backward()
    assert logp_T.grad is not None and head_TK.grad is not None
    return float(logp_T.grad), head_TK.grad[0].tolist()


def test_score_centering_takes_off_what_the_engine_would_do_anyway():
    # q and p have the tail 0.2, so rho = alpha = 1: without a cap the coefficients are q - p.
    own, head = centred(None, [0.4, 0.4], [0.5, 0.3], 0)
    assert own == pytest.approx(-1.0) and head == pytest.approx([0.1, -0.1], abs=1e-12)


def test_score_centering_with_a_cap_centres_what_the_cap_took_off():
    # w = min(p / q, 1.2): 0.8 and 4 / 3 -> 1.2; alpha = min(1, 1.2 rho) = 1: coefficients q w - p.
    own, head = centred(1.2, [0.4, 0.4], [0.5, 0.3], 1)
    assert own == pytest.approx(-1.2) and head == pytest.approx([0.0, 0.36 - 0.4], abs=1e-12)


def test_score_centering_has_a_tail():
    # Tails 0.4 of q and 0.1 of p: rho = 4 without a cap.
    _, head = centred(None, [0.5, 0.4], [0.4, 0.2], 0)
    assert head == pytest.approx([0.4 - 4 * 0.5, 0.2 - 4 * 0.4], abs=1e-9)


@pytest.mark.parametrize("cap", [None, 1.1, 2.0])
def test_with_a_constant_reward_the_expected_gradient_of_score_centering_is_0(cap):
    # The head is the whole vocabulary, and the token is drawn from the engine's q.
    p, q = [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.2, 0.3]
    expected = [0.0] * 4
    for sampled in range(4):
        own, head = centred(cap, p, q, sampled)
        scores = [g + (own if v == sampled else 0.0) for v, g in enumerate(head)]
        # d logp_v / d logit_u = [u = v] - p_u
        total = sum(scores)
        expected = [e + q[sampled] * (s - total * a) for e, s, a in zip(expected, scores, p, strict=True)]
    assert expected == pytest.approx([0.0] * 4, abs=1e-9)


def test_a_teacher_beside_an_estimator():
    # slime, apply_opd_kl_to_advantages (slime/backends/megatron_utils/loss.py, August 2026): the estimator's
    # advantage minus opd_kl_coef (student_logp - teacher_logp), token by token.
    config = AlgorithmConfig(estimator="dr_grpo", teacher_coefficient=0.5)
    made = load_estimator(config)
    teacher_T = OLD_T + column(1.0, -1.0, 0.0, 0.5, 2.0)
    out = made(
        column(1.0, 0.0),
        torch.tensor([0, 0]),
        tokens=ANSWERS,
        reduce=OneRank(),
        old_logp_T=OLD_T,
        teacher_logp_T=teacher_T,
    )
    assert out.advantage_T.tolist() == pytest.approx([1.0, 0.0, -0.5, -0.25, 0.5])


def test_a_teacher_and_an_estimator_with_a_state_are_refused():
    with pytest.raises(ConfigError, match="rae keeps a state and knows no teacher"):
        load_estimator(AlgorithmConfig(estimator="rae", teacher_coefficient=0.5))


def test_gdpo_of_nemo_leaves_the_answer_out_of_its_mean_and_std():
    # NeMo-RL, GDPOAdvantageEstimator (nemo_rl/algorithms/advantage_estimator.py, August 2026) with
    # use_leave_one_out_baseline: (r - mean of the others) / (std of the others + 1e-6), undivided where that
    # std is 0; the sum over parts is whitened over answers.
    parts_NK = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 3.0]], dtype=torch.float64)
    first = [(1 - 3) / math.sqrt(2), (2 - 2.5) / math.sqrt(4.5), (4 - 1.5) / math.sqrt(0.5)]
    second = [-1.5 / math.sqrt(4.5), -1.5 / math.sqrt(4.5), 3.0]
    total = [a + b for a, b in zip(first, second, strict=True)]
    middle = sum(total) / 3
    spread = math.sqrt(sum((t - middle) ** 2 for t in total) / 2)
    made = load_estimator(AlgorithmConfig(estimator={"name": "gdpo", "baseline": "others"}))
    found_N = made(
        parts_NK.sum(1),
        torch.zeros(3, dtype=torch.int64),
        reward_parts_NK=parts_NK,
        length_N=torch.tensor([2, 3, 1]),
    )
    assert found_N.tolist() == pytest.approx([(t - middle) / spread for t in total], abs=1e-5)


def test_the_optimal_baseline_of_a_turn():
    # The authors of "The Optimal Token Baseline" (arXiv:2602.07078), turn_optimal_baseline: for every prompt
    # and turn, sum of R W / sum of W over the answers that have the turn, W = energy of all tokens up to its
    # end. Two answers of two turns (1 + 1 and 2 + 1 tokens).
    tokens = Tokens(torch.tensor([0, 0, 1, 1, 1]), torch.ones(5, dtype=torch.bool), 2)
    p, collision = [0.5, 0.8, 0.5, 0.9, 0.6], [0.5, 0.7, 0.4, 0.82, 0.5]
    energy = [1 - 2 * a + c for a, c in zip(p, collision, strict=True)]
    w = [[energy[0], energy[0] + energy[1]], [energy[2] + energy[3], sum(energy[2:])]]
    returns = [[1.0 + 0.5, 1.0], [0.25 + 0.0, 0.0]]  # turn rewards 0.5 and 0.25; 1 and 0 for the outcomes
    base = [(returns[0][k] * w[0][k] + returns[1][k] * w[1][k]) / (w[0][k] + w[1][k]) for k in (0, 1)]
    made = load_estimator(AlgorithmConfig(estimator={"name": "optimal_token_baseline", "level": "turn"}))
    out = made(
        column(1.5, 0.25),
        torch.tensor([0, 0]),
        tokens=tokens,
        reduce=OneRank(),
        old_logp_T=torch.log(column(*p)),
        old_collision_T=column(*collision),
        turn_T=torch.tensor([0, 1, 0, 0, 1]),
        turn_reward_T=column(0.5, 0.0, 0.0, 0.25, 0.0),
    )
    expected = [returns[0][0] - base[0], returns[0][1] - base[1]]
    expected += [returns[1][0] - base[0]] * 2 + [returns[1][1] - base[1]]
    assert out.advantage_T.tolist() == pytest.approx(expected, abs=1e-6)


# OPSD and GKD (arXiv:2601.18734, arXiv:2306.13649): a generalised Jensen-Shannon divergence at each token.


def diverged(beta, t, p):
    """Loss of one token, and its gradient by the policy's logits over the head and the rest."""
    made = build("policy_loss", "teacher_divergence", {"beta": beta}, where="algorithm.loss")
    logit_J = torch.log(column(*p, 1 - sum(p))).requires_grad_()
    head_TK = logit_J.log_softmax(0)[:-1].unsqueeze(0)
    one = Tokens(torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool), 1)
    columns = {"teacher_logp_T": column(-1.0), "teacher_head_logp_TK": torch.log(column(*t)).unsqueeze(0)}
    loss_T = made(
        logp_T=column(-1.0), advantage_T=column(1.0), tokens=one, head_logp_TK=head_TK, **columns
    ).loss_T
    (gradient_J,) = torch.autograd.grad(loss_T.sum(), logit_J)
    return loss_T.item(), gradient_J.tolist()


def test_forward_kl_pulls_towards_the_teacher_by_the_difference():
    # Over t = (0.5, 0.25, 0.25) and p = (0.25, 0.25, 0.5): KL = 0.5 ln 2 - 0.25 ln 2, gradient p - t.
    loss, gradient = diverged(0.0, [0.5, 0.25], [0.25, 0.25])
    assert loss == pytest.approx(0.25 * math.log(2), abs=1e-12)
    assert gradient == pytest.approx([-0.25, 0.0, 0.25], abs=1e-12)


def test_reverse_kl_weighs_by_the_policy():
    # KL(p || t) = 0.25 ln(1/2) + 0.5 ln 2; gradient p (log(p / t) - KL).
    loss, gradient = diverged(1.0, [0.5, 0.25], [0.25, 0.25])
    kl = 0.25 * math.log(2)
    assert loss == pytest.approx(kl, abs=1e-12)
    wanted = [0.25 * (-math.log(2) - kl), 0.25 * -kl, 0.5 * (math.log(2) - kl)]
    assert gradient == pytest.approx(wanted, abs=1e-12)


def test_the_divergence_in_between():
    # m = (0.375, 0.25, 0.375); both halves are 0.5 (0.5 ln(4/3) + 0.25 ln(2/3)).
    loss, _ = diverged(0.5, [0.5, 0.25], [0.25, 0.25])
    assert loss == pytest.approx(0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3), abs=1e-12)
    loss, gradient = diverged(0.5, [0.3, 0.3], [0.3, 0.3])
    assert [loss, *gradient] == pytest.approx([0.0] * 4, abs=1e-12)
