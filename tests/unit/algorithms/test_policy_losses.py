"""Every policy loss: value and gradient against plain Python, any split into ranks and microbatches, no
leak."""

import math
from types import SimpleNamespace

import pytest
import torch

from hybridrl import registry
from hybridrl.algorithms.base import Totals
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.config.schema import AlgorithmConfig
from tests.support.loss_oracles import (
    a_star_po,
    aspo,
    cispo,
    clip,
    clip_cov,
    copg,
    decoupled,
    dppo_kl,
    dppo_tv,
    dro_token,
    fixed_ratio,
    flash_reinforce,
    gmpo,
    gspo,
    interpolated,
    ipo,
    kimi_token,
    kl_cov,
    m2po,
    mean,
    of_answer,
    opsm,
    per_token,
    pf_ppo,
    ppo_clip,
    ppo_dual,
    product_clip,
    reinforce,
    sapo,
    score_centering,
    soft_gate,
    squared,
    teacher_divergence,
    topr,
    topr_token,
    truncated_is,
    two_sided,
    vapo,
    vespo,
)

CASES = {
    "ppo_clip": ({}, ppo_clip),
    "ppo_clip dual": ({"dual_clip": 1.2}, ppo_dual),
    "ppo_clip sequence": (
        {"level": "sequence", "clip_low": 0.05, "clip_high": 0.1},
        gspo,
    ),
    "sapo sequence": ({"level": "sequence"}, of_answer(soft_gate)),
    "cispo sequence": (
        {"level": "sequence", "clip_low": 0.05, "clip_high": 0.1},
        of_answer(lambda x, r: -clip(math.exp(x.mean), 0.95, 1.1) * x.adv * x.logp),
    ),
    "product_clip": ({}, product_clip),
    "cispo zero": (
        {"outside": "zero", "clip_low": 0.2, "clip_high": 0.3},
        per_token(lambda x: -fixed_ratio(x) * (0.8 <= fixed_ratio(x) <= 1.3) * x.adv * x.logp),
    ),
    "ipo": ({"drift": 0.01, "delta_high": 0.15}, ipo),
    "score_centering": ({}, score_centering(2.0)),
    "score_centering alone": ({"cap": None}, score_centering(None)),
    "teacher_divergence": ({}, teacher_divergence(0.5)),
    "teacher_divergence forward": ({"beta": 0.0}, teacher_divergence(0.0)),
    "teacher_divergence reverse": ({"beta": 1.0}, teacher_divergence(1.0)),
    "flash_reinforce": ({"delta": 0.03}, flash_reinforce),
    "gspo": ({"clip_low": 0.05, "clip_high": 0.1}, gspo),
    "luspo": ({"clip_low": 0.05, "clip_high": 0.1}, gspo),
    "sapo": ({}, sapo),
    "cispo": ({"clip_low": 0.2, "clip_high": 0.3}, cispo),
    "gmpo": ({}, gmpo),
    "dppo_tv": ({"delta_low": 0.1, "delta_high": 0.1, "drift": 0.01}, dppo_tv),
    "dppo_kl": ({"delta_low": 0.02, "delta_high": 0.05}, dppo_kl),
    "dro": ({"beta": 0.5}, squared(0.25)),
    "dro token": ({"beta": 0.5, "over": "token"}, dro_token),
    "reinforce": ({}, reinforce),
    "topr": ({}, topr),
    "topr_token": ({}, topr_token),
    "truncated_is": ({}, truncated_is),
    "kimi_k15": ({}, squared(0.05)),
    "kimi_k15 token": ({"over": "token"}, kimi_token),
    "vespo": ({}, vespo),
    "vespo sampling": ({"since": "sampling"}, lambda row: vespo(row, "rollout_logp")),
    "two_sided": ({"delta": 1.5}, two_sided),
    "aspo": ({"cap": 1.1}, aspo),
    "decoupled_ppo": ({"cap": 1.1}, decoupled),
    "decoupled_ppo interpolated": ({"near": "interpolated", "cap": None}, interpolated),
    "opsm": ({"delta": 0.02}, opsm),
    "a_star_po": ({"beta": 0.5}, a_star_po),
    "copg": ({"beta": 0.5}, copg),
    "clip_cov": ({"share": 0.1, "lowest": 0.1}, clip_cov),
    "kl_cov": ({"share": 0.1, "coefficient": 2.0}, kl_cov),
    "m2po": ({"tau": 0.01}, m2po),
    "pf_ppo": ({}, pf_ppo),
    "vapo": ({}, vapo),
}


def test_every_loss_has_an_oracle():
    assert {name.split()[0] for name in CASES} == set(registry.names(PACKAGES["policy_loss"]))


def config_of(name, **extra):
    options, _ = CASES[name]
    plugin = {"name": name.split()[0], **options}
    allowed = getattr(registry.find(PACKAGES["policy_loss"], plugin["name"]), "aggregates", {"token_mean"})
    return AlgorithmConfig(loss=plugin, aggregate=sorted(allowed)[0], **extra)


def aggregate(mode, rows):
    sums = [sum(row) for row in rows]
    if mode == "seq_mean_token_mean":
        return sum(mean(row) for row in rows) / len(rows)
    return sum(sums) / (sum(len(r) for r in rows) if mode == "token_mean" else len(rows))


def oracle_value(name, batch, columns, live, fixed):
    """live, fixed: log-probabilities of trained tokens, per trajectory."""
    lists = {n: batch.trained(c) for n, c in columns.items()} | {"adv": batch.trained("advantage")}
    rows = [
        CASES[name][1](SimpleNamespace(logp=live[i], fixed=fixed[i], **{n: c[i] for n, c in lists.items()}))
        for i in range(len(batch.reward_N))
    ]
    return aggregate(config_of(name).aggregate, rows)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", CASES)
def test_equals_its_oracle(ragged, prepared, evaluate, name, dtype, tolerance):
    for seed in range(3):
        batch, objective = ragged(seed, dtype), Objective(config_of(name))
        columns = prepared(objective, batch)
        scalar, _ = evaluate(objective, columns, batch, batch.columns["logp"])
        logps = batch.trained("logp")
        expected = oracle_value(name, batch, columns, logps, logps)
        assert float(scalar) == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_finite_differences_of_the_oracle(ragged, prepared, evaluate, name):
    batch, objective, h = ragged(4, sizes=(3, 2)), Objective(config_of(name)), 1e-6
    columns = prepared(objective, batch)
    logp_T = batch.columns["logp"].clone().requires_grad_()
    evaluate(objective, columns, batch, logp_T)[0].backward()
    fixed, gradient = batch.trained("logp"), batch.trained(logp_T.grad)
    for i, row in enumerate(fixed):
        for t, value in enumerate(row):
            moved = []
            for sign in (1, -1):
                live = [list(r) for r in fixed]
                live[i][t] = value + sign * h
                moved.append(oracle_value(name, batch, columns, live, fixed))
            # central differences in float64 at 1e-6: 1e-9 of cancellation
            assert gradient[i][t] == pytest.approx((moved[0] - moved[1]) / (2 * h), abs=5e-8)


def test_contrastive_gradient_equals_that_of_all_pairs(ragged, prepared, evaluate):
    """CoPG's own definition: half the squared difference of differences, over ordered pairs of one group."""
    batch, beta = ragged(8), 0.5
    batch.columns["logp"] = batch.columns["old_logp"].clone()
    reward = batch.rewards
    peers = [
        [j for j, g in enumerate(batch.groups) if g == own and j != i] for i, own in enumerate(batch.groups)
    ]
    rloo = torch.tensor(
        [reward[i] - mean([reward[j] for j in p]) for i, p in enumerate(peers)], dtype=torch.float64
    )
    batch.columns["advantage"] = rloo[batch.seq_T]
    objective = Objective(config_of("copg"))
    logp_T = batch.columns["logp"].clone().requires_grad_()
    evaluate(objective, prepared(objective, batch), batch, logp_T)[0].backward()
    h = [
        sum(a - b for a, b in zip(x, y, strict=True))
        for x, y in zip(batch.trained("logp"), batch.trained("ref_logp"), strict=True)
    ]
    for i, row in enumerate(batch.trained(logp_T.grad)):
        pairs = mean([(reward[i] - reward[j]) - beta * (h[i] - h[j]) for j in peers[i]])
        assert row == pytest.approx([-beta * pairs / len(reward)] * len(row), abs=1e-12)


def test_geometric_mean_policy_uses_the_global_denominator(ragged, prepared, evaluate):
    # Elsewhere it ends with a mean over the rows at hand, fully masked ones included.
    batch, objective = ragged(9), Objective(config_of("gmpo"))
    columns = prepared(objective, batch)
    whole, _ = evaluate(objective, columns, batch, batch.columns["logp"])
    doubled, _ = evaluate(
        objective, columns, batch, batch.columns["logp"], Totals(1, 2 * len(batch.reward_N))
    )
    assert float(doubled) == pytest.approx(float(whole) / 2, rel=1e-12)


@pytest.mark.parametrize(
    "name,options,text",
    [
        ("gspo", {"clip_low": 2.0}, "clip_low = 2.0"),
        ("two_sided", {"delta": 1.1}, "delta = 1.1"),
        ("sapo", {"tau_positive": 0.0}, "tau_positive = 0.0"),
        ("m2po", {"tau": 0.0}, "tau = 0.0"),
        ("clip_cov", {"share": 0.0}, "share = 0.0"),
        ("dro", {}, "needs the option beta"),
    ],
)
def test_options_without_a_meaning_are_refused(name, options, text):
    with pytest.raises(Exception, match=text):
        Objective(AlgorithmConfig(loss={"name": name, **options}, aggregate="seq_mean_token_mean"))


@pytest.mark.parametrize("name", ["gspo", "luspo", "gmpo", "a_star_po", "copg"])
def test_a_loss_on_whole_answers_refuses_a_token_mean(name):
    with pytest.raises(Exception, match="no meaning with aggregate = token_mean"):
        Objective(AlgorithmConfig(loss=name, aggregate="token_mean"))
