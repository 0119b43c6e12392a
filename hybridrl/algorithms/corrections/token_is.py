"""Truncated importance sampling, token by token (TIS).

Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training".
Formula: w = clip(exp(old_logp - rollout_logp), lowest, cap)
Use: the default against engine mismatch: little variance, small bias.
"""

from dataclasses import dataclass

from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens, register_correction


@register_correction("token_is")
@dataclass(frozen=True, kw_only=True, slots=True)
class TokenIS:
    """Every token is weighed by its own ratio."""

    cap: float = 2.0
    """Bound on the weight."""

    lowest: float = 0.0
    """The weight is at least this."""

    def __call__(self, weight_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, reduce: Reduce) -> Tensor:
        return weight_T * log_ratio_T.exp().clamp(self.lowest, self.cap)
