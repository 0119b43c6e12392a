"""Centred ranks, against plain Python."""

import pytest
import torch

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.config.schema import AlgorithmConfig


def advantage(reward_N, group_N):
    return load_estimator(AlgorithmConfig(estimator="rank"))(reward_N, group_N)


def test_equals_its_oracle(ragged):
    for seed in range(4):
        batch = ragged(seed, sizes=(4, 3, 4, 2, 1))
        expected = []
        for s, own in zip(batch.rewards, batch.groups, strict=True):
            group = [r for r, g in zip(batch.rewards, batch.groups, strict=True) if g == own]
            below, above = sum(r < s for r in group), sum(r > s for r in group)
            expected.append((below - above) / max(len(group) - 1, 1))
        assert advantage(batch.reward_N, batch.group_N).tolist() == pytest.approx(expected, abs=1e-12)


def test_only_the_order_of_rewards_matters(ragged):
    batch = ragged(5)
    assert torch.equal(
        advantage(batch.reward_N, batch.group_N), advantage(batch.reward_N.exp() * 100, batch.group_N)
    )
