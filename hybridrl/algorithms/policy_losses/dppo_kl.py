"""DPPO with a divergence: a trust region on the KL divergence of token against all others.

Source: Qi et al. 2026, "Rethinking the Trust Region in LLM Reinforcement Learning", arXiv:2602.04879.
Formula: D = p_old log(p_old / p) + (1 - p_old) log((1 - p_old) / (1 - p)); L = -A sg[min(r, max_ratio)] logp
    while D <= delta_high (A > 0) or delta_low (A <= 0) or the token moves back, else 0
Use: as dppo_tv, with a bound in nats.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.divergence import binary_kl
from hybridrl.algorithms.ratios import by_sign, log_ratio


@register_policy_loss("dppo_kl")
@dataclass(frozen=True, kw_only=True, slots=True)
class DPPOKL:
    """REINFORCE with an importance weight inside a trust region on the binary divergence."""

    delta_low: float = 0.2
    """Bound on the divergence where the advantage is not positive, in nats."""

    delta_high: float = 0.2
    """Bound on the divergence where the advantage is positive, in nats."""

    max_ratio: float = 20.0
    """Bound on the importance weight."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        new_logp_T = logp_T.detach()
        divergence_T = binary_kl(old_logp_T, new_logp_T)
        moved_T = new_logp_T.exp() - old_logp_T.exp()
        away_T = torch.where(advantage_T > 0, moved_T > 0, moved_T < 0)
        bound_T = by_sign(advantage_T > 0, self.delta_high, self.delta_low, logp_T.dtype)
        # A probability of 0 or above 1 has no divergence (inf or NaN), and its token no meaning.
        outside_T = (divergence_T > bound_T) & away_T | ~divergence_T.isfinite()
        weight_T = log_ratio(new_logp_T, old_logp_T).exp().clamp(max=self.max_ratio)
        loss_T = torch.where(outside_T, 0, -advantage_T * weight_T * logp_T.where(~outside_T, 0))
        return TokenLoss(loss_T, {"actor/pg_clipfrac": outside_T.to(logp_T.dtype)})
