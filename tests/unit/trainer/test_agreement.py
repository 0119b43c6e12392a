"""Agreement of trainer and engine where the ordinary formulas have nothing to work on."""

import pytest
import torch

from hybridrl.algorithms.base import OneRank
from hybridrl.trainer.guards import agreement


def test_equal_logprobs_agree_fully() -> None:
    logp = torch.tensor([-0.1, -2.0, -30.0])
    found = agreement(logp, logp, OneRank())
    assert found["training/rollout_logp_diff_max"] == 0.0
    assert found["training/rollout_probs_diff_max"] == 0.0
    assert found["training/rollout_actor_probs_pearson_corr"] == pytest.approx(1.0, abs=1e-12)


def test_a_rank_without_tokens_adds_nothing() -> None:
    found = agreement(torch.zeros(0), torch.zeros(0), OneRank())
    assert found["training/rollout_probs_diff_mean"] == found["training/rollout_logp_diff_max"] == 0.0


def test_equal_probabilities_of_all_tokens_have_correlation_one_by_convention() -> None:
    found = agreement(torch.full((4,), -1.0), torch.full((4,), -1.0), OneRank())
    assert found["training/rollout_actor_probs_pearson_corr"] == 1.0
