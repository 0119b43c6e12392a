"""The numerics of other frameworks, against what is documented of them, and the differences that `algo diff`
shows."""

import math
from statistics import mean, stdev

import pytest
import torch

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import OneRank
from hybridrl.algorithms.compare import OURS, diff, frameworks
from hybridrl.algorithms.objective import Objective
from hybridrl.config.compatibility import COMPATIBILITY
from hybridrl.config.presets import PRESETS
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import ConfigError

ROWS = [(algorithm, framework) for algorithm, rows in COMPATIBILITY.items() for framework in rows]


def config_of(algorithm, framework):
    return AlgorithmConfig.model_validate(PRESETS[f"{framework}/{algorithm}"].algorithm)


def groups_of(batch):
    return [[batch.rewards[j] for j, g in enumerate(batch.groups) if g == own] for own in batch.groups]


def std(values):
    return stdev(values) if len(values) > 1 else 0.0


def verl_grpo(s, group):
    centre, scale = (0.0, 1.0) if len(group) == 1 else (mean(group), std(group))
    return (s - centre) / (scale + 1e-6)


def nemo_grpo(s, group):
    if len(group) == 1:
        return 0.0
    others = list(group)
    others.remove(s)
    centred, scale = s - mean(others), std(others)
    return centred / (scale + 1e-6) if scale > 0 else centred


def standard(eps):
    return lambda s, group: (s - mean(group)) / (std(group) + eps)


def verl_rloo(s, group):
    n = len(group)
    return s if n == 1 else n / (n - 1) * (s - mean(group))


DOCUMENTED = {
    ("grpo", "verl"): verl_grpo,
    ("grpo", "slime"): standard(1e-6),
    ("grpo", "openrlhf"): standard(1e-9),
    ("grpo", "nemo_rl"): nemo_grpo,
    ("grpo", "trl"): standard(1e-4),
    ("grpo", "prime_rl"): lambda s, group: s - mean(group),
    ("dr_grpo", "verl"): lambda s, group: s if len(group) == 1 else s - mean(group),
    ("dr_grpo", "trl"): lambda s, group: s - mean(group),
    ("rloo", "verl"): verl_rloo,
    ("rloo", "openrlhf"): lambda s, group: 0.0 if len(group) == 1 else verl_rloo(s, group),
}


@pytest.mark.parametrize("row", DOCUMENTED)
def test_group_advantages_are_those_documented(ragged, row):
    for seed in range(4):
        batch = ragged(seed, sizes=(4, 3, 4, 2, 1))
        estimator = load_estimator(config_of(*row))
        found_N = estimator(batch.reward_N, batch.group_N, **batch.arguments(*estimator.needs))
        expected = [DOCUMENTED[row](s, g) for s, g in zip(batch.rewards, groups_of(batch), strict=True)]
        torch.testing.assert_close(found_N, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def whiten(values, counts, with_n):
    every = [v for v, n in zip(values, counts, strict=True) for _ in range(n)]
    variance = sum((v - mean(every)) ** 2 for v in every) / (len(every) if with_n else len(every) - 1)
    return [(v - mean(every)) / math.sqrt(max(variance, 1e-8) if with_n else variance + 1e-8) for v in values]


WHITENED = {
    ("reinforce_plus_plus", "verl"): (lambda s, group: s, False),
    ("reinforce_plus_plus", "openrlhf"): (lambda s, group: s, True),
    ("reinforce_plus_plus", "nemo_rl"): (DOCUMENTED["dr_grpo", "trl"], True),
    ("reinforce_plus_plus_baseline", "verl"): (DOCUMENTED["dr_grpo", "verl"], False),
    ("reinforce_plus_plus_baseline", "slime"): (DOCUMENTED["dr_grpo", "trl"], False),
}


@pytest.mark.parametrize("row", WHITENED)
def test_whitened_advantages_are_those_documented(ragged, row):
    batch, (baseline, with_n) = ragged(5, sizes=(4, 3, 4, 2, 1)), WHITENED[row]
    estimator = load_estimator(config_of(*row))
    found_N = estimator(batch.reward_N, batch.group_N, **batch.arguments(*estimator.needs))
    values = [baseline(s, g) for s, g in zip(batch.rewards, groups_of(batch), strict=True)]
    expected = whiten(values, batch.columns["length"].tolist(), with_n)
    torch.testing.assert_close(found_N, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_every_row_is_compared():
    in_parts = {("gdpo", "verl")}  # test_fidelity.py
    assert set(ROWS) == set(DOCUMENTED) | set(WHITENED) | in_parts


AGGREGATES = {
    "verl": lambda rows: mean(sum(rows, [])),
    "slime": lambda rows: mean(mean(r) for r in rows),
    "trl": lambda rows: mean(sum(rows, [])),
}


@pytest.mark.parametrize("framework", AGGREGATES)
def test_losses_are_those_documented(ragged, framework):
    batch, config = ragged(6), config_of("grpo", framework)
    objective = Objective(config, max_response_tokens=16)
    columns = {n: batch.columns[n] for n in objective.columns}
    scalar, _ = objective(
        batch.columns["logp"], None, columns, batch.columns["advantage"], batch.tokens, batch.totals
    )
    rows = []
    for logp, old, adv in zip(*(batch.trained(n) for n in ("logp", "old_logp", "advantage")), strict=True):
        row = []
        for x, o, a in zip(logp, old, adv, strict=True):
            r = math.exp(x - o)
            loss = max(-r * a, -min(max(r, 0.8), 1.2) * a)
            row.append(min(loss, -3 * a) if framework == "verl" and a < 0 else loss)
        rows.append(row)
    assert float(scalar) == pytest.approx(AGGREGATES[framework](rows), abs=1e-9)


def test_an_eps_of_1e_4_matters_below_a_permille_with_rewards_of_0_and_1_and_more_with_fine_ones():
    estimators = [load_estimator(config_of("grpo", f)) for f in ("verl", "trl")]
    arguments = {"group_N": torch.zeros(4, dtype=torch.int64), "length_N": torch.ones(4, dtype=torch.int64)}
    for reward_N, low, high in (([1.0, 0, 0, 0], 0, 1e-3), ([0.501, 0.5, 0.5, 0.5], 0.1, 1)):
        a_N, b_N = (e(torch.tensor(reward_N, dtype=torch.float64), **arguments) for e in estimators)
        assert low <= float((1 - b_N / a_N).abs().max()) < high


def test_diff_names_what_differs_and_by_how_much():
    found = diff("grpo", "verl", "trl")
    assert {c.key for c in found.choices} == {
        "estimator.eps",
        "estimator.singleton",
        "loss.dual_clip",
        "kl.estimator",
    }
    assert all(c.why for c in found.choices)
    (alone,) = [t for t in found.trajectories if sum(u.group == t.group for u in found.trajectories) == 1]
    assert (alone.reward, alone.advantage_b) == (1.0, 0.0) and alone.advantage_a == pytest.approx(1)
    assert found.max_abs_advantage == pytest.approx(1, abs=1e-5) and found.loss_a != found.loss_b


@pytest.mark.parametrize("algorithm", COMPATIBILITY)
def test_any_two_frameworks_can_be_compared(algorithm):
    names = frameworks(algorithm)
    assert names[0] == OURS
    for a, b in zip(names, names[1:], strict=False):
        found = diff(algorithm, a, b)
        assert all(c.why for c in found.choices), found.choices
        assert all(math.isfinite(t.advantage_a) and math.isfinite(t.advantage_b) for t in found.trajectories)


def test_a_framework_does_not_differ_from_itself():
    found = diff("grpo", "trl", "trl")
    assert not found.choices and found.max_abs_advantage == 0 and found.loss_a == found.loss_b


@pytest.mark.parametrize("algorithm,framework", [("grpo", "ver"), ("gspo", "verl"), ("nothing", "verl")])
def test_a_row_that_does_not_exist_is_refused(algorithm, framework):
    with pytest.raises(ConfigError, match=f"no row of {framework} for {algorithm}"):
        diff(algorithm, framework, framework)


def test_ours_is_one_of_the_rows_where_they_agree(ragged):
    batch = ragged(7)
    ours = load_estimator(AlgorithmConfig(estimator="grpo"))(batch.reward_N, batch.group_N)
    slime = load_estimator(config_of("grpo", "slime"))
    theirs = slime(batch.reward_N, batch.group_N, length_N=batch.columns["length"])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert OneRank().sum(ours) is ours
