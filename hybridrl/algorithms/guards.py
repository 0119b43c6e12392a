"""Checks at run time for the mistakes that train without an error. Each names what is wrong, or returns None.

They look at what a step has anyway and cost nothing next to it. An error ends the run, so none rests on a
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
"""Nats below 0 at which a sum of log ratios is no chance: exp(-20) = 2e-9 a step."""

COLUMN_ROUNDING = 2.0**-20
"""Nats by which two float32 log-probabilities of down to -16 are rounded, at most, together."""

ENGINE_MISMATCH = 0.01
"""Nats per token: divergence of the engine's policy from the trainer's that a correct run stays below. Ten
times what bf16 on both sides gives; above it, the mismatch itself is what is wrong."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, or suspicious."""

    guard: str
    severity: Literal["error", "warning"]
    text: str


def stop(findings: Iterable[Finding | None], *, step: int) -> list[Finding]:
    """The warnings among what the checks of a step found.

    Raises:
        GuardError: one of them is an error.
    """
    warnings = [finding for finding in findings if finding is not None]
    for finding in warnings:
        if finding.severity == "error":
            raise GuardError(
                finding.text,
                where=f"guard {finding.guard}, step {step}",
                fix="algorithm.guards=off goes on regardless, if the algorithm means it",
            )
    return warnings


def check_groups(group_N: Tensor, prompt_N: Tensor, samples_per_prompt: int | None = None) -> Finding | None:
    """A group holds answers to one prompt, and answers to one prompt are one group.

    Args:
        prompt_N: int64, a number of the prompt itself (its uid or its tokens), found apart from `group_N`.
        samples_per_prompt: a group with that many is whole: a step on fewer prompts than it takes has several
            of each. None: not known.
    """
    _, prompt_N = torch.unique(prompt_N, return_inverse=True)
    mixed_N = group_max(prompt_N.double(), group_N) != group_min(prompt_N.double(), group_N)
    if mixed_N.any():
        text = (
            f"group {int(group_N[mixed_N][0])} holds answers to different prompts: baselines are of strangers"
        )
        return Finding("groups", "error", text)
    torn_N = group_max(group_N.double(), prompt_N) != group_min(group_N.double(), prompt_N)
    if samples_per_prompt is not None:
        torn_N &= group_size(group_N, torch.float64) < samples_per_prompt
    if 2 * int(torn_N.sum()) > len(torn_N):  # a few are prompts that a step takes twice, where an epoch ends
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
    """Over a step's samples of the policy, log ratios of policy to reference sum to no less than -20 nats.

    No normal distribution is assumed, nor that the ratio varies little: given its prefix a sampled token has
    E[exp(ref_logp - policy_logp)] <= 1, the product over tokens is a supermartingale, and by Markov's
    inequality the sum is below -20 with a probability of at most exp(-20). It holds if the trained tokens are
    all that were sampled; not if they were chosen by reward or length afterwards.
    *Collective* over `reduce`: the sum is over all ranks, so all say the same and swapped columns add up.

    Args:
        policy_logp_T, ref_logp_T: the columns as they go into the KL term.
        rollout_logp_T: by the engine, whose policy the tokens are drawn from; None: policy_logp_T is exact.
            The bound is on the engine's column. What the policy's is below it widens the margin, up to
            ENGINE_MISMATCH a token, for swapped columns differ from the engine's by the whole divergence.
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
        f"log ratios of policy to reference sum to {total:.4g} over {count:.0f} tokens, no sample of the "
        f"policy is below {-margin:.4g}: the sign of the KL or its columns are swapped"
    )
    return Finding("kl_sign", "error", text)


def check_mask(tokens: Tokens, version_T: Tensor) -> Finding | None:
    """Trained tokens are those that the policy generated, all of them and no others.

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
    """The engine's log-probabilities were filled in: it was not certain of every token and yet of two minds.

    A policy that is sure of all that it says has columns of exact zeros too, in float32, but then it says the
    same at every attempt. Two answers that part at a trained token cannot both have been certain.

    Args:
        token_T: int64, the tokens themselves, those of prompts included.
    """
    trained = int(tokens.mask_T.sum())
    if not trained or (rollout_logp_T[tokens.mask_T] != 0).any() or not _answers_part(token_T, tokens):
        return None
    text = f"{trained} trained tokens have no log-probability of the engine: all are 0, yet answers differ"
    return Finding("rollout_logp", "error", text)


def _answers_part(token_T: Tensor, tokens: Tokens) -> bool:
    """Two trajectories are equal up to a token that both train on, and differ there.

    Among sorted ones, such a pair has neighbours that part at the same place.
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
    """On the first minibatch the policy is still the one that old_logp is of: the ratio is 1, exactly."""
    if ratio_max_abs_err == 0:
        return None
    text = (
        f"first ratio is off by {ratio_max_abs_err:.3g}: old_logp was not computed by the same weights, "
        "temperature, masks and microbatches as the step"
    )
    return Finding("first_ratio", "error", text)


def check_centred(advantage_N: Tensor, group_N: Tensor, over: Literal["group", "batch"]) -> Finding | None:
    """Advantages over a group mean sum to 0 in each group, whitened ones over the batch.

    Up to rounding: n additions in float32 put a mean off by n 2**-24 of itself, and it is subtracted n times.

    Args:
        over: "group" for estimators like grpo; "batch" for whitened ones, whose advantages are weighed by
            trained tokens before they come here.
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
    """Within groups, a reward that follows the length of the answer is probably one that counts tokens.

    The correlation is of ranks (Spearman's): of values, it would be that of the one answer that ran to the
    token limit and failed where all others are short and right.

    Args:
        limit: absolute correlation that is worth a warning; least: trajectories below which nothing is said.
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
"""By the name in their findings."""
