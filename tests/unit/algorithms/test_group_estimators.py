"""Estimators that compare the answers to one prompt, against plain Python."""

import math
from statistics import mean, stdev

import pytest
import torch

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import ConfigError

GROUP_RELATIVE = ["grpo", "dr_grpo", "rloo"]
WHITENED = ["reinforce_plus_plus", "reinforce_plus_plus_baseline"]


def estimator(name: str, **options):
    return load_estimator(AlgorithmConfig(estimator={"name": name, **options}))


def members(groups: list[int], i: int) -> list[int]:
    return [j for j, g in enumerate(groups) if g == groups[i]]


def grpo(rewards, groups, scale_by_std=True, eps=1e-6):
    out = []
    for i, s in enumerate(rewards):
        group = [rewards[j] for j in members(groups, i)]
        spread = stdev(group) if len(group) > 1 else 0.0
        out.append((s - mean(group)) / (spread + eps if scale_by_std else 1))
    return out


def rloo(rewards, groups):
    others = [[rewards[j] for j in members(groups, i) if j != i] for i in range(len(rewards))]
    return [s - mean(o) if o else 0.0 for s, o in zip(rewards, others, strict=True)]


def whiten(values, counts, eps=1e-8, bessel=True):
    every = [v for v, n in zip(values, counts, strict=True) for _ in range(n)]
    middle = sum(every) / len(every)
    variance = sum((v - middle) ** 2 for v in every) / (len(every) - bessel)
    return [(v - middle) / math.sqrt(variance + eps) for v in values]


ORACLES = {
    "grpo": lambda b: grpo(b.rewards, b.groups),
    "dr_grpo": lambda b: grpo(b.rewards, b.groups, scale_by_std=False),
    "rloo": lambda b: rloo(b.rewards, b.groups),
    "reinforce_plus_plus": lambda b: whiten(b.rewards, b.columns["length"].tolist()),
    "reinforce_plus_plus_baseline": lambda b: whiten(
        grpo(b.rewards, b.groups, scale_by_std=False), b.columns["length"].tolist()
    ),
}


def run(name, batch, **options):
    made = estimator(name, **options)
    return made(batch.reward_N, batch.group_N, **batch.arguments(*made.needs))


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", ORACLES)
def test_equals_its_oracle(ragged, name, dtype, tolerance):
    for seed in range(5):
        batch = ragged(seed, dtype, sizes=(4, 3, 4, 2, 1))
        expected = torch.tensor(ORACLES[name](batch), dtype=dtype)
        torch.testing.assert_close(run(name, batch), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", GROUP_RELATIVE)
def test_groups_sum_to_zero(ragged, name):
    batch = ragged(1)
    sums_G = torch.zeros(4, dtype=torch.float64).index_add(0, batch.group_N, run(name, batch))
    assert sums_G.abs().max() < 1e-12


@pytest.mark.parametrize("name", GROUP_RELATIVE)
@pytest.mark.parametrize("value", [0.1, 1e8, -7.3])
def test_a_flat_group_gets_exactly_zero(name, value):
    # In float32 the mean of three 0.1 is not 0.1: centring must not turn that into an advantage.
    advantage_N = estimator(name)(torch.full((3,), value), torch.zeros(3, dtype=torch.int64))
    assert advantage_N.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", GROUP_RELATIVE)
def test_a_group_of_one_gets_exactly_zero(name):
    # Elsewhere such a trajectory trains on its raw reward.
    advantage_N = estimator(name)(torch.tensor([5.0, 1.0, 0.0]), torch.tensor([0, 1, 1]))
    assert advantage_N[0] == 0


@pytest.mark.parametrize("name", GROUP_RELATIVE)
def test_group_numbers_may_be_missing(name):
    reward_N = torch.tensor([1.0, 0.0, 3.0, 2.0])
    dense_N = estimator(name)(reward_N, torch.tensor([0, 0, 1, 1]))
    assert torch.equal(estimator(name)(reward_N, torch.tensor([2, 2, 7, 7])), dense_N)


@pytest.mark.parametrize("name", GROUP_RELATIVE + WHITENED)
def test_order_of_trajectories_does_not_matter(ragged, name):
    batch = ragged(2)
    order = torch.randperm(len(batch.reward_N), generator=torch.Generator().manual_seed(1))
    made = estimator(name)
    shuffled = made(
        batch.reward_N[order],
        batch.group_N[order],
        **{n: c[order] for n, c in batch.arguments(*made.needs).items()},
    )
    torch.testing.assert_close(shuffled, run(name, batch)[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", GROUP_RELATIVE + WHITENED)
def test_a_shift_of_all_rewards_changes_nothing(ragged, name):
    batch = ragged(3)
    before = run(name, batch)
    batch.reward_N = batch.reward_N + 17.0
    torch.testing.assert_close(run(name, batch), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name,power", [("grpo", 0), ("dr_grpo", 1), ("rloo", 1), ("reinforce_plus_plus", 0)])
def test_a_scale_of_all_rewards_scales_or_cancels(ragged, name, power):
    batch = ragged(4)
    before = run(name, batch)
    batch.reward_N = batch.reward_N * 8.0
    # eps is in units of reward, or of its square: what it adds shrinks with the scale
    torch.testing.assert_close(run(name, batch), before * 8.0**power, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", GROUP_RELATIVE + WHITENED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_refused(ragged, name, bad):
    batch = ragged(5)
    batch.reward_N[3] = bad
    with pytest.raises(ValueError, match=r"non-finite reward at \[3\]"):
        run(name, batch)


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        estimator("grpo")(torch.zeros(3), torch.zeros(2, dtype=torch.int64))


def test_a_negative_group_is_refused():
    with pytest.raises(ValueError, match="negative group"):
        estimator("grpo")(torch.zeros(2), torch.tensor([0, -1]))


@pytest.mark.parametrize("name", [*GROUP_RELATIVE, "reinforce_plus_plus_baseline"])
def test_one_sample_per_prompt_is_refused_before_the_run(name):
    with pytest.raises(ConfigError, match="samples_per_prompt = 1") as refused:
        load_estimator(AlgorithmConfig(estimator=name, samples_per_prompt=1))
    assert refused.value.where == "algorithm.samples_per_prompt"


def test_one_sample_per_prompt_is_enough_without_a_group_baseline():
    assert load_estimator(AlgorithmConfig(estimator="reinforce_plus_plus", samples_per_prompt=1)).needs == {
        "length"
    }


def test_whitening_counts_tokens_not_trajectories():
    advantage_N = estimator("reinforce_plus_plus")(
        torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), length_N=torch.tensor([9, 1])
    )
    assert abs(float(advantage_N[0] * 9 + advantage_N[1])) < 1e-5


def test_biased_variance_is_a_choice():
    # n-1 and n differ by a factor sqrt(10 / 9) over ten tokens: visible in golden vectors
    reward_N, group_N, length_N = torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.tensor([5, 5])
    with_bessel = estimator("reinforce_plus_plus")(reward_N, group_N, length_N=length_N)
    biased = estimator("reinforce_plus_plus", bessel=False)(reward_N, group_N, length_N=length_N)
    torch.testing.assert_close(biased / with_bessel, torch.full((2,), math.sqrt(10 / 9)))
