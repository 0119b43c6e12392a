"""Correct steps as token columns, for the guards that look at those.

Shape letters: S steps that are drawn together, T tokens of a step, V vocabulary.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Generator, Tensor

from hybridrl.algorithms.base import Tokens, Totals
from hybridrl.algorithms.guards import (
    Finding,
    check_first_ratio,
    check_kl_sign,
    check_mask,
    check_rollout_logp,
)
from hybridrl.algorithms.objective import Objective
from hybridrl.config.schema import AlgorithmConfig

Regime = Callable[[int, Generator], Iterator[Finding | None]]
"""(number of steps, source of chance) -> what the guard says of each."""

AT_ONCE = 2**21
"""Numbers that are drawn together."""


def kl_of_vocabulary(
    steps: int,
    draw: Generator,
    *,
    tokens: int = 64,
    vocabulary: int = 8,
    scale: float = 1.0,
    separate: float = 0.0,
    ref_scale: float | None = None,
    heavy: bool = False,
    temperature: float = 1.0,
    noise: float = 0.0,
    rounding: float = 0.0,
    on_policy: bool = True,
    trained_share: float = 1.0,
) -> Iterator[Finding | None]:
    """
    Args:
        scale: standard deviation of the policy's logits.
        apart: of the reference's around those; ref_scale: or of its own, which know nothing of the policy.
        heavy: distances are Cauchy distributed.
        noise: standard deviation of the engine's logits around the trainer's.
        rounding: of the log-probabilities that the trainer computes.
        on_policy: else the engine's is a policy that the trainer's has moved away from by `noise`, and its
            column is the one that is checked.
        trained_share: of tokens; the others hold anything.
    """
    for count in _chunks(steps, tokens * vocabulary):
        shape = (count, tokens, vocabulary)
        policy = scale * torch.randn(shape, generator=draw)
        distance = torch.randn(shape, generator=draw)
        if heavy:
            distance /= torch.randn(shape, generator=draw)
        ref = policy + separate * distance if ref_scale is None else ref_scale * distance
        engine = policy + noise * torch.randn(shape, generator=draw) if noise else policy
        logps = [(logits / temperature).log_softmax(-1) for logits in (policy, ref, engine)]
        chance = torch.empty(shape).exponential_(generator=draw)
        token_STN = (logps[2].exp() / chance).argmax(-1, keepdim=True)
        policy_ST, ref_ST, engine_ST = (logp.gather(-1, token_STN)[..., 0] for logp in logps)
        if rounding:
            policy_ST = policy_ST + rounding * torch.randn(policy_ST.shape, generator=draw)
        mask_ST = torch.rand(policy_ST.shape, generator=draw) < trained_share
        policy_ST = torch.where(mask_ST, policy_ST if on_policy else engine_ST, -30.0)
        for policy_T, ref_T, engine_T, mask_T in zip(policy_ST, ref_ST, engine_ST, mask_ST):
            yield check_kl_sign(policy_T, ref_T, _one_trajectory(mask_T), engine_T)


def kl_of_rare_tokens(
    steps: int, draw: Generator, *, tokens: int, rare: float, spread: float = 1.0
) -> Iterator[Finding | None]:
    """Two tokens in every place, of which the policy takes one with a probability around `rare`, and the
    reference with half of that: all divergence rests on what is nearly never sampled."""
    seen = _one_trajectory(torch.ones(tokens, dtype=torch.bool))
    for count in _chunks(steps, tokens):
        shape = (count, tokens)
        p = (rare * torch.exp(spread * torch.randn(shape, generator=draw, dtype=torch.float64))).clamp(
            max=0.5
        )
        taken = torch.rand(shape, generator=draw, dtype=torch.float64) < p
        policy, ref = (torch.where(taken, q.log(), (-q).log1p()).float() for q in (p, p / 2))
        yield from (check_kl_sign(policy_T, ref_T, seen) for policy_T, ref_T in zip(policy, ref))


def masks(steps: int, draw: Generator) -> Iterator[Finding | None]:
    """Prompts, answers and answers of tools, each in one piece or many."""
    for _ in range(steps):
        mask_T = torch.rand(256, generator=draw) < torch.rand((), generator=draw)
        yield check_mask(_one_trajectory(mask_T), torch.where(mask_T, 3, -1))


def answers(steps: int, draw: Generator, *, certain: bool, samples: int) -> Iterator[Finding | None]:
    """Groups of short answers and the engine's column of them; of a policy that is certain, exact zeros."""
    prompts, prompt_tokens, answer_tokens = 8, 4, 4
    num_rows, length = prompts * samples, prompt_tokens + answer_tokens
    mask_T = (torch.arange(length) >= prompt_tokens).repeat(num_rows)
    tokens = Tokens(torch.arange(num_rows).repeat_interleave(length), mask_T, num_rows)
    for _ in range(steps):
        row = torch.randint(0, 9, (prompts, 1, length), generator=draw).expand(-1, samples, -1).clone()
        row[..., 0] = torch.arange(prompts)[:, None]  # no two prompts are the same
        logp_T = torch.zeros(num_rows * length)
        if not certain:
            row[..., -1] = torch.randint(0, 9, row.shape[:2], generator=draw)
            logp_T[length - 1 :: length] = -2.2
        yield check_rollout_logp(row.flatten(), logp_T, tokens)


def first_ratios(steps: int, draw: Generator, *, scale: float) -> Iterator[Finding | None]:
    """The same bits before the step and in it, through the objective. Whether kernels repeat their bits is no
    question of chance: tests/invariants has a trainer compute both."""
    objective, tokens = Objective(AlgorithmConfig()), _one_trajectory(torch.ones(64, dtype=torch.bool))
    for _ in range(steps):
        logp_T = -scale * torch.empty(64).exponential_(generator=draw)
        advantage_T = torch.randn(64, generator=draw)
        _, found = objective(logp_T, None, {"old_logp": logp_T}, advantage_T, tokens, Totals(64, 1))
        yield check_first_ratio(float(found.max["actor/ratio_max_abs_err"]))


def _chunks(steps: int, size: int) -> Iterator[int]:
    at_once = max(1, AT_ONCE // size)
    for done in range(0, steps, at_once):
        yield min(at_once, steps - done)


def _one_trajectory(mask_T: Tensor) -> Tokens:
    return Tokens(torch.zeros(len(mask_T), dtype=torch.int64), mask_T, 1)


_KL = partial(partial, kl_of_vocabulary)
COLUMNS: dict[str, dict[str, Regime]] = {
    "kl_sign": {
        "flat policy, reference near": _KL(separate=0.05),
        "flat policy, reference far": _KL(separate=1.0),
        "flat policy, sharp reference": _KL(ref_scale=8.0),
        "sharp policy, reference near": _KL(scale=8.0, separate=0.3),
        "sharp policy, reference far": _KL(scale=8.0, separate=3.0),
        "sharp policy, flat reference": _KL(scale=8.0, ref_scale=1.0),
        "policy is the reference": _KL(),
        "policy is the reference, rounded": _KL(rounding=1e-6),
        "Cauchy distances": _KL(separate=0.3, heavy=True),
        "4 tokens": _KL(tokens=4, separate=0.5),
        "temperature 0.6": _KL(scale=2.0, separate=0.3, temperature=0.6),
        "half of the tokens trained": _KL(separate=0.3, trained_share=0.5),
        "engine in bf16, reference near": _KL(noise=0.05, separate=0.01),
        "engine in bf16, policy is the reference": _KL(noise=0.05),
        "engine in fp8, reference near": _KL(noise=0.1, separate=0.02),
        "engine in fp8, 2048 tokens, reference near": _KL(
            tokens=2048, vocabulary=2, noise=0.1, separate=0.02
        ),
        "answers of an older policy": _KL(noise=0.5, separate=0.3, on_policy=False),
        "256 tokens, rare ones 1e-3": partial(kl_of_rare_tokens, tokens=256, rare=1e-3),
        "1024 tokens, rare ones 1e-4": partial(kl_of_rare_tokens, tokens=1024, rare=1e-4),
        "1024 tokens, rare ones 1e-3": partial(kl_of_rare_tokens, tokens=1024, rare=1e-3, spread=2.0),
        "one token, rare ones 1e-3": partial(kl_of_rare_tokens, tokens=1, rare=1e-3),
    },
    "mask": {"prompts, answers and tools": masks},
    "rollout_logp": {
        "certain, 8 answers to a prompt": partial(answers, certain=True, samples=8),
        "certain, one answer to a prompt": partial(answers, certain=True, samples=1),
        "certain of all but the last token": partial(answers, certain=False, samples=8),
    },
    "first_ratio": {
        "flat policy": partial(first_ratios, scale=2.0),
        "sharp policy": partial(first_ratios, scale=1e-3),
        "unlikely tokens": partial(first_ratios, scale=20.0),
    },
}
"""Guard -> regime -> its steps."""
