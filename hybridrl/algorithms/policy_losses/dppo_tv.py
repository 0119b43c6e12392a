"""DPPO with total variation: a trust region on the change of the token's probability, not of its ratio.

Source: Qi et al. 2026, "Rethinking the Trust Region in LLM Reinforcement Learning", arXiv:2602.04879.
Formula: L = -A sg[min(r, max_ratio)] logp while p - p_old <= delta_high (A > 0) or >= -delta_low (A <= 0),
    else 0; plus drift (log r)^2
Use: rare tokens may multiply their probability; frequent ones may not move far.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.ratios import log_ratio, possible


@register_policy_loss("dppo_tv")
@dataclass(frozen=True, kw_only=True, slots=True)
class DPPOTV:
    """REINFORCE with an importance weight inside a trust region on probabilities."""

    delta_low: float = 0.2
    """A probability may fall by this much."""

    delta_high: float = 0.2
    """A probability may rise by this much."""

    max_ratio: float = 20.0
    """Bound on the importance weight."""

    drift: float = 0.0
    """Weight of the squared log ratio that is added; 1e-3 in prime-rl."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        possible_T, logp_T, old_logp_T = possible(logp_T, old_logp_T)
        moved_T = log_ratio(logp_T, old_logp_T)
        change_T = logp_T.detach().exp() - old_logp_T.exp()
        inside_T = torch.where(advantage_T > 0, change_T <= self.delta_high, change_T >= -self.delta_low)
        inside_T = inside_T & possible_T
        weight_T = moved_T.detach().exp().clamp(max=self.max_ratio) * inside_T
        loss_T = -advantage_T * weight_T * logp_T + self.drift * moved_T.square()
        return TokenLoss(loss_T, {"actor/pg_clipfrac": (~inside_T).to(logp_T.dtype)})
