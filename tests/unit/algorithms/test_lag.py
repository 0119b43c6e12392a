"""A warning if answers are more than one update old and the objective ignores who sampled them."""

import controller_fakes as fakes
import pytest

from hybridrl.algorithms.lag import lag_warning


def warning(max_lag: int, **algorithm):
    return lag_warning(fakes.config(batch={"max_lag": max_lag}, algorithm=algorithm))


@pytest.mark.parametrize(
    "algorithm",
    [
        {"loss": "reinforce"},
        {"loss": "reinforce", "correction": ["bypass"]},
        {"loss": "ppo_clip"},  # old_logp is of the policy before the update, not of the one that sampled
    ],
)
def test_a_loss_without_trust_region_warns_above_lag_one(algorithm) -> None:
    text = warning(2, **algorithm)
    assert text is not None and algorithm["loss"] in text and "batch.max_lag = 2" in text
    assert warning(1, **algorithm) is None


@pytest.mark.parametrize(
    "algorithm",
    [
        {"loss": "ppo_clip", "correction": ["bypass"]},
        {"loss": "reinforce", "correction": ["token_is"]},
        {"loss": "decoupled_ppo"},
        {"preset": "dppo", "loss": "dppo_tv", "correction": ["bypass"]},
        {"loss": "m2po", "correction": ["bypass"]},  # the loss itself reads rollout_logp
        {"loss": "flash_reinforce", "aggregate": "seq_mean_token_mean", "correction": ["bypass"]},
    ],
)
def test_an_objective_that_uses_the_sampling_probabilities_does_not(algorithm) -> None:
    assert warning(8, **algorithm) is None
