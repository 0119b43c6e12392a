"""CISPO: the importance weight is clipped, the gradient of the token never.

Source: MiniMax 2025, "MiniMax-M1", arXiv:2506.13585; outside = zero: GLM-5, arXiv:2602.15763
Formula: L = -sg[clip(r, 1 - clip_low, 1 + clip_high)] A logp; with level = sequence: r is the
    geometric mean over the answer; with outside = zero: the weight is 0 beyond a bound
Use: rare but decisive tokens that PPO-clip would silence after the first optimizer step.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.bounds import check_clip
from hybridrl.algorithms.sequences import importance_ratio


@register_policy_loss("cispo")
@dataclass(frozen=True, kw_only=True, slots=True)
class CISPO:
    """REINFORCE with a bounded importance weight."""

    clip_low: float = 1.0
    """The weight is at least 1 - clip_low; 1: no lower bound."""

    clip_high: float = 4.0
    """The weight is at most 1 + clip_high."""

    outside: Literal["clip", "zero"] = "clip"
    """Weight of a token whose ratio is out of bounds: the bound, or 0 as in GLM-5."""

    level: Literal["token", "sequence"] = "token"
    """Ratio of each token, or of the whole answer (the geometric mean over its tokens), as in TRL's
    importance_sampling_level."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        ratio_T = importance_ratio(logp_T.detach(), old_logp_T, tokens, self.level)
        weight_T = ratio_T.clamp(1 - self.clip_low, 1 + self.clip_high)
        clipped_T = weight_T != ratio_T
        if self.outside == "zero":
            weight_T = torch.where(clipped_T, 0, weight_T)
        return TokenLoss(-weight_T * advantage_T * logp_T, {"actor/pg_clipfrac": clipped_T.to(logp_T.dtype)})
