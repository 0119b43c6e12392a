"""Probability ratios between policies, clamped against overflow, and PPO's clipped surrogate."""

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Bound that log ratios are clamped to: exp(20) is 5e8, and its square still fits float32. A token beyond it
has no gradient."""


def log_ratio(logp_T: Tensor, other_logp_T: Tensor) -> Tensor:
    """log(policy / other), within +-MAX_LOG_RATIO."""
    return (logp_T - other_logp_T).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def possible(logp_T: Tensor, old_logp_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A bool column that is False where a probability is 0, and both arguments with 0 there: such a token has
    no meaning, and 0 * inf must not reach a loss."""
    possible_T = logp_T.isfinite() & old_logp_T.isfinite()
    return possible_T, logp_T.where(possible_T, 0), old_logp_T.where(possible_T, 0)


def clipped_surrogate(ratio_T: Tensor, advantage_T: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """PPO's loss max(-r A, -clip(r, 1 - low, 1 + high) A), and a bool column that is True where the clip is
    active."""
    free_T = -ratio_T * advantage_T
    bounded_T = -ratio_T.clamp(1 - low, 1 + high) * advantage_T
    return torch.maximum(free_T, bounded_T), bounded_T > free_T


def by_sign(positive_T: Tensor, value: float, other: float, dtype: torch.dtype) -> Tensor:
    """A column with `value` where the mask is True, else `other`; torch.where on two numbers would give
    float32."""
    return torch.where(positive_T, torch.tensor(value, dtype=dtype, device=positive_T.device), other)


def straight_through(value_T: Tensor, logp_T: Tensor, ref_logp_T: Tensor) -> Tensor:
    """The value given, with the gradient of half the squared log ratio."""
    square_T = (logp_T - ref_logp_T).square() / 2
    return square_T - square_T.detach() + value_T.detach()
