"""Shaping of rewards, sampling of groups, adaptive coefficients: against plain Python, on lists."""

import math
from statistics import mean, stdev

import pytest
import torch

from hybridrl import registry
from hybridrl.algorithms.controllers import AdaptiveEntropy, AdaptiveKL
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.algorithms.plugins import build
from hybridrl.algorithms.sampling import (
    informative,
    within_difficulty,
)
from hybridrl.algorithms.shaping_chain import load_shaping
from hybridrl.errors import ConfigError


def shaping(name, **options):
    return build("shaping", name, options, where="algorithm.shaping")


def run(name, batch, **options):
    made = shaping(name, **options)
    return made(batch.reward_N, batch.group_N, **batch.arguments(*made.needs))


def groups_of(batch):
    return [[j for j, g in enumerate(batch.groups) if g == own] for own in batch.groups]


def overlong(batch):
    lengths = batch.columns["length"].tolist()
    return [s - 2 * min(max((n - 4) / 4, 0), 1) for s, n in zip(batch.rewards, lengths, strict=True)]


def kimi(batch):
    n, out = batch.columns["length"].tolist(), []
    for i, group in enumerate(groups_of(batch)):
        short, long = min(n[j] for j in group), max(n[j] for j in group)
        bonus = 0.5 - (n[i] - short) / (long - short) if long > short else 0
        out.append(batch.rewards[i] + (bonus if batch.rewards[i] > 0 else min(0, bonus)))
    return out


def relative_length(batch):
    sizes = [batch.columns[n].tolist() for n in ("length", "prompt_length", "turns")]
    out = []
    for i, group in enumerate(groups_of(batch)):
        share = sum(w * s[i] / max(s[j] for j in group) for w, s in zip((0.1, 0.2, 0.3), sizes, strict=True))
        out.append(batch.rewards[i] - mean(batch.rewards[j] for j in group) * share)
    return out


def running_norm(batch):
    s = batch.rewards
    return [(x - mean(s)) / math.sqrt(stdev(s) ** 2 + 1e-8) for x in s]


CASES = {
    "overlong": ({"limit": 8, "margin": 4, "penalty": 2.0}, overlong),
    "kimi_length": ({}, kimi),
    "relative_length": ({"answer": 0.1, "prompt": 0.2, "turns": 0.3}, relative_length),
    "affine": ({"scale": 2.0, "shift": -0.5}, lambda b: [2 * (s - 0.5) for s in b.rewards]),
    "clip": ({"lowest": -0.5, "highest": 0.3}, lambda b: [min(max(s, -0.5), 0.3) for s in b.rewards]),
    "running_norm": ({}, running_norm),
}


def test_every_shaping_has_an_oracle():
    assert set(CASES) == set(registry.names(PACKAGES["shaping"]))


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", CASES)
def test_equals_its_oracle(ragged, name, dtype, tolerance):
    options, oracle = CASES[name]
    for seed in range(3):
        batch = ragged(seed, dtype, sizes=(4, 3, 4, 2, 1))
        expected = torch.tensor(oracle(batch), dtype=dtype)
        torch.testing.assert_close(run(name, batch, **options), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_a_reward_that_is_not_finite_is_refused(ragged, name):
    batch = ragged(4)
    batch.reward_N[3] = math.inf
    with pytest.raises(ValueError, match=r"non-finite reward at \[3\]"):
        run(name, batch, **CASES[name][0])


@pytest.mark.parametrize("length,penalty", [(0, 0.0), (16384, 0.0), (18432, 0.5), (20480, 1.0), (30000, 1.0)])
def test_the_overlong_penalty_of_the_paper(length, penalty):
    made = shaping("overlong", limit=20480, margin=4096)
    shaped = made(torch.tensor([1.0]), torch.tensor([0]), length_N=torch.tensor([length]))
    assert float(shaped) == pytest.approx(1 - penalty)


def test_a_margin_beyond_the_limit_is_refused():
    with pytest.raises(ConfigError, match="margin = 9 is not in"):
        shaping("overlong", limit=8, margin=9)


def test_equally_long_answers_get_no_length_reward():
    made = shaping("kimi_length")
    reward_N = torch.tensor([1.0, 0.0])
    assert torch.equal(made(reward_N, torch.tensor([0, 0]), length_N=torch.tensor([5, 5])), reward_N)


def test_running_statistics_are_those_of_all_rewards_so_far(ragged):
    made, seen = shaping("running_norm"), []
    for seed in range(3):
        batch = ragged(seed)
        seen += batch.rewards
        expected = [(x - mean(seen)) / math.sqrt(stdev(seen) ** 2 + 1e-8) for x in batch.rewards]
        found = made(batch.reward_N, batch.group_N)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_running_statistics_survive_a_resume(ragged):
    made, resumed = shaping("running_norm"), shaping("running_norm")
    made(ragged(0).reward_N, ragged(0).group_N)
    resumed.load_state_dict(made.state_dict())
    batch = ragged(1)
    assert torch.equal(made(batch.reward_N, batch.group_N), resumed(batch.reward_N, batch.group_N))


def test_a_chain_applies_its_steps_in_order(ragged):
    batch = ragged(5)
    entries = ["kimi_length", {"name": "affine", "scale": 3.0}, {"name": "clip", "highest": 1.0}]
    chain = load_shaping(entries, where="algorithm.shaping")
    assert chain.needs == {"length"}
    found = chain(batch.reward_N, batch.group_N, length_N=batch.columns["length"])
    expected = [min(max(3 * s, -10), 1) for s in kimi(batch)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_an_unknown_shaping_is_refused():
    with pytest.raises(ConfigError, match="overlong"):
        load_shaping(["overlng"], where="algorithm.shaping")


REWARDS = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 5.0])
GROUPS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 4])


def test_flat_groups_and_groups_of_one_are_not_informative():
    assert informative(REWARDS, GROUPS).tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def test_difficulty_is_a_band_of_solved_shares():
    assert within_difficulty(REWARDS, GROUPS, lowest=0.2, highest=0.8).tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert within_difficulty(REWARDS, GROUPS, lowest=0.0, highest=0.4).tolist() == [0, 0, 0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    "kl,factor", [(0.2, 1 + 0.2 * 500 / 10_000), (0.0, 1 - 0.2 * 500 / 10_000), (0.11, 1 + 0.1 * 0.05)]
)
def test_the_kl_coefficient_follows_its_target(kl, factor):
    after = AdaptiveKL(coefficient=0.01, target=0.1).next(kl, 500)
    assert after.coefficient == pytest.approx(0.01 * factor)


def test_the_kl_coefficient_settles_where_the_divergence_does():
    controller = AdaptiveKL(coefficient=1.0, target=0.1, horizon=1000)
    for _ in range(200):
        controller = controller.next(0.1 / controller.coefficient * 3, 500)
    assert controller.coefficient == pytest.approx(3, rel=1e-3)


def test_the_entropy_coefficient_steps_towards_its_target():
    controller = AdaptiveEntropy(coefficient=0.0, target=0.5, highest=0.01)
    path = []
    for entropy in (0.1, 0.1, 0.1, 0.9, 0.9, 0.9):
        controller = controller.next(entropy)
        path.append(controller.coefficient)
    assert path == pytest.approx([0.005, 0.01, 0.01, 0.005, 0.0, 0.0])
