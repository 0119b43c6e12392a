"""The objective over a whole batch, by hand; and that no split into ranks and microbatches changes it."""

import math

import pytest
import torch

from hybridrl.algorithms.base import Metrics, Tokens, Totals
from hybridrl.algorithms.objective import Objective
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import ConfigError

LONGEST = 16


def aggregate(mode, rows):
    """rows: token values of each trajectory."""
    num_tokens = sum(len(r) for r in rows)
    sums = [sum(r) for r in rows]
    return {
        "token_mean": sum(sums) / num_tokens,
        "token_sum": sum(sums),
        "seq_mean_token_sum": sum(sums) / len(rows),
        "seq_mean_token_sum_norm": sum(sums) / len(rows) / LONGEST,
        "seq_mean_token_mean": sum(s / len(r) for s, r in zip(sums, rows, strict=True) if r) / len(rows),
    }[mode]


MODES = ["token_mean", "token_sum", "seq_mean_token_sum", "seq_mean_token_sum_norm", "seq_mean_token_mean"]


def ppo(batch, low=0.2, high=0.2, dual=None):
    rows = []
    for logps, olds, a in zip(
        batch.trained("logp"), batch.trained("old_logp"), batch.trained("advantage"), strict=True
    ):
        row = []
        for logp, old, adv in zip(logps, olds, a, strict=True):
            ratio = math.exp(logp - old)
            loss = max(-ratio * adv, -min(max(ratio, 1 - low), 1 + high) * adv)
            row.append(min(loss, -dual * adv) if dual and adv < 0 else loss)
        rows.append(row)
    return rows


def evaluate(config, batch, logp_T=None, **changes):
    objective = Objective(config, max_response_tokens=LONGEST)
    columns = {n: batch.columns[n] for n in objective.columns}
    logp_T = batch.columns["logp"] if logp_T is None else logp_T
    arguments = {"entropy_T": batch.columns["entropy"], "totals": batch.totals, **changes}
    return objective(
        logp_T=logp_T,
        columns=columns,
        advantage_T=batch.columns["advantage"],
        tokens=batch.tokens,
        **arguments,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_policy_loss_in_every_aggregation_mode(ragged, mode, dtype, tolerance):
    batch = ragged(0, dtype)
    scalar, metrics = evaluate(AlgorithmConfig(aggregate=mode), batch)
    expected = aggregate(mode, ppo(batch))
    assert float(scalar) == pytest.approx(expected, rel=10 * tolerance, abs=tolerance)
    assert float(metrics.sum["actor/pg_loss"]) == float(scalar)


@pytest.mark.parametrize("options", [{"clip_low": 0.1, "clip_high": 0.28}, {"dual_clip": 1.5}])
def test_clip_bounds(ragged, options):
    batch = ragged(1)
    scalar, _ = evaluate(AlgorithmConfig(loss={"name": "ppo_clip", **options}), batch)
    expected = ppo(
        batch, options.get("clip_low", 0.2), options.get("clip_high", 0.2), options.get("dual_clip")
    )
    assert float(scalar) == pytest.approx(aggregate("token_mean", expected), abs=1e-12)


def test_kl_and_entropy_are_added_in_the_same_mode(ragged):
    batch = ragged(2)
    config = AlgorithmConfig(
        aggregate="seq_mean_token_mean", kl={"coefficient": 0.3, "estimator": "k2"}, entropy_coefficient=0.01
    )
    scalar, metrics = evaluate(config, batch)
    pairs = zip(batch.trained("logp"), batch.trained("ref_logp"), strict=True)
    kl = aggregate(
        config.aggregate, [[(a - b) ** 2 / 2 for a, b in zip(*pair, strict=True)] for pair in pairs]
    )
    entropy = aggregate(config.aggregate, batch.trained("entropy"))
    assert float(metrics.sum["actor/kl_loss"]) == pytest.approx(kl, abs=1e-12)
    expected = float(metrics.sum["actor/pg_loss"]) + 0.3 * kl - 0.01 * entropy
    assert float(scalar) == pytest.approx(expected, abs=1e-12)


def test_metrics_are_means_over_trained_tokens(ragged):
    batch = ragged(3)
    _, metrics = evaluate(AlgorithmConfig(loss={"name": "ppo_clip", "dual_clip": 1.2}), batch)
    logp, old, adv = (torch.tensor(sum(batch.trained(n), [])) for n in ("logp", "old_logp", "advantage"))
    ratio = (logp - old).exp()
    clipped = -ratio.clamp(0.8, 1.2) * adv > -ratio * adv
    loss = torch.maximum(-ratio.clamp(0.8, 1.2) * adv, -ratio * adv)
    lower = (adv < 0) & (loss > -1.2 * adv)
    expected = {
        "actor/pg_clipfrac": clipped.double().mean(),
        "actor/pg_clipfrac_lower": lower.double().mean(),
        "actor/ppo_kl": (old - logp).double().mean(),
        "actor/entropy": torch.tensor(sum(batch.trained("entropy"), [])).double().mean(),
    }
    for name, value in expected.items():
        assert float(metrics.sum[name]) == pytest.approx(float(value), abs=1e-6), name
    assert float(metrics.max["actor/ratio_max_abs_err"]) == pytest.approx(
        float((ratio - 1).abs().max()), rel=1e-6
    )


def test_the_first_minibatch_has_ratio_exactly_one(ragged):
    batch = ragged(4, torch.float32)
    _, metrics = evaluate(AlgorithmConfig(), batch, logp_T=batch.columns["old_logp"].clone())
    assert float(metrics.max["actor/ratio_max_abs_err"]) == 0
    assert float(metrics.sum["actor/ppo_kl"]) == 0 and float(metrics.sum["actor/pg_clipfrac"]) == 0


@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf, 3.0])
def test_nothing_outside_the_loss_mask_reaches_loss_gradient_or_metrics(ragged, outside):
    batch = ragged(5)
    config = AlgorithmConfig(kl={"coefficient": 0.1}, entropy_coefficient=0.1)
    clean_T = batch.columns["logp"].clone().requires_grad_()
    expected, clean_metrics = evaluate(config, batch, clean_T)
    expected.backward()
    for name in ("logp", "old_logp", "ref_logp", "entropy"):
        batch.columns[name] = torch.where(batch.mask_T, batch.columns[name], outside)
    leaky_T = batch.columns["logp"].clone().requires_grad_()
    scalar, metrics = evaluate(config, batch, leaky_T)
    scalar.backward()
    assert torch.equal(scalar, expected) and torch.equal(leaky_T.grad, clean_T.grad)
    assert metrics == clean_metrics and not leaky_T.grad[~batch.mask_T].any()


def test_metrics_merge_adds_sums_and_keeps_the_largest():
    a = Metrics({"x": torch.tensor(1.0)}, {"m": torch.tensor(5.0)})
    b = Metrics({"x": torch.tensor(2.0), "y": torch.tensor(4.0)}, {"m": torch.tensor(3.0)})
    merged = Metrics().merge(a).merge(b)
    assert merged == Metrics({"x": torch.tensor(3.0), "y": torch.tensor(4.0)}, {"m": torch.tensor(5.0)})
    assert a == Metrics({"x": torch.tensor(1.0)}, {"m": torch.tensor(5.0)})


def test_a_missing_column_is_refused(ragged):
    batch = ragged(6)
    objective = Objective(AlgorithmConfig())
    with pytest.raises(ValueError, match="old_logp"):
        objective(batch.columns["logp"], None, {}, batch.columns["advantage"], batch.tokens, batch.totals)


def test_an_entropy_bonus_without_entropy_is_refused(ragged):
    with pytest.raises(ValueError, match="entropy_coefficient = 0.1"):
        evaluate(AlgorithmConfig(entropy_coefficient=0.1), ragged(7), entropy_T=None)


def test_kl_in_the_reward_stays_out_of_the_loss(ragged):
    config = AlgorithmConfig(kl={"coefficient": 0.5, "in": "reward"})
    assert Objective(config).columns == {"old_logp"}
    assert "actor/kl_loss" not in evaluate(config, ragged(8))[1].sum


def test_the_norm_is_a_constant_of_the_config_not_the_longest_answer():
    # Dividing by the padded width instead would make the step size depend on the longest answer of each
    # batch.
    with pytest.raises(ConfigError, match="longest response"):
        Objective(AlgorithmConfig(aggregate="seq_mean_token_sum_norm"))
    one = Objective(AlgorithmConfig(aggregate="seq_mean_token_sum_norm"), max_response_tokens=10)
    for length in (2, 7):
        tokens = Tokens(torch.zeros(length, dtype=torch.int64), torch.ones(length, dtype=torch.bool), 1)
        zero_T, totals = torch.zeros(length), Totals(length, 1)
        scalar, _ = one(zero_T, None, {"old_logp": zero_T}, torch.ones(length), tokens, totals)
        assert float(scalar) == pytest.approx(-length / 10)


def test_an_empty_microbatch_adds_nothing():
    none = torch.zeros(0)
    tokens = Tokens(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool), 2)
    scalar, metrics = Objective(AlgorithmConfig())(none, none, {"old_logp": none}, none, tokens, Totals(5, 2))
    assert float(scalar) == 0 and all(float(v) == 0 for v in (metrics.sum | metrics.max).values())
