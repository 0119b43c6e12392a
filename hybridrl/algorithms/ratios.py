"""Probability ratios between policies, safe to exponentiate."""

from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped here: exp(20) is 5e8, and its square still fits float32. Beyond it a token has no
gradient."""


def log_ratio(logp_T: Tensor, other_logp_T: Tensor) -> Tensor:
    """log(policy / other), within +-MAX_LOG_RATIO."""
    return (logp_T - other_logp_T).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
