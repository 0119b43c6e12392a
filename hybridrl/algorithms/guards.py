"""Checks at run time for the mistakes that train without an error. Each names what is wrong, or returns None.

They look at what a step has anyway and cost nothing next to it. Shape letters: N trajectories, T packed
tokens, G groups.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hybridrl.algorithms.base import Tokens
from hybridrl.algorithms.groups import centre, group_max, group_min, group_sum
from hybridrl.errors import GuardError


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


def check_groups(group_N: Tensor, prompt_N: Tensor) -> Finding | None:
    """A group holds answers to one prompt, and answers to one prompt are one group.

    Args:
        prompt_N: int64, a number of the prompt itself (its uid or its tokens), found apart from `group_N`.
    """
    _, prompt_N = torch.unique(prompt_N, return_inverse=True)
    mixed_N = group_max(prompt_N.double(), group_N) != group_min(prompt_N.double(), group_N)
    if mixed_N.any():
        text = (
            f"group {int(group_N[mixed_N][0])} holds answers to different prompts: baselines are of strangers"
        )
        return Finding("groups", "error", text)
    torn_N = group_max(group_N.double(), prompt_N) != group_min(group_N.double(), prompt_N)
    if 2 * int(torn_N.sum()) > len(torn_N):  # a few are prompts that a step takes twice, where an epoch ends
        text = f"answers to one prompt are in several groups, group {int(group_N[torn_N][0])} among them"
        return Finding("groups", "warning", text)
    return None


def check_kl_sign(policy_logp_T: Tensor, ref_logp_T: Tensor, tokens: Tokens) -> Finding | None:
    """The mean log ratio of policy to reference over the policy's own samples is a divergence: not below 0.

    Called with the columns as they went into the KL term; four standard errors below 0 is no chance.
    """
    x_M = (policy_logp_T - ref_logp_T)[tokens.mask_T].double()
    if len(x_M) < 2:
        return None
    mean, error = float(x_M.mean()), float(x_M.std()) / math.sqrt(len(x_M))
    if mean < -4 * error and mean < -1e-6:
        text = (
            f"KL to the reference is {mean:.3g} +- {error:.1g}, below 0: its sign or its columns are swapped"
        )
        return Finding("kl_sign", "error", text)
    return None


def check_mask(tokens: Tokens, version_T: Tensor, rollout_logp_T: Tensor) -> Finding | None:
    """Trained tokens are those that the policy generated, all of them and no others.

    Args:
        version_T: policy version that generated the token, -1 for prompt, tool and observation tokens.
        rollout_logp_T: the engine's; an exact 0 at every trained token was never a log-probability.
    """
    leaked = int((tokens.mask_T & (version_T < 0)).sum())
    if leaked:
        return Finding("mask", "error", f"the loss mask covers {leaked} tokens of prompts or tools")
    lost = int((~tokens.mask_T & (version_T >= 0)).sum())
    if lost:
        return Finding("mask", "warning", f"the loss mask leaves out {lost} tokens that the policy generated")
    zeros = int((rollout_logp_T[tokens.mask_T] == 0).sum())
    if zeros > 15 and zeros == int(tokens.mask_T.sum()):  # a few may be, of a policy that is certain
        return Finding("mask", "error", f"{zeros} trained tokens have no log-probability of the engine")
    return None


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

    Args:
        over: "group" for estimators like grpo; "batch" for whitened ones, whose advantages are weighed by
            trained tokens before they come here.
    """
    group_N = group_N if over == "group" else torch.zeros_like(group_N)
    sum_N = group_sum(advantage_N.double(), group_N).abs()
    scale_N = group_sum(advantage_N.double().abs(), group_N)
    off_N = sum_N > 1e-4 * scale_N.clamp(min=1e-6)
    if not off_N.any():
        return None
    worst = int(torch.argmax(sum_N * off_N))
    where = f"group {int(group_N[worst])}" if over == "group" else "the batch"
    return Finding("centred", "error", f"advantages of {where} sum to {float(sum_N[worst]):.3g}, not to 0")


def check_length_correlation(
    reward_N: Tensor, group_N: Tensor, length_N: Tensor, *, limit: float = 0.7, least: int = 64
) -> Finding | None:
    """Within groups, a reward that follows the length of the answer is probably one that counts tokens.

    Args:
        limit: absolute correlation that is worth a warning; least: trajectories below which nothing is said.
    """
    if len(reward_N) < least:
        return None
    reward_N, length_N = centre(reward_N.double(), group_N), centre(length_N.double(), group_N)
    spread = float(reward_N.square().sum() * length_N.square().sum()) ** 0.5
    correlation = float((reward_N * length_N).sum()) / spread if spread > 0 else 0.0
    if abs(correlation) < limit:
        return None
    grows = "longer" if correlation > 0 else "shorter"
    text = (
        f"reward and length correlate by {correlation:.2f} within groups: {grows} answers win, right or not?"
    )
    return Finding("length", "warning", text)


GUARDS = {
    "groups": check_groups,
    "kl_sign": check_kl_sign,
    "mask": check_mask,
    "first_ratio": check_first_ratio,
    "centred": check_centred,
    "length": check_length_correlation,
}
"""By the name in their findings."""
