"""Weights against the gap between engine and trainer, and the metrics of that gap, against plain Python."""

import math
from statistics import mean, pstdev

import pytest
import torch

from hybridrl import registry
from hybridrl.algorithms.base import Known, OneRank
from hybridrl.algorithms.mismatch import divergence_metrics, weight_metrics
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.algorithms.sequences import masked
from hybridrl.config.schema import AlgorithmConfig


def inside(x, low, high):
    return float(low <= x <= high)


def every(row, weight):
    return [weight] * len(row)


def reject(divergence, level, high):
    formulas = {"k1": lambda x: x, "k2": lambda x: x * x / 2, "k3": lambda x: math.exp(-x) - 1 + x}

    def rows(row):
        d = [formulas[divergence](-x) for x in row]
        if level == "token":
            return [float(x <= high) for x in d]
        value = {"sequence_sum": sum(d), "sequence_mean": mean(d), "sequence_max": max(map(abs, d))}[level]
        return every(row, float(value <= high))

    return rows


def binary(divergence, level, high):
    """Of a row of (old_logp, rollout_logp)."""

    def one(old, engine):
        p, q = math.exp(engine), math.exp(old)
        if divergence == "binary_tv":
            return abs(p - q)
        return p * math.log(p / q) + (1 - p) * math.log((1 - p + 1e-8) / (1 - q + 1e-8))

    def rows(pairs):
        d = [one(*pair) for pair in pairs]
        if level == "token":
            return [float(x <= high) for x in d]
        value = {"sequence_sum": sum(d), "sequence_mean": mean(d), "sequence_max": max(d)}[level]
        return every(d, float(value <= high))

    return rows


# row: (old_logp, rollout_logp) at the trained tokens of one trajectory
BINARY = {
    f"reject {d} {level}": (
        {"divergence": d, "level": level, "highest": high},
        binary(d, level, high),
    )
    for d, bounds in (("binary_kl", (0.02, 0.1, 0.02, 0.05)), ("binary_tv", (0.1, 0.4, 0.08, 0.2)))
    for level, high in zip(("token", "sequence_sum", "sequence_mean", "sequence_max"), bounds, strict=True)
}

# row: old_logp - rollout_logp at the trained tokens of one trajectory
CASES = {
    "token_is": ({"cap": 1.2}, lambda row: [min(math.exp(x), 1.2) for x in row]),
    "token_is lowest": ({"lowest": 0.9}, lambda row: [min(max(math.exp(x), 0.9), 2) for x in row]),
    "sequence_is": ({"cap": 1.5}, lambda row: every(row, min(math.exp(sum(row)), 1.5))),
    "icepop": (
        {"lowest": 0.8, "highest": 1.2},
        lambda row: [math.exp(x) * inside(math.exp(x), 0.8, 1.2) for x in row],
    ),
    "sequence_mask": ({}, lambda row: every(row, math.exp(sum(row)) * inside(math.exp(sum(row)), 0.5, 2))),
    "sequence_mask plain": ({"weigh": False}, lambda row: every(row, inside(math.exp(sum(row)), 0.5, 2))),
    "geometric_mask": (
        {"lowest": 0.95, "highest": 1.05},
        lambda row: every(row, inside(math.exp(mean(row)), 0.95, 1.05)),
    ),
    "outlier_mask": (
        {"lowest": 0.6, "highest": 1.6},
        lambda row: every(row, float(all(0.6 <= math.exp(x) <= 1.6 for x in row))),
    ),
    "bypass": ({}, lambda row: every(row, 1.0)),
    **{
        f"reject {d} {level}": ({"divergence": d, "level": level, "highest": 0.1}, reject(d, level, 0.1))
        for d in ("k1", "k2", "k3")
        for level in ("token", "sequence_sum", "sequence_mean", "sequence_max")
    },
}


def gaps(batch):
    pairs = zip(batch.trained("old_logp"), batch.trained("rollout_logp"), strict=True)
    return [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]


def objective_of(*names, **options):
    known = CASES | BINARY
    entries = [{"name": n.split()[0], **(known[n][0] if n in known else {}), **options} for n in names]
    return Objective(AlgorithmConfig(correction=entries))


def weights(batch, objective, part=None, reduce=None):
    part = part or batch
    columns = {n: part.columns[n] for n in objective.columns}
    known = Known(0, batch.reward_N, batch.group_N, part.columns["advantage"], part.tokens, columns)
    return objective.prepare(known, reduce or OneRank())


def test_every_correction_has_an_oracle():
    tested = {name.split()[0] for name in CASES} | {"batch_normalise"}
    assert tested == set(registry.names(PACKAGES["correction"]))


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", sorted(set(CASES) - {"bypass"}))
def test_equals_its_oracle(ragged, name, dtype, tolerance):
    for seed in range(3):
        batch = ragged(seed, dtype)
        found_T = weights(batch, objective_of(name)).columns["weight"]
        expected = torch.tensor(sum((CASES[name][1](row) for row in gaps(batch)), []), dtype=dtype)
        torch.testing.assert_close(found_T[batch.mask_T], expected, rtol=tolerance, atol=tolerance)
        assert not found_T[~batch.mask_T].any()


@pytest.mark.parametrize("name", BINARY)
def test_rejection_by_a_binary_divergence_equals_its_oracle(ragged, name):
    kept = []
    for seed in range(3):
        batch = ragged(seed)
        found_T = weights(batch, objective_of(name)).columns["weight"]
        rows = [
            list(zip(*pair, strict=True))
            for pair in zip(batch.trained("old_logp"), batch.trained("rollout_logp"), strict=True)
        ]
        expected = sum((BINARY[name][1](row) for row in rows), [])
        assert found_T[batch.mask_T].tolist() == expected
        kept += expected
    assert 0 < sum(kept) < len(kept)


def test_corrections_are_applied_in_order(ragged):
    batch = ragged(3)
    found_T = weights(batch, objective_of("token_is", "outlier_mask", "batch_normalise")).columns["weight"]
    rows = [
        [a * b for a, b in zip(CASES["token_is"][1](r), CASES["outlier_mask"][1](r), strict=True)]
        for r in gaps(batch)
    ]
    flat = sum(rows, [])
    expected = torch.tensor([w / mean(flat) for w in flat], dtype=torch.float64)
    torch.testing.assert_close(found_T[batch.mask_T], expected, rtol=1e-12, atol=1e-12)


def test_normalising_all_zero_weights_leaves_them(ragged):
    nothing = {"name": "reject", "divergence": "k2", "level": "token", "highest": -1.0}
    objective = Objective(AlgorithmConfig(correction=[nothing, "batch_normalise"]))
    assert not weights(ragged(4), objective).columns["weight"].any()


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("name", [*CASES, *BINARY, "batch_normalise"])
def test_ranks_together_equal_one(ragged, run_ranks, name, num_ranks):
    batch, objective = ragged(5), objective_of(*({"token_is", name} if name == "batch_normalise" else {name}))
    whole = weights(batch, objective)
    mine = [list(range(r, len(batch.reward_N), num_ranks)) for r in range(num_ranks)]
    found = run_ranks(num_ranks, lambda r, reduce: weights(batch, objective, batch.rows(mine[r]), reduce))
    for rank, made in enumerate(found):
        here_T = torch.isin(batch.seq_T, torch.tensor(mine[rank]))
        torch.testing.assert_close(
            made.columns["weight"], whole.columns["weight"][here_T], rtol=1e-12, atol=1e-12
        )
        for metric, value in whole.metrics.items():
            torch.testing.assert_close(made.metrics[metric], value, rtol=1e-12, atol=1e-12)


def test_weights_scale_the_policy_loss_alone(ragged, prepared, evaluate):
    batch = ragged(6)
    objective = Objective(AlgorithmConfig(correction=["token_is"], kl={"coefficient": 0.1}))
    columns = prepared(objective, batch)
    _, metrics = evaluate(objective, columns, batch, batch.columns["logp"])
    plain, plain_metrics = evaluate(
        Objective(AlgorithmConfig(kl={"coefficient": 0.1})), columns, batch, batch.columns["logp"]
    )
    assert metrics.sum["actor/kl_loss"] == plain_metrics.sum["actor/kl_loss"]
    losses = []
    for logp, old, adv, w in zip(
        *(batch.trained(n) for n in ("logp", "old_logp", "advantage")),
        batch.trained(columns["weight"]),
        strict=True,
    ):
        for x, o, a, u in zip(logp, old, adv, w, strict=True):
            r = math.exp(x - o)
            losses.append(u * max(-r * a, -min(max(r, 0.8), 1.2) * a))
    assert float(metrics.sum["actor/pg_loss"]) == pytest.approx(mean(losses), abs=1e-12)
    assert float(metrics.sum["actor/pg_loss"]) != pytest.approx(
        float(plain_metrics.sum["actor/pg_loss"]), abs=1e-6
    )


def test_bypass_takes_the_engines_probabilities_for_the_old_ones(ragged, prepared, evaluate):
    batch = ragged(7)
    objective = Objective(AlgorithmConfig(correction=["bypass"]))
    assert objective.columns == {"rollout_logp"}
    bypassed, _ = evaluate(objective, prepared(objective, batch), batch, batch.columns["logp"])
    batch.columns["old_logp"] = batch.columns["rollout_logp"]
    plain = Objective(AlgorithmConfig())
    expected, _ = evaluate(plain, prepared(plain, batch), batch, batch.columns["logp"])
    assert torch.equal(bypassed, expected)


def test_a_weight_that_was_not_prepared_is_refused(ragged, evaluate):
    batch, objective = ragged(8), objective_of("token_is")
    assert objective.prepares
    with pytest.raises(ValueError, match="'weight'"):
        evaluate(objective, {n: batch.columns[n] for n in objective.columns}, batch, batch.columns["logp"])


def test_metrics_of_weights(ragged):
    batch = ragged(9)
    log_ratio_T = masked(batch.columns["old_logp"] - batch.columns["rollout_logp"], batch.tokens)
    weight_T = torch.where(batch.seq_T == 2, 0.0, masked(log_ratio_T.exp(), batch.tokens))
    found = {
        n.split("/")[1]: float(v)
        for n, v in weight_metrics(weight_T, log_ratio_T, batch.tokens, OneRank()).items()
    }
    rows, w = gaps(batch), sum(batch.trained(weight_T), [])
    flat = sum(rows, [])
    expected = {
        "rollout_is_mean": mean(w),
        "rollout_is_std": pstdev(w),
        "rollout_is_max": max(w),
        "rollout_is_min": min(w),
        "rollout_is_eff_sample_size": sum(w) ** 2 / (len(w) * sum(x * x for x in w)),
        "rollout_is_ratio_fraction_high": mean(float(math.exp(x) > 2) for x in flat),
        "rollout_is_ratio_fraction_low": mean(float(math.exp(x) < 0.5) for x in flat),
        "rollout_rs_masked_fraction": mean(float(x == 0) for x in w),
        "rollout_rs_seq_masked_fraction": 1 / len(rows),
    }
    assert found == pytest.approx(expected, abs=1e-12)


def divergences(batch):
    old, rollout = sum(batch.trained("old_logp"), []), sum(batch.trained("rollout_logp"), [])
    x = [a - b for a, b in zip(old, rollout, strict=True)]
    apart = [abs(math.exp(a) - math.exp(b)) for a, b in zip(old, rollout, strict=True)]
    ppl = [[-mean(row) for row in batch.trained(n)] for n in ("old_logp", "rollout_logp")]
    p, q = [math.exp(a) for a in old], [math.exp(b) for b in rollout]
    cov = mean((a - mean(p)) * (b - mean(q)) for a, b in zip(p, q, strict=True))
    return {
        "rollout_corr/kl": -mean(x),
        "rollout_corr/k3_kl": mean(math.exp(v) - v - 1 for v in x),
        "rollout_corr/chi2_token": mean(math.exp(2 * v) for v in x) - 1,
        "rollout_corr/chi2_seq": mean(math.exp(2 * sum(row)) for row in gaps(batch)) - 1,
        "rollout_corr/training_ppl": mean(math.exp(v) for v in ppl[0]),
        "rollout_corr/rollout_ppl": mean(math.exp(v) for v in ppl[1]),
        "rollout_corr/log_ppl_diff": mean(a - b for a, b in zip(*ppl, strict=True)),
        "rollout_corr/logp_abs_diff_mean": mean(map(abs, x)),
        "rollout_corr/logp_abs_diff_max": max(map(abs, x)),
        "training/rollout_probs_diff_mean": mean(apart),
        "training/rollout_probs_diff_std": pstdev(apart),
        "training/rollout_probs_diff_max": max(apart),
        "training/rollout_actor_probs_pearson_corr": cov / (pstdev(p) * pstdev(q)),
    }


def test_metrics_of_the_gap(ragged, run_ranks):
    batch = ragged(10)
    expected = divergences(batch)
    mine = [[0, 3, 4], [i for i in range(len(batch.reward_N)) if i not in (0, 3, 4)]]

    def run(rank, reduce):
        part = batch.rows(mine[rank])
        return divergence_metrics(part.columns["old_logp"], part.columns["rollout_logp"], part.tokens, reduce)

    for found in run_ranks(2, run):
        assert {n: float(v) for n, v in found.items()} == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_equal_policies_have_no_gap(ragged):
    batch = ragged(11)
    old_T = batch.columns["old_logp"]
    found = divergence_metrics(old_T, old_T.clone(), batch.tokens, OneRank())
    assert float(found["rollout_corr/k3_kl"]) == 0 and float(found["rollout_corr/chi2_seq"]) == 0
    assert float(found["training/rollout_actor_probs_pearson_corr"]) == pytest.approx(1)
