"""IPO: a trust region on the change of the token's probability that is the same in both directions.

Source: prime-rl, trainer loss "ipo" (src/prime_rl/trainer/rl/loss.py, mid-2026).
Formula: L = -r A while -delta_low <= p - p_old <= delta_high, else 0; plus drift (log r)^2 at every token
Use: as dppo_tv, but a token that has moved far has no gradient in either direction; with correction bypass
    the old policy is the one that sampled, as in prime-rl.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.ratios import log_ratio, possible


@register_policy_loss("ipo")
@dataclass(frozen=True, kw_only=True, slots=True)
class IPO:
    """The importance ratio without a clip, inside a symmetric trust region on probabilities."""

    delta_low: float = 0.1
    """A probability may fall by this much, whatever the advantage."""

    delta_high: float = 0.1
    """A probability may rise by this much, whatever the advantage; 1: no bound."""

    drift: float = 1e-3
    """Weight of the squared log ratio that is added."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        possible_T, logp_T, old_logp_T = possible(logp_T, old_logp_T)
        moved_T = log_ratio(logp_T, old_logp_T)
        change_T = logp_T.detach().exp() - old_logp_T.exp()
        inside_T = (change_T >= -self.delta_low) & (change_T <= self.delta_high) & possible_T
        loss_T = -moved_T.exp() * advantage_T * inside_T + self.drift * moved_T.square()
        return TokenLoss(loss_T, {"actor/pg_clipfrac": (~inside_T).to(logp_T.dtype)})
