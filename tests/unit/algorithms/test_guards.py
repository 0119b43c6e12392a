"""Each guard is silent on a sound batch and catches the bug planted for it."""

import pytest
import torch

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.guards import (
    check_centred,
    check_first_ratio,
    check_groups,
    check_kl_sign,
    check_length_correlation,
    check_mask,
)
from hybridrl.algorithms.objective import Objective
from hybridrl.config.schema import AlgorithmConfig


def prompts_of(batch):
    return batch.group_N * 1_000_003 + 2**62  # as a hash would be: too large for a float


def test_sound_groups_pass(ragged):
    batch = ragged(0)
    assert check_groups(batch.group_N, prompts_of(batch)) is None


def test_group_ids_in_the_wrong_order_are_found(ragged):
    # planted: ids as if the samples of a prompt were neighbours, on a shuffled batch
    batch = ragged(0, sizes=(4, 4, 4))
    found = check_groups(torch.arange(12) // 4, prompts_of(batch))
    assert found is not None and found.severity == "error" and "different prompts" in found.text


def test_a_group_that_was_torn_apart_is_found(ragged):
    # planted: the second half of a batch numbered from anew
    batch = ragged(1)
    half_N = (torch.arange(len(batch.group_N)) > 6).long()
    found = check_groups(batch.group_N + 10 * half_N, prompts_of(batch))
    assert found is not None and found.severity == "warning" and "several groups" in found.text


@pytest.fixture
def sampled(ragged):
    """Tokens drawn from a policy that is near its reference."""
    batch = ragged(2, sizes=(40, 40))
    draw = torch.Generator().manual_seed(0)
    policy_VT = (torch.randn(4, len(batch.seq_T), generator=draw) / 2).double().log_softmax(0)
    ref_VT = (policy_VT + 0.5 * torch.randn(policy_VT.shape, generator=draw)).log_softmax(0)
    token_T = torch.multinomial(policy_VT.exp().T, 1, generator=draw).flatten()
    at = torch.arange(len(token_T))
    return batch, policy_VT[token_T, at], ref_VT[token_T, at]


def test_a_divergence_is_not_negative(sampled):
    batch, policy_T, ref_T = sampled
    assert check_kl_sign(policy_T, ref_T, batch.tokens) is None
    assert check_kl_sign(policy_T, policy_T, batch.tokens) is None


def test_swapped_kl_columns_are_found(sampled):
    # planted: reference minus policy
    batch, policy_T, ref_T = sampled
    found = check_kl_sign(ref_T, policy_T, batch.tokens)
    assert found is not None and found.guard == "kl_sign" and "swapped" in found.text


def versions_of(batch):
    return torch.where(batch.mask_T, 3, -1)


def test_a_sound_mask_passes(ragged):
    batch = ragged(3)
    assert check_mask(batch.tokens, versions_of(batch), batch.columns["rollout_logp"]) is None


def test_a_mask_on_prompt_and_tool_tokens_is_found(ragged):
    # planted: every token after the first is called an answer
    batch = ragged(3)
    version_T = versions_of(batch)
    batch.mask_T = torch.ones_like(batch.mask_T)
    found = check_mask(batch.tokens, version_T, batch.columns["rollout_logp"])
    assert found is not None and found.severity == "error" and "prompts or tools" in found.text


def test_answers_that_are_left_out_are_found(ragged):
    # planted: the mask shifted by one token
    batch = ragged(3)
    version_T = versions_of(batch)
    batch.mask_T = batch.mask_T & batch.mask_T.roll(1)
    found = check_mask(batch.tokens, version_T, batch.columns["rollout_logp"])
    assert found is not None and found.severity == "warning" and "leaves out" in found.text


def test_trained_tokens_without_an_engine_are_found(ragged):
    # planted: log-probabilities that were never filled in
    batch = ragged(3)
    found = check_mask(batch.tokens, versions_of(batch), torch.zeros(len(batch.seq_T)))
    assert found is not None and "no log-probability" in found.text


@pytest.mark.parametrize("temperature,is_sound", [(1.0, True), (0.7, False)])
def test_old_logp_at_another_temperature_is_found(ragged, temperature, is_sound):
    # planted: logits divided by the temperature in one of the two places
    batch, draw = ragged(4, torch.float32), torch.Generator().manual_seed(0)
    logit_VT = torch.randn(5, len(batch.seq_T), generator=draw)
    old_T, new_T = ((logit_VT / t).log_softmax(0)[0] for t in (1.0, temperature))
    objective = Objective(AlgorithmConfig())
    advantage_T = batch.columns["advantage"]
    _, metrics = objective(new_T, None, {"old_logp": old_T}, advantage_T, batch.tokens, batch.totals)
    found = check_first_ratio(float(metrics.max["actor/ratio_max_abs_err"]))
    assert (found is None) == is_sound


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_centred_advantages_pass(ragged, name):
    batch = ragged(5, torch.float32)
    advantage_N = load_estimator(AlgorithmConfig(estimator=name))(batch.reward_N, batch.group_N)
    assert check_centred(advantage_N, batch.group_N, "group") is None


def test_a_baseline_of_the_wrong_group_is_found(ragged):
    # planted: baselines of neighbours in the batch instead of those of the prompt
    batch = ragged(5, torch.float32, sizes=(4, 4, 4))
    estimator = load_estimator(AlgorithmConfig(estimator="dr_grpo"))
    found = check_centred(estimator(batch.reward_N, torch.arange(12) // 4), batch.group_N, "group")
    assert found is not None and "sum to" in found.text


def test_a_batch_that_was_whitened_passes_and_one_that_was_not_does_not(ragged):
    # planted: whitening over trajectories where tokens are meant
    batch = ragged(6, torch.float32)
    length_N = batch.columns["length"]
    estimator = load_estimator(AlgorithmConfig(estimator="reinforce_plus_plus"))
    sound_N = estimator(batch.reward_N, batch.group_N, length_N=length_N)
    wrong_N = estimator(batch.reward_N, batch.group_N, length_N=torch.ones_like(length_N))
    assert check_centred(sound_N * length_N, batch.group_N, "batch") is None
    assert check_centred(wrong_N * length_N, batch.group_N, "batch") is not None


def test_a_reward_that_counts_tokens_is_found(ragged):
    # planted: a reward that is the length, plus noise
    batch, draw = ragged(7, sizes=(16,) * 8), torch.Generator().manual_seed(0)
    noise_N = torch.randn(128, generator=draw)
    length_N = batch.columns["length"].float()
    assert check_length_correlation(noise_N, batch.group_N, length_N) is None
    found = check_length_correlation(length_N + noise_N, batch.group_N, length_N)
    assert found is not None and found.severity == "warning" and "longer answers win" in found.text
    found = check_length_correlation(-length_N + noise_N, batch.group_N, length_N)
    assert found is not None and "shorter answers win" in found.text


def test_prompts_of_different_length_are_no_length_hacking(ragged):
    # long answers to easy prompts: a correlation between groups, none within
    batch, draw = ragged(8, sizes=(16,) * 8), torch.Generator().manual_seed(0)
    noise_N = torch.randn(2, 128, generator=draw)
    group_N = batch.group_N.float()
    assert (
        check_length_correlation(group_N * 10 + noise_N[0], batch.group_N, group_N * 100 + noise_N[1]) is None
    )


def test_small_batches_say_nothing_about_length():
    length_N = torch.arange(8.0)
    assert check_length_correlation(length_N, torch.zeros(8, dtype=torch.int64), length_N) is None
