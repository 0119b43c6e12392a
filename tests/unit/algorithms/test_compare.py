"""The differences between frameworks that `algo diff` shows."""

import math

import pytest
import torch

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import OneRank
from hybridrl.algorithms.compare import OURS, diff, frameworks
from hybridrl.config.compatibility import COMPATIBILITY
from hybridrl.config.presets import PRESETS
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import ConfigError


def config_of(algorithm, framework):
    return AlgorithmConfig.model_validate(PRESETS[f"{framework}/{algorithm}"].algorithm)


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


@pytest.mark.parametrize("algorithm,framework", [("grpo", "ver"), ("m2po", "verl"), ("nothing", "verl")])
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
