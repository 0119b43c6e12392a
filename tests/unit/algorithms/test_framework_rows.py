"""Every row of another framework against that framework's own formula, written out in plain Python: the
advantages of a batch with groups of unequal size, and the policy loss of a later optimizer step.
"""

import math
from statistics import mean, stdev
from types import SimpleNamespace

import pytest
import torch

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import Advantage, Known, OneRank
from hybridrl.algorithms.columns import argument, on_ranks
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.samples import ragged_batch
from hybridrl.config.compatibility import COMPATIBILITY
from tests.support.by_hand import preset
from tests.support.framework_advantages import (
    batch_mean,
    by_answers,
    by_tokens,
    centred,
    gae,
    gdpo,
    gpg,
    hierarchical,
    leave_one_out,
    max_rl,
    nemo,
    opo,
    optimal_token,
    passk,
    raw_alone,
    remax,
    scaled,
    spiral,
    teacher,
    verl_grpo,
)
from tests.support.framework_losses import (
    by_divergence,
    by_sign,
    cispo,
    flash,
    gate,
    gmpo,
    ppo,
    product,
    region,
    reinforce,
    sequence_ppo,
    stale,
    token,
    vespo,
)

TOKENS, ANSWERS = "token_mean", "seq_mean_token_mean"
_V, _PRIME = ppo(dual=3.0), region(by_sign(0.2, 0.2), 1e-3, 20.0, "mu")
_GRPO, _NEMO, _TRL, _AREAL = by_answers(verl_grpo), by_answers(nemo), by_answers(scaled(1e-4)), scaled(1e-5)
_DR = by_answers(raw_alone(centred))

ROWS = {
    "verl": {
        "grpo": (_GRPO, _V, TOKENS),
        "dr_grpo": (_DR, _V, "constant"),
        "rloo": (by_answers(raw_alone(leave_one_out)), _V, TOKENS),
        "gdpo": (gdpo(scaled(1e-6), over_tokens=True), _V, TOKENS),
        "reinforce_plus_plus": (by_tokens(lambda s, group: s), _V, TOKENS),
        "reinforce_plus_plus_baseline": (by_tokens(raw_alone(centred)), _V, TOKENS),
        "remax": (remax, _V, TOKENS),
        "opo": (opo, _V, TOKENS),
        "gpg": (gpg, reinforce, TOKENS),
        "grpo_passk": (by_answers(passk), _V, TOKENS),
        "optimal_token_baseline": (optimal_token, _V, TOKENS),
        "ppo": (gae(), _V, TOKENS),
        "dapo": (_GRPO, ppo(0.2, 0.28, 10.0), TOKENS),
        "gspo": (_GRPO, sequence_ppo(3e-4, 4e-4), ANSWERS),
        "sapo": (_GRPO, token(gate), ANSWERS),
        "cispo": (_GRPO, cispo(0.0, 1.2), TOKENS),
        "gmpo": (_GRPO, gmpo, ANSWERS),
        "dppo": (_GRPO, region(by_sign(0.2, 0.2), bound=3.0), TOKENS),
        "dppo_kl": (_GRPO, region(by_divergence(0.2), bound=3.0), TOKENS),
        "distillation": (teacher, _V, TOKENS),
        "flash_reinforce": (batch_mean, flash, ANSWERS),
    },
    "trl": {
        "grpo": (_TRL, ppo(), TOKENS),
        "dr_grpo": (by_answers(centred), ppo(), "constant"),
        "lite_ppo": (
            lambda b: by_answers(lambda s, group: centred(s, group) / (stdev(b.rewards) + 1e-4))(b),
            ppo(),
            TOKENS,
        ),
        "gdpo": (gdpo(scaled(1e-4)), ppo(), TOKENS),
        "dapo": (_TRL, ppo(0.2, 0.28), TOKENS),
        "gspo": (_TRL, sequence_ppo(3e-4, 4e-4), ANSWERS),
        "luspo": (_TRL, sequence_ppo(3e-4, 4e-4), "sums"),
        "cispo": (_TRL, cispo(0.0, 5.0), TOKENS),
        "sapo": (_TRL, token(gate), ANSWERS),
        "vespo": (_TRL, vespo, TOKENS),
        "gmpo": (_TRL, gmpo, ANSWERS),
        "rloo": (by_answers(leave_one_out), product(0.2, 0.2), "sums"),
    },
    "slime": {
        "grpo": (by_answers(scaled(1e-6)), ppo(), ANSWERS),
        "gspo": (by_answers(scaled(1e-6)), sequence_ppo(4e-4, 4e-4), ANSWERS),
        "cispo": (by_answers(scaled(1e-6)), cispo(0.0, 5.0), ANSWERS),
        "reinforce_plus_plus": (by_tokens(lambda s, group: s), ppo(), ANSWERS),
        "reinforce_plus_plus_baseline": (by_tokens(centred), ppo(), ANSWERS),
        "ppo": (gae(white=False), ppo(), ANSWERS),
    },
    "openrlhf": {
        "grpo": (by_answers(scaled(1e-9)), ppo(), TOKENS),
        "rloo": (by_answers(leave_one_out), ppo(), TOKENS),
        "dr_grpo": (by_answers(centred), ppo(), TOKENS),
        "reinforce_plus_plus": (by_tokens(lambda s, group: s, with_n=True), ppo(), TOKENS),
        "reinforce_plus_plus_baseline": (by_tokens(centred, with_n=True), ppo(), TOKENS),
        "ppo": (gae(with_n=True), ppo(), TOKENS),
        "gspo": (by_answers(scaled(1e-9)), sequence_ppo(3e-4, 4e-4), ANSWERS),
    },
    "nemo_rl": {
        "grpo": (_NEMO, ppo(), TOKENS),
        "rloo": (by_answers(leave_one_out), reinforce, TOKENS),
        "reinforce": (by_answers(lambda s, group: s), reinforce, TOKENS),
        "gdpo": (gdpo(nemo), ppo(), TOKENS),
        "reinforce_plus_plus": (by_tokens(centred, with_n=True), ppo(), TOKENS),
        "dapo": (_NEMO, ppo(0.2, 0.28, 10.0), TOKENS),
        "gspo": (_NEMO, sequence_ppo(3e-4, 4e-4), ANSWERS),
        "cispo": (_NEMO, cispo(0.0, 6.0), TOKENS),
        "ppo": (gae(0.95, with_n=True), ppo(0.2, 0.28, 10.0), TOKENS),
        "distillation": (teacher, stale(reinforce, 0.2, 5.0), TOKENS),
    },
    "prime_rl": {
        "grpo": (by_answers(centred), _PRIME, TOKENS),
        "echo": (by_answers(centred), _PRIME, TOKENS),
        "ipo": (by_answers(centred), region(lambda p, q, a: abs(p - q) <= 0.1, 1e-3, None, "mu"), TOKENS),
        "max_rl": (by_answers(max_rl(0.0)), _PRIME, TOKENS),
        "hierarchical_grpo": (hierarchical, _PRIME, TOKENS),
        "spiral": (spiral, _PRIME, TOKENS),
        "opsd": (teacher, region(lambda p, q, a: p - q >= -0.2, 1e-3, None, "mu"), TOKENS),
        "distillation": (teacher, region(lambda p, q, a: p - q >= -0.2, 1e-3, None, "mu"), TOKENS),
    },
    "areal": {
        "grpo": (by_tokens(_AREAL), stale(ppo(0.4, 0.4)), TOKENS),
        "dr_grpo": (by_tokens(centred), stale(ppo(0.4, 0.4)), TOKENS),
        "lite_ppo": (by_tokens(centred), stale(ppo(0.4, 0.4)), TOKENS),
        "rloo": (by_tokens(leave_one_out), stale(ppo(0.4, 0.4)), TOKENS),
        "gspo": (by_tokens(_AREAL), stale(sequence_ppo(0.4, 0.4)), TOKENS),
        "dapo": (by_tokens(_AREAL), stale(ppo(0.2, 0.28)), TOKENS),
        "sapo": (by_tokens(_AREAL), token(gate, "mu"), TOKENS),
        "ppo": (gae(), stale(ppo(0.4, 0.4)), TOKENS),
    },
    "skyrl": {
        "grpo": (_GRPO, ppo(), TOKENS),
        "dr_grpo": (_DR, ppo(), "constant"),
        "rloo": (by_answers(leave_one_out), ppo(), TOKENS),
        "reinforce_plus_plus": (by_tokens(lambda s, group: s), ppo(), TOKENS),
        "max_rl": (by_answers(max_rl(1e-6)), ppo(), TOKENS),
        "ppo": (gae(), ppo(), TOKENS),
        "gspo": (_GRPO, sequence_ppo(3e-4, 4e-4), ANSWERS),
        "sapo": (_GRPO, token(gate), ANSWERS),
        "cispo": (_GRPO, cispo(0.0, 5.0), TOKENS),
        "dppo": (_GRPO, region(by_sign(0.2, 0.2), bound=20.0, since="mu"), TOKENS),
        "dppo_kl": (_GRPO, region(by_divergence(0.05), bound=20.0, since="mu"), TOKENS),
        "glm5": (_GRPO, cispo(0.8, 1.2, zero=True, since="mu"), TOKENS),
    },
}
CASES = [(framework, algorithm) for framework, rows in ROWS.items() for algorithm in rows]
CHOICES = {  # of tokens by their covariance: test_policy_losses.py; of solved answers as well
    ("verl", "clip_cov"),
    ("verl", "kl_cov"),
    ("skyrl", "clip_cov"),
    ("skyrl", "kl_cov"),
    ("nemo_rl", "vapo"),
}


def test_every_row_has_an_oracle():
    rows = {(framework, algorithm) for algorithm, found in COMPATIBILITY.items() for framework in found}
    assert rows == set(CASES) | CHOICES


def batch_of(algorithm, seed):
    b = ragged_batch(seed, sizes=(4, 3, 4, 2, 1))
    if algorithm == "max_rl":
        b.reward_N = b.reward_N.abs()
    return b


def config_of(framework, algorithm):
    """The row, without its KL: the forms of KL have a test of their own."""
    config = preset(f"{framework}/{algorithm}")
    return config.model_copy(update={"kl": config.kl.model_copy(update={"coefficient": 0.0})})


@pytest.mark.parametrize("framework,algorithm", CASES)
def test_advantages_are_those_of_the_framework(framework, algorithm):
    for seed in range(3):
        b = batch_of(algorithm, seed)
        made = load_estimator(config_of(framework, algorithm))
        columns = {argument(c): b.columns[c] for c in made.needs}
        if on_ranks(made.needs):
            columns |= {"tokens": b.tokens, "reduce": OneRank()}
        out = made(reward_N=b.reward_N, group_N=b.group_N, **columns)
        found_T = out.advantage_T if isinstance(out, Advantage) else out[b.seq_T]
        for found, expected in zip(b.trained(found_T), ROWS[framework][algorithm][0](b), strict=True):
            assert found == pytest.approx(expected, rel=2e-6, abs=2e-6)


@pytest.mark.parametrize("framework,algorithm", CASES)
def test_the_loss_is_that_of_the_framework(framework, algorithm):
    b = batch_of(algorithm, 7)
    if algorithm == "flash_reinforce":  # its trust region is narrow: some answers are near, some are not
        near_T = b.columns["rollout_logp"] + 0.1 * (b.columns["logp"] - b.columns["rollout_logp"])
        b.columns["logp"] = near_T
    objective = Objective(config_of(framework, algorithm), max_response_tokens=16)
    columns, advantage_T = {n: b.columns[n] for n in objective.columns}, b.columns["advantage"]
    if objective.prepares:
        known = Known(0, b.reward_N, b.group_N, advantage_T, b.tokens, columns)
        columns |= objective.prepare(known, OneRank()).columns
    loss, _ = objective(b.columns["logp"], None, columns, advantage_T, b.tokens, b.totals)
    names = {"logp": "logp", "old": "old_logp", "mu": "rollout_logp", "a": "advantage"}
    answers = zip(*(b.trained(n) for n in names.values()), strict=True)
    _, formula, mode = ROWS[framework][algorithm]
    rows = [formula(SimpleNamespace(**dict(zip(names, values, strict=True)))) for values in answers]
    assert float(loss) == pytest.approx(aggregate(rows, mode), rel=1e-6, abs=1e-6) and float(loss) != 0


def aggregate(rows, mode):
    if mode == TOKENS:
        return mean(sum(rows, []))
    if mode == ANSWERS:
        return mean(mean(row) if row else 0.0 for row in rows)
    return mean(sum(row) for row in rows) / (16 if mode == "constant" else 1)


DIVERGENCES = {  # of logp = -1, ref_logp = -1 - x; and its gradient
    "k1": (lambda x: x, lambda x: 1.0),
    "k3": (lambda x: math.exp(-x) - 1 + x, lambda x: 1 - math.exp(-x)),
    "score": (lambda x: math.exp(-x) - 1 + x, lambda x: x),
}
IN_LOSS = {
    "verl/grpo": "k3",
    "slime/grpo": "k3",
    "skyrl/grpo": "k3",
    "openrlhf/grpo": "k3",
    "trl/gmpo": "k3",
    "trl/grpo": "score",  # on tokens of the current policy
    "nemo_rl/grpo": "score",
}


@pytest.mark.parametrize("name", IN_LOSS)
def test_the_kl_in_the_loss_is_that_of_the_framework(name):
    value, slope = DIVERGENCES[IN_LOSS[name]]
    config = preset(name)
    config = config.model_copy(update={"kl": config.kl.model_copy(update={"coefficient": 1.0})})
    assert config.kl.place == "loss"
    objective = Objective(config, max_response_tokens=16)
    b = batch_of("grpo", 1)
    b.columns["old_logp"] = b.columns["logp"].clone()
    logp_T = b.columns["logp"].clone().requires_grad_()
    columns = {n: b.columns[n] for n in objective.columns}
    loss, _ = objective(logp_T, None, columns, torch.zeros_like(logp_T), b.tokens, b.totals)
    loss.backward()
    pairs = zip(b.trained("logp"), b.trained("ref_logp"), strict=True)
    x = [[a - r for a, r in zip(*row, strict=True)] for row in pairs]
    mode = config.aggregate
    assert float(loss.detach()) == pytest.approx(
        aggregate([[value(v) for v in row] for row in x], mode), rel=1e-9
    )
    share = [1 / sum(map(len, x)) if mode == TOKENS else 1 / len(x) / max(len(row), 1) for row in x]
    for found, row, part in zip(b.trained(logp_T.grad), x, share, strict=True):
        assert found == pytest.approx([slope(v) * part for v in row], rel=1e-9, abs=1e-12)
