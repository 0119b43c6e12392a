"""PPO-clip, with separate lower and upper bounds and the dual clip.

Source: Schulman et al. 2017, arXiv:1707.06347; clip_high: DAPO, arXiv:2503.14476;
    dual clip: Ye et al. 2019, arXiv:1912.09729
Formula: L = max(-r A, -clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(logp - old_logp);
    where A < 0 with dual clip: min(L, -dual_clip A); with level = sequence: r is the geometric mean over
    the answer
Use: the default; clip_high above clip_low keeps exploration alive.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.bounds import check_clip
from hybridrl.algorithms.ratios import clipped_surrogate
from hybridrl.algorithms.sequences import importance_ratio


@register_policy_loss("ppo_clip")
@dataclass(frozen=True, kw_only=True, slots=True)
class PPOClip:
    """Policy gradient that stops where the ratio has left its range in the direction of the advantage."""

    clip_low: float = 0.2
    """The ratio's gradient ends at 1 - clip_low."""

    clip_high: float = 0.2
    """The ratio's gradient ends at 1 + clip_high; 0.28 in DAPO."""

    dual_clip: float | None = None
    """Bound on the ratio where the advantage is negative, above 1 (often 3); None: no bound."""

    level: Literal["token", "sequence"] = "token"
    """Ratio of each token, or of the whole answer (the geometric mean over its tokens), as in TRL's
    importance_sampling_level."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip = {self.dual_clip} is not above 1")

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        ratio_T = importance_ratio(logp_T, old_logp_T, tokens, self.level)
        loss_T, clipped_T = clipped_surrogate(ratio_T, advantage_T, self.clip_low, self.clip_high)
        mean = {"actor/pg_clipfrac": clipped_T.to(loss_T.dtype)}
        if self.dual_clip is not None:
            ceiling_T = -self.dual_clip * advantage_T
            over_T = (advantage_T < 0) & (loss_T > ceiling_T)
            loss_T = torch.where(over_T, ceiling_T, loss_T)
            mean["actor/pg_clipfrac_lower"] = over_T.to(loss_T.dtype)
        return TokenLoss(loss_T, mean)
