"""ASPO: tokens with positive advantage carry the inverse of their ratio, so that rare ones get the largest
updates.

Source: Wang et al. 2025, "Asymmetric Importance Sampling Policy Optimization", arXiv:2510.06062.
Formula: A > 0: L = -sg[min(1 / r, cap)] (pi / sg[pi]) A while r <= 1 + clip_high, else 0 gradient; A <= 0:
    PPO-clip
Use: premature collapse of entropy under DAPO. The hard mask is decided by r itself, the cap keeps the
    gradient.
Shape letters: T packed tokens.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.bounds import check_clip
from hybridrl.algorithms.ratios import clipped_surrogate, log_ratio


@register_policy_loss("aspo")
@dataclass(frozen=True, kw_only=True, slots=True)
class ASPO:
    """PPO with the inverse ratio at tokens of positive advantage."""

    clip_low: float = 0.2
    """The ratio's gradient ends at 1 - clip_low."""

    clip_high: float = 0.28
    """The ratio's gradient ends at 1 + clip_high."""

    cap: float = 3.0
    """Bound on the inverse ratio's value, not on its gradient."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        moved_T = log_ratio(logp_T, old_logp_T)
        inverse_T = (-moved_T.detach()).exp().clamp(max=self.cap) * (logp_T - logp_T.detach()).exp()
        over_T = moved_T > math.log1p(self.clip_high)
        inverse_T = torch.where(over_T, inverse_T.detach(), inverse_T)
        plain_T, clipped_T = clipped_surrogate(moved_T.exp(), advantage_T, self.clip_low, self.clip_high)
        loss_T = torch.where(advantage_T > 0, -inverse_T * advantage_T, plain_T)
        return TokenLoss(loss_T, {"actor/pg_clipfrac": clipped_T.to(loss_T.dtype)})
