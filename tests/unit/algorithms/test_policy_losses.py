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

# An oracle gives the token losses of one trajectory. `row.logp` carries the gradient; `row.fixed` is a copy
# that does not: differentiating in `logp` alone gives the gradient with everything behind a stop-gradient
# held still.


def per_token(formula):
    def rows(row):
        names = list(vars(row))
        return [
            formula(SimpleNamespace(**{n: getattr(row, n)[t] for n in names})) for t in range(len(row.logp))
        ]

    return rows


def clip(x, low, high):
    return min(max(x, low), high)


def ppo(x, r, low=0.2, high=0.2):
    return max(-r * x.adv, -clip(r, 1 - low, 1 + high) * x.adv)


def ratio(x):
    return math.exp(x.logp - x.old_logp)


def fixed_ratio(x, before="old_logp"):
    return math.exp(x.fixed - getattr(x, before))


def mean(values):
    return sum(values) / len(values) if values else 0.0


@per_token
def ppo_clip(x):
    return ppo(x, ratio(x))


@per_token
def ppo_dual(x):
    return min(ppo(x, ratio(x)), -1.2 * x.adv) if x.adv < 0 else ppo(x, ratio(x))


def gspo(row):
    s = mean([f - o for f, o in zip(row.fixed, row.old_logp, strict=True)])
    tokens = zip(row.logp, row.fixed, row.adv, strict=True)
    return [ppo(SimpleNamespace(adv=a), math.exp(logp - f + s), 0.05, 0.1) for logp, f, a in tokens]


@per_token
def sapo(x):
    tau = 1.0 if x.adv > 0 else 1.05
    return -4 / tau / (1 + math.exp(-tau * (ratio(x) - 1))) * x.adv


@per_token
def cispo(x):
    return -clip(fixed_ratio(x), 0.8, 1.3) * x.adv * x.logp


def gmpo(row):
    logs = [
        min(logp - o, 0.4) if a > 0 else max(logp - o, -0.4)
        for logp, o, a in zip(row.logp, row.old_logp, row.adv, strict=True)
    ]
    return [-math.exp(mean(logs)) * a for a in row.adv]


@per_token
def dppo_tv(x):
    change = math.exp(x.fixed) - math.exp(x.old_logp)
    inside = change <= 0.1 if x.adv > 0 else change >= -0.1
    return -x.adv * min(fixed_ratio(x), 20) * x.logp * inside + 0.01 * (x.logp - x.old_logp) ** 2


@per_token
def dppo_kl(x):
    p, q = math.exp(x.old_logp), math.exp(x.fixed)
    divergence = p * (x.old_logp - x.fixed) + (1 - p) * math.log((1 - p + 1e-8) / (1 - q + 1e-8))
    away = q > p if x.adv > 0 else q < p
    bound = 0.05 if x.adv > 0 else 0.02
    return 0.0 * x.logp if divergence > bound and away else -x.adv * min(fixed_ratio(x), 20) * x.logp


@per_token
def dro_token(x):
    return -(x.logp * x.adv - 0.25 * (x.logp - x.old_logp) ** 2)


def squared(weight):
    """-A sum of logp + weight (log ratio of the answer)^2, the square shared out evenly over its tokens."""

    def rows(row):
        moved = sum(logp - o for logp, o in zip(row.logp, row.old_logp, strict=True))
        share = weight * moved**2 / max(len(row.logp), 1)
        return [-a * logp + share for logp, a in zip(row.logp, row.adv, strict=True)]

    return rows


@per_token
def reinforce(x):
    return -x.adv * x.logp


def topr(row):
    whole = min(math.exp(sum(f - o for f, o in zip(row.fixed, row.old_logp, strict=True))), 1)
    return [-a * logp * (1 if a > 0 else whole) for logp, a in zip(row.logp, row.adv, strict=True)]


@per_token
def topr_token(x):
    return -x.adv * x.logp * (1 if x.adv > 0 else min(fixed_ratio(x), 1))


@per_token
def truncated_is(x):
    return -x.adv * x.logp * min(fixed_ratio(x), 1)


@per_token
def kimi_token(x):
    return -x.adv * x.logp + 0.05 * (x.logp - x.old_logp) ** 2


def vespo(row, before="old_logp"):
    w = clip(
        math.exp(sum(f - o for f, o in zip(row.fixed, getattr(row, before), strict=True))), 1e-8, math.exp(20)
    )
    out = []
    for logp, a in zip(row.logp, row.adv, strict=True):
        k, lam = (2, 3) if a >= 0 else (3, 2)
        out.append(-math.exp(lam) * w**k * math.exp(-lam * w) * a * logp)
    return out


@per_token
def two_sided(x):
    return max(-min(ratio(x), 1.5) * x.adv, -clip(ratio(x), 0.8, 1.2) * x.adv)


@per_token
def aspo(x):
    if x.adv <= 0:
        return ppo(x, ratio(x), 0.2, 0.28)
    moving = math.exp(x.logp - x.fixed) if fixed_ratio(x) <= 1.28 else 1.0
    return -min(1 / fixed_ratio(x), 1.1) * moving * x.adv


@per_token
def decoupled(x):
    return min(math.exp(x.old_logp - x.rollout_logp), 1.1) * ppo(x, ratio(x))


@per_token
def interpolated(x):
    near = x.rollout_logp + x.lag / (x.lag + 1) * (x.fixed - x.rollout_logp)
    return math.exp(near - x.rollout_logp) * ppo(x, math.exp(x.logp - near))


def opsm(row):
    away = mean([r - f for r, f in zip(row.rollout_logp, row.fixed, strict=True)])
    return [
        0.0 * loss if a < 0 and away > 0.02 else loss for loss, a in zip(ppo_clip(row), row.adv, strict=True)
    ]


def a_star_po(row):
    h = 0.5 * sum(logp - r for logp, r in zip(row.logp, row.ref_logp, strict=True))
    return [(h - mean(row.adv)) ** 2 / len(row.adv) for _ in row.adv]


def copg(row):
    h = sum(logp - r for logp, r in zip(row.logp, row.ref_logp, strict=True)) - mean(row.others_log_ratio)
    return [(mean(row.adv) - 0.5 * h) ** 2 / 2 / len(row.adv) for _ in row.adv]


@per_token
def clip_cov(x):
    return x.kept * ppo(x, ratio(x))


@per_token
def kl_cov(x):
    return -ratio(x) * x.adv + 2.0 * x.penalised * abs(x.logp - x.old_logp)


@per_token
def m2po(x):
    return -x.kept * math.exp(x.logp - x.rollout_logp) * x.adv


@per_token
def pf_ppo(x):
    return x.copies * ppo(x, ratio(x))


@per_token
def vapo(x):
    return ppo(x, ratio(x), 0.2, 0.28) - 0.1 * x.imitated * x.logp


CASES = {
    "ppo_clip": ({}, ppo_clip),
    "ppo_clip dual": ({"dual_clip": 1.2}, ppo_dual),
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
