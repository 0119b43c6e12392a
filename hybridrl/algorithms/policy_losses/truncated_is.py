"""Truncated importance sampling as a loss.

Source: Espeholt et al. 2018, "IMPALA", arXiv:1802.01561; the "tis" loss of ROLL.
Formula: L = -sg[min(r, cap)] A logp
Use: stale data with bounded variance; for the gap between engine and trainer take a correction instead.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.ratios import log_ratio


@register_policy_loss("truncated_is")
@dataclass(frozen=True, kw_only=True, slots=True)
class TruncatedIS:
    """REINFORCE whose importance weight never exceeds its cap."""

    cap: float = 1.0
    """Bound on the weight."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        weight_T = log_ratio(logp_T.detach(), old_logp_T).exp().clamp(max=self.cap)
        return TokenLoss(-weight_T * advantage_T * logp_T)
