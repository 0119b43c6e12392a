"""Each guard is silent on a sound batch and catches the bug planted for it."""

import pytest
import torch

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import Tokens
from hybridrl.algorithms.guards import (
    check_centred,
    check_first_ratio,
    check_groups,
    check_kl_sign,
    check_length_correlation,
    check_mask,
    check_rollout_logp,
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


def test_a_step_on_fewer_prompts_than_it_takes_is_sound():
    # two prompts, each taken twice, with whole groups of four
    group_N, prompt_N = torch.arange(16) // 4, torch.arange(16) // 4 % 2
    assert check_groups(group_N, prompt_N, samples_per_prompt=4) is None
    found = check_groups(group_N, prompt_N, samples_per_prompt=8)
    assert found is not None and "several groups" in found.text


def sampled_step(seed, num_tokens=400, apart=0.5, noise=0.0):
    """Columns of tokens that an engine drew from a policy near its reference: policy, reference, engine.

    Args:
        apart: standard deviation of the reference's logits around the policy's; noise: of the engine's.
    """
    draw = torch.Generator().manual_seed(seed)
    policy_VT, *shift_VT = (torch.randn(4, num_tokens, generator=draw).double() for _ in range(3))
    columns = [(policy_VT + scale * shift).log_softmax(0) for scale, shift in zip((apart, noise), shift_VT)]
    ref_VT, engine_VT = columns
    token_T = torch.multinomial(engine_VT.exp().T, 1, generator=draw).flatten()
    at = torch.arange(num_tokens)
    return [column_VT[token_T, at].float() for column_VT in (policy_VT.log_softmax(0), ref_VT, engine_VT)]


def trained(column_T):
    """All of its tokens, as one trajectory."""
    return Tokens(
        torch.zeros(len(column_T), dtype=torch.int64), torch.ones(len(column_T), dtype=torch.bool), 1
    )


def rare_tokens(seed):
    """A policy and a reference that are both sharp; their divergence rests on tokens of 1 in 1,000."""
    draw = torch.Generator().manual_seed(seed)
    p_T = (1e-3 * torch.randn(256, generator=draw).double().exp()).clamp(max=0.5)
    rare_T = torch.rand(256, generator=draw) < p_T
    return [torch.where(rare_T, p.log(), (1 - p).log()).float() for p in (p_T, p_T / 2)]


def test_a_divergence_of_samples_is_no_error():
    for seed in range(200):
        policy_T, ref_T, _ = sampled_step(seed, apart=0.02 * (1 + seed % 50))
        assert check_kl_sign(policy_T, ref_T, trained(ref_T)) is None
        assert check_kl_sign(policy_T, policy_T, trained(ref_T)) is None


def test_a_divergence_that_rests_on_rare_tokens_is_no_error():
    for seed in range(200):
        policy_T, ref_T = rare_tokens(seed)
        assert check_kl_sign(policy_T, ref_T, trained(ref_T)) is None


def test_swapped_kl_columns_are_found():
    # planted: reference minus policy
    policy_T, ref_T, engine_T = sampled_step(0)
    found = check_kl_sign(ref_T, policy_T, trained(ref_T))
    assert found is not None and found.guard == "kl_sign" and found.severity == "error"
    assert "swapped" in found.text
    assert check_kl_sign(ref_T, policy_T, trained(ref_T), engine_T) is not None


def test_an_engine_that_is_nearer_to_the_reference_than_to_the_trainer_is_no_error():
    # an engine in few bits, and a policy that has not moved far: the trainer's column is not the sampler's
    policy_T, ref_T, engine_T = sampled_step(0, num_tokens=100_000, apart=0.0, noise=0.1)
    policy_T = policy_T + 0.3 * (policy_T - engine_T)
    assert check_kl_sign(policy_T, ref_T, trained(ref_T)) is not None
    assert check_kl_sign(policy_T, ref_T, trained(ref_T), engine_T) is None


def test_swapped_columns_are_found_though_engine_and_trainer_differ():
    policy_T, ref_T, engine_T = sampled_step(0, num_tokens=10_000, noise=0.05)
    assert check_kl_sign(policy_T, ref_T, trained(ref_T), engine_T) is None
    assert check_kl_sign(ref_T, policy_T, trained(ref_T), engine_T) is not None


def test_a_reference_that_was_never_filled_in_is_found_in_answers_of_an_older_policy():
    # planted: a column of zeros, which is likelier than any policy
    _, ref_T, engine_T = sampled_step(0)
    assert check_kl_sign(engine_T, ref_T, trained(ref_T), engine_T) is None
    assert check_kl_sign(engine_T, torch.zeros_like(ref_T), trained(ref_T), engine_T) is not None


def test_tokens_outside_the_mask_do_not_count():
    policy_T, ref_T, _ = sampled_step(0)
    tokens = Tokens(torch.zeros(400, dtype=torch.int64), torch.arange(400) % 2 == 0, 1)
    policy_T[1::2] = -torch.inf
    assert check_kl_sign(policy_T, ref_T, tokens) is None


class ManyRanks:
    """A million ranks that all hold the same."""

    def sum(self, value):
        return value * 2**20

    max = sum


def test_rounding_of_many_tokens_is_no_error():
    # two roundings of every float32 column, all of them in the unlucky direction
    ref_T = torch.full((40,), -15.5)
    policy_T = ref_T - 2.0**-20
    assert check_kl_sign(policy_T, ref_T, trained(ref_T), reduce=ManyRanks()) is None
    assert check_kl_sign(policy_T - 2.0**-20, ref_T, trained(ref_T), reduce=ManyRanks()) is not None


def test_ranks_find_together_what_none_finds_alone(run_ranks):
    policy_T, ref_T, _ = sampled_step(0)
    parts = [(r.contiguous(), p.contiguous()) for r, p in zip(ref_T.split(40), policy_T.split(40))]
    assert all(check_kl_sign(r, p, trained(r)) is None for r, p in parts)

    def on_rank(rank, reduce):
        wrong_T, policy_T = parts[rank]
        return check_kl_sign(wrong_T, policy_T, trained(wrong_T), reduce=reduce)

    found = run_ranks(len(parts), on_rank)
    assert found[0] is not None and all(finding == found[0] for finding in found)


def versions_of(batch):
    return torch.where(batch.mask_T, 3, -1)


def test_a_sound_mask_passes(ragged):
    batch = ragged(3)
    assert check_mask(batch.tokens, versions_of(batch)) is None


def test_a_mask_on_prompt_and_tool_tokens_is_found(ragged):
    # planted: every token after the first is called an answer
    batch = ragged(3)
    version_T = versions_of(batch)
    batch.mask_T = torch.ones_like(batch.mask_T)
    found = check_mask(batch.tokens, version_T)
    assert found is not None and found.severity == "error" and "prompts or tools" in found.text


def test_answers_that_are_left_out_are_found(ragged):
    # planted: the mask shifted by one token
    batch = ragged(3)
    version_T = versions_of(batch)
    batch.mask_T = batch.mask_T & batch.mask_T.roll(1)
    found = check_mask(batch.tokens, version_T)
    assert found is not None and found.severity == "warning" and "leaves out" in found.text


def answers(*rows):
    """Tokens of prompts of two, and of an answer each that is trained on."""
    token_T = torch.tensor([token for row in rows for token in row])
    lengths = torch.tensor([len(row) for row in rows])
    seq_T = torch.arange(len(rows)).repeat_interleave(lengths)
    mask_T = torch.cat([torch.arange(n) >= 2 for n in lengths.tolist()])
    return token_T, Tokens(seq_T, mask_T, len(rows))


@pytest.mark.parametrize(
    "rows",
    [
        [(1, 2, 5, 6), (1, 3, 7, 6), (1, 2, 5, 6)],  # one answer to each prompt
        [(1, 2, 5, 6), (1, 2, 5, 6, 8)],  # one was cut
        [(1, 2, 5, 6)] * 20,
    ],
)
def test_a_policy_that_is_certain_of_every_token_passes(rows):
    token_T, tokens = answers(*rows)
    assert check_rollout_logp(token_T, torch.zeros(len(token_T)), tokens) is None


def test_log_probabilities_that_were_never_filled_in_are_found():
    # planted: zeros, in answers that part at their second token
    token_T, tokens = answers((1, 2, 5, 6), (1, 3, 5), (1, 2, 5, 7))
    logp_T = torch.zeros(len(token_T))
    found = check_rollout_logp(token_T, logp_T, tokens)
    assert found is not None and found.severity == "error" and "no log-probability" in found.text
    logp_T[3] = -0.5
    assert check_rollout_logp(token_T, logp_T, tokens) is None


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


@pytest.mark.parametrize(
    "draw",
    [
        torch.rand,
        lambda n: torch.exp(4 * torch.randn(n)),
        lambda n: 0.9 - 0.9 * (torch.arange(n) == 0).float(),
    ],
)
@pytest.mark.parametrize("size", [2, 8, 1024, 8192])
def test_advantages_of_large_groups_and_heavy_tails_pass(size, draw):
    torch.manual_seed(0)
    group_N = torch.arange(2).repeat(size)
    for name in ("grpo", "dr_grpo", "rloo", "gpg"):
        advantage_N = load_estimator(AlgorithmConfig(estimator=name))(draw(2 * size), group_N)
        assert check_centred(advantage_N, group_N, "group") is None


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


def test_an_answer_that_ran_to_the_limit_is_no_length_hacking():
    # all is solved but one answer, which is a hundred times as long: its values alone correlate by -0.98
    draw = torch.Generator().manual_seed(0)
    group_N = torch.arange(128) // 8
    reward_N, length_N = torch.ones(128), 40 + 10 * torch.randn(128, generator=draw)
    reward_N[5], length_N[5] = 0.0, 4096.0
    assert check_length_correlation(reward_N, group_N, length_N) is None


def test_chance_is_no_length_hacking():
    draw = torch.Generator().manual_seed(0)
    for group_size in (2, 8, 64):
        group_N = torch.arange(64) // group_size
        for _ in range(100):
            reward_N = (torch.rand(64, generator=draw) < 0.5).float()
            length_N = torch.randn(64, generator=draw).exp()
            assert check_length_correlation(reward_N, group_N, length_N) is None


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
