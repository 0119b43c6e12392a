"""Two-sided clip: PPO-clip whose ratio is also bounded where the advantage is negative.

Source: Prime Intellect 2025, "INTELLECT-2", arXiv:2505.07291
Formula: L = -min(min(r, delta) A, clip(r, 1 - clip_low, 1 + clip_high) A)
Use: asynchronous data: a huge ratio on a bad token no longer dominates the step.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.bounds import check_clip
from hybridrl.algorithms.ratios import clipped_surrogate, log_ratio


@register_policy_loss("two_sided")
@dataclass(frozen=True, kw_only=True, slots=True)
class TwoSided:
    """PPO-clip with a ceiling on the ratio."""

    clip_low: float = 0.2
    """The ratio's gradient ends at 1 - clip_low."""

    clip_high: float = 0.2
    """The ratio's gradient ends at 1 + clip_high."""

    delta: float = 4.0
    """Bound on the ratio, above 1 + clip_high."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)
        if self.delta <= 1 + self.clip_high:
            raise ValueError(f"delta = {self.delta} is not above 1 + clip_high = {1 + self.clip_high}")

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        ratio_T = log_ratio(logp_T, old_logp_T).exp().clamp(max=self.delta)
        loss_T, clipped_T = clipped_surrogate(ratio_T, advantage_T, self.clip_low, self.clip_high)
        return TokenLoss(loss_T, {"actor/pg_clipfrac": clipped_T.to(loss_T.dtype)})
