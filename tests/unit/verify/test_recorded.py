"""The recorded batch is the same for the same seed, and holds what breaks a wrong loss."""

import numpy as np
import pytest

from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import ConfigError
from hybridrl.verify.layouts import REFERENCE, rows
from hybridrl.verify.recorded import NUM_GROUPS, STEP, make_tokens, record

SAMPLES = 4


def recorded(seed=0, **algorithm):
    block = make_tokens(61, SAMPLES, seed)
    logp_T = np.where(block.loss_mask_T, np.float32(-1.0), np.float32(0.0))
    return record(AlgorithmConfig(guards="off", **algorithm), block, logp_T, seed)


def test_a_seed_has_one_batch():
    one, same, other = recorded(), recorded(), recorded(seed=1)
    np.testing.assert_array_equal(one.batch.advantage_N, same.batch.advantage_N)
    np.testing.assert_array_equal(one.block.columns["rollout_logp"], same.block.columns["rollout_logp"])
    assert not np.array_equal(one.block.token_T, other.block.token_T)


def test_lengths_differ_and_some_tokens_are_not_trained_on():
    found = recorded()
    assert max(found.lengths) >= 3 * np.median(found.lengths)
    assert len(found.lengths) == NUM_GROUPS * SAMPLES
    assert (found.batch.trained_N == 0).any()
    response_N = found.batch.length_N - found.block.prompt_tokens_N
    assert (found.batch.trained_N < response_N).sum() >= 3
    assert set(found.block.columns["version"].tolist()) == {-1, *range(STEP)}


def test_the_engine_nearly_agrees_with_the_policy():
    found = recorded()
    trained_T = found.block.loss_mask_T
    apart = found.block.columns["rollout_logp"][trained_T] + 1.0
    assert 0.01 < apart.std() < 0.1
    assert not found.block.columns["rollout_logp"][~trained_T].any()


def test_all_rows_compute_the_same_minibatches():
    found = recorded()
    plain = found.for_ranks(REFERENCE)
    for row in rows(["dp2"]):
        other = found.for_ranks(row)
        for a, b in zip(plain.minibatches, other.minibatches, strict=True):
            assert (a.num_tokens, a.num_sequences) == (b.num_tokens, b.num_sequences)
            assert _members(a) == _members(b)
    assert sum(m.num_tokens for m in plain.minibatches) == found.block.loss_mask_T.sum()


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "remax", "gdpo", "a_star_po", "gae"])
def test_estimators_find_their_columns(estimator):
    found = recorded(estimator=estimator)
    per_token = estimator == "gae"
    assert (found.batch.advantage_N is None) == per_token


def test_what_a_run_refuses_is_refused():
    with pytest.raises(ConfigError):
        recorded(estimator="distillation")


def _members(minibatch):
    return sorted(n for rank in minibatch.rows for microbatch in rank for n in microbatch)
