"""Mirror descent of Kimi k1.5: the policy gradient with a squared log ratio.

Source: Kimi team 2025, "Kimi k1.5", arXiv:2501.12599
Formula: L = -A logp + tau / 2 (log r)^2, A = s - mean over the group
Use: with estimator dr_grpo; several optimizer steps per batch without a clip.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.ratios import log_ratio


@register_policy_loss("kimi_k15")
@dataclass(frozen=True, kw_only=True, slots=True)
class KimiK15:
    """REINFORCE held near the policy before the update."""

    tau: float = 0.1
    """Weight of the squared log ratio."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        return TokenLoss(-advantage_T * logp_T + self.tau / 2 * log_ratio(logp_T, old_logp_T).square())
