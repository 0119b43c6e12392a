"""GSPO: one importance ratio for the whole answer, the geometric mean of its tokens' ratios.

Source: Zheng et al. 2025, "Group Sequence Policy Optimization", arXiv:2507.18071 (the token form,
    GSPO-token).
Formula: s_t = sg[exp(mean of log r)] pi / sg[pi]; L = max(-s A, -clip(s, 1 - clip_low, 1 + clip_high) A)
Use: mixture-of-experts models, where single tokens' ratios jump with the routing.
Shape letters: T packed tokens, S trajectories.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.bounds import check_clip
from hybridrl.algorithms.ratios import clipped_surrogate
from hybridrl.algorithms.sequences import importance_ratio


@register_policy_loss("gspo")
@dataclass(frozen=True, kw_only=True, slots=True)
class GSPO:
    """PPO-clip on the sequence's ratio; the gradient still reaches every token by itself."""

    clip_low: float = 3e-4
    """The ratio's gradient ends at 1 - clip_low."""

    clip_high: float = 4e-4
    """The ratio's gradient ends at 1 + clip_high."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})
    aggregates: ClassVar[frozenset[str]] = frozenset({"seq_mean_token_mean"})

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        ratio_T = importance_ratio(logp_T, old_logp_T, tokens, "sequence")
        loss_T, clipped_T = clipped_surrogate(ratio_T, advantage_T, self.clip_low, self.clip_high)
        return TokenLoss(loss_T, {"actor/pg_clipfrac": clipped_T.to(loss_T.dtype)})
