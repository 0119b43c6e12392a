"""Run-time checks for mistakes that train without an error. Each returns a finding, or None.

They use data that a step has anyway, at a negligible cost. An error ends the run, so no error relies on a
sample being near its mean: a correct step is refused with a probability that is proved to be below 1e-8, or
never. `benchmarks/guards.py` measures it. Shape letters: N trajectories, T packed tokens, G groups.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from hybridrl.algorithms.base import OneRank, Reduce, Tokens
from hybridrl.algorithms.groups import centre, group_max, group_min, group_rank, group_size, group_sum
from hybridrl.errors import GuardError

KL_LEVEL = 20.0
"""Nats below 0 at which a sum of log ratios cannot be chance: exp(-20) = 2e-9 a step."""

COLUMN_ROUNDING = 2.0**-20
"""Largest total rounding, in nats, of two float32 log-probabilities not below -16."""

ENGINE_MISMATCH = 0.01
"""Largest divergence of the engine's policy from the trainer's in a correct run, in nats per token. It is ten
times what bf16 on both sides gives; above it, the mismatch itself is the mistake."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake, or a suspicion."""

    guard: str
    severity: Literal["error", "warning"]
    text: str


def stop(findings: Iterable[Finding | None], *, step: int) -> list[Finding]:
    """The warnings among the findings of a step.

    Raises:
        GuardError: one of them is an error.
    """
    warnings = [finding for finding in findings if finding is not None]
    for finding in warnings:
        if finding.severity == "error":
            raise GuardError(
                finding.text,
                where=f"guard {finding.guard}, step {step}",
                fix="algorithm.guards=off continues regardless, if the algorithm intends it",
            )
    return warnings


def check_groups(group_N: Tensor, prompt_N: Tensor, samples_per_prompt: int | None = None) -> Finding | None:
    """Checks that a group holds answers to one prompt only, and that answers to one prompt are one group.

    Args:
        prompt_N: int64, a number made from the prompt itself (its uid or its tokens), independently of
            `group_N`.
        samples_per_prompt: size of a complete group. Several complete groups of one prompt are no finding: a
            step that takes more prompts than there are has them. None: not known.
    """
    _, prompt_N = torch.unique(prompt_N, return_inverse=True)
    mixed_N = group_max(prompt_N.double(), group_N) != group_min(prompt_N.double(), group_N)
    if mixed_N.any():
        text = (
            f"group {int(group_N[mixed_N][0])} holds answers to different prompts, which makes its "
            "baseline wrong"
        )
        return Finding("groups", "error", text)
    torn_N = group_max(group_N.double(), prompt_N) != group_min(group_N.double(), prompt_N)
    if samples_per_prompt is not None:
        torn_N &= group_size(group_N, torch.float64) < samples_per_prompt
    # A few are prompts that a step takes twice, at the end of an epoch.
    if 2 * int(torn_N.sum()) > len(torn_N):
        text = f"answers to one prompt are in several groups, group {int(group_N[torn_N][0])} among them"
        return Finding("groups", "warning", text)
    return None


def check_kl_sign(
    policy_logp_T: Tensor,
    ref_logp_T: Tensor,
    tokens: Tokens,
    rollout_logp_T: Tensor | None = None,
    reduce: Reduce | None = None,
) -> Finding | None:
    """Checks that log ratios of policy to reference, summed over a step's samples, are not below -20 nats.

    The bound assumes neither a normal distribution nor a ratio that varies little: given its prefix a sampled
    token has E[exp(ref_logp - policy_logp)] <= 1, the product over tokens is a supermartingale, and by
    Markov's inequality the sum is below -20 with a probability of at most exp(-20). It holds if all sampled
    tokens are trained on, but not if they were selected by reward or length afterwards.
    *Collective* over `reduce`: the sum is over all ranks, so all ranks agree, and the evidence of
    swapped columns adds up.

    Args:
        policy_logp_T, ref_logp_T: the columns that the KL term is computed from.
        rollout_logp_T: log-probabilities of the engine, from whose policy the tokens are sampled; None:
            policy_logp_T is exact. The bound holds for the engine's column. The amount by which the policy's
            is below it widens the margin, up to ENGINE_MISMATCH per token, since swapped columns differ from
            the engine's by the whole divergence.
    """
    rollout_logp_T = policy_logp_T if rollout_logp_T is None else rollout_logp_T
    policy_M, ref_M, rollout_M = (
        column_T[tokens.mask_T].double() for column_T in (policy_logp_T, ref_logp_T, rollout_logp_T)
    )
    sums = torch.stack([tokens.mask_T.sum().double(), (policy_M - ref_M).sum(), (rollout_M - policy_M).sum()])
    count, total, mismatch = (reduce or OneRank()).sum(sums).tolist()
    margin = KL_LEVEL + COLUMN_ROUNDING * count + min(max(mismatch, 0.0), ENGINE_MISMATCH * count)
    if not total < -margin:
        return None
    text = (
        f"log ratios of policy to reference sum to {total:.4g} over {count:.0f} tokens, and no sample of the "
        f"policy is below {-margin:.4g}: the sign of the KL or its columns are swapped"
    )
    return Finding("kl_sign", "error", text)


def check_mask(tokens: Tokens, version_T: Tensor) -> Finding | None:
    """Checks that trained tokens are exactly those that the policy generated.

    Args:
        version_T: policy version that generated the token, -1 for prompt, tool and observation tokens.
    """
    leaked = int((tokens.mask_T & (version_T < 0)).sum())
    if leaked:
        return Finding("mask", "error", f"the loss mask covers {leaked} tokens of prompts or tools")
    lost = int((~tokens.mask_T & (version_T >= 0)).sum())
    if lost:
        return Finding("mask", "warning", f"the loss mask leaves out {lost} tokens that the policy generated")
    return None


def check_rollout_logp(token_T: Tensor, rollout_logp_T: Tensor, tokens: Tokens) -> Finding | None:
    """Checks that the engine returned log-probabilities: they are not all 0 while its answers differ.

    A deterministic policy has log-probabilities of exactly 0 too, in float32, but then all its answers are
    equal. Two answers that diverge at a trained token cannot both have probability 1.

    Args:
        token_T: int64, the token ids, those of prompts included.
    """
    trained = int(tokens.mask_T.sum())
    if not trained or (rollout_logp_T[tokens.mask_T] != 0).any() or not _answers_diverge(token_T, tokens):
        return None
    text = f"{trained} trained tokens have no log-probability of the engine: all are 0, yet answers differ"
    return Finding("rollout_logp", "error", text)


def _answers_diverge(token_T: Tensor, tokens: Tokens) -> bool:
    """Whether two trajectories are equal up to a token that both train on, and differ at that token.

    If there is such a pair, sorted trajectories have neighbours that diverge at the same place.
    """
    lengths = torch.bincount(tokens.seq_T, minlength=tokens.num_seqs).tolist()
    rows = sorted(
        zip(
            (row_T.tolist() for row_T in token_T.split(lengths)),
            (row_T.tolist() for row_T in tokens.mask_T.split(lengths)),
        )
    )
    for (one, one_mask), (other, other_mask) in pairwise(rows):
        at = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), None)
        if at is not None and one_mask[at] and other_mask[at]:
            return True
    return False


def check_first_ratio(ratio_max_abs_err: float) -> Finding | None:
    """Checks that the ratio on the first minibatch is exactly 1: the policy is still the one that gave
    old_logp."""
    if ratio_max_abs_err == 0:
        return None
    text = (
        f"first ratio is off by {ratio_max_abs_err:.3g}: old_logp was not computed by the same weights, "
        "temperature, masks and microbatches as the step"
    )
    return Finding("first_ratio", "error", text)


def check_centred(advantage_N: Tensor, group_N: Tensor, over: Literal["group", "batch"]) -> Finding | None:
    """Checks that advantages with a group-mean baseline sum to 0 in each group, and whitened ones over the
    batch.

    Rounding is allowed for: n additions in float32 give a mean a relative error of n 2**-24, and the mean is
    subtracted n times.

    Args:
        over: "group" for estimators like grpo; "batch" for whitened ones, whose advantages the caller
            multiplies by their number of trained tokens.
    """
    group_N = group_N if over == "group" else torch.zeros_like(group_N)
    sum_N = group_sum(advantage_N.double(), group_N).abs()
    scale_N = group_sum(advantage_N.double().abs(), group_N)
    rounding_N = group_size(group_N, torch.float64).square() * 2.0**-24 if over == "group" else 0.0
    off_N = sum_N > (1e-4 + rounding_N) * scale_N.clamp(min=1e-6)
    if not off_N.any():
        return None
    worst = int(torch.argmax(sum_N * off_N))
    where = f"group {int(group_N[worst])}" if over == "group" else "the batch"
    return Finding("centred", "error", f"advantages of {where} sum to {float(sum_N[worst]):.3g}, not to 0")


def check_length_correlation(
    reward_N: Tensor, group_N: Tensor, length_N: Tensor, *, limit: float = 0.7, least: int = 64
) -> Finding | None:
    """Checks whether rewards follow the length of answers within groups: such a reward probably counts
    tokens.

    The correlation is that of ranks (Spearman's): a correlation of values would be dominated by one answer
    that ran to the token limit and failed while all others are short and right.

    Args:
        limit: absolute correlation that causes a warning.
        least: number of trajectories below which nothing is checked.
    """
    if len(reward_N) < least:
        return None
    reward_N, length_N = (centre(group_rank(value_N, group_N), group_N) for value_N in (reward_N, length_N))
    spread = float(reward_N.square().sum() * length_N.square().sum()) ** 0.5
    correlation = float((reward_N * length_N).sum()) / spread if spread > 0 else 0.0
    if abs(correlation) < limit:
        return None
    grows = "longer" if correlation > 0 else "shorter"
    text = (
        f"ranks of reward and length correlate by {correlation:.2f} within groups: {grows} answers "
        "win, right or not?"
    )
    return Finding("length", "warning", text)


GUARDS = {
    "groups": check_groups,
    "kl_sign": check_kl_sign,
    "mask": check_mask,
    "rollout_logp": check_rollout_logp,
    "first_ratio": check_first_ratio,
    "centred": check_centred,
    "length": check_length_correlation,
}
"""Name of a guard, as in its findings -> the guard."""
