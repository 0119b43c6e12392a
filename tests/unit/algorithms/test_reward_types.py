"""Rewards that an estimator or a shaping refuses in library use: of an integer type, or not finite."""

import math

import pytest
import torch

from hybridrl import registry
from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import OneRank
from hybridrl.algorithms.columns import TOKEN_COLUMNS
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.algorithms.plugins import build
from hybridrl.config.schema import AlgorithmConfig


def estimate(name, batch):
    made = load_estimator(AlgorithmConfig(estimator=name))
    arguments = batch.arguments(*made.needs)
    if made.needs & TOKEN_COLUMNS:
        arguments |= {"tokens": batch.tokens, "reduce": OneRank()}
    return made(reward_N=batch.reward_N, group_N=batch.group_N, **arguments)


@pytest.mark.parametrize("name", registry.names(PACKAGES["estimator"]))
def test_integer_rewards_are_refused_never_truncated(ragged, name):
    for dtype in (torch.int64, torch.int32, torch.bool):
        batch = ragged(0)
        batch.reward_N = (batch.reward_N > 0).to(dtype)
        with pytest.raises(ValueError, match=r"pass reward_N.float\(\)"):
            estimate(name, batch)


@pytest.mark.parametrize("name", registry.names(PACKAGES["estimator"]))
def test_rewards_that_are_not_finite_are_refused_also_where_they_are_not_used(ragged, name):
    for value in (math.nan, math.inf):
        batch = ragged(0)
        batch.reward_N[1] = value
        with pytest.raises(ValueError, match=r"non-finite reward at \[1\]"):
            estimate(name, batch)


SHAPING_OPTIONS = {
    "overlong": {"limit": 8, "margin": 2},
    "affine": {"scale": 2.0},
    "clip": {"lowest": 0.0, "highest": 1.0},
}


@pytest.mark.parametrize("name", registry.names(PACKAGES["shaping"]))
def test_shaping_refuses_integer_rewards_too(ragged, name):
    batch = ragged(0)
    made = build("shaping", name, SHAPING_OPTIONS.get(name, {}), where="algorithm.shaping")
    with pytest.raises(ValueError, match=r"pass reward_N.float\(\)"):
        made((batch.reward_N > 0).long(), batch.group_N, **batch.arguments(*made.needs))
