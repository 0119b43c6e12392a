"""VESPO: a smooth weight with a single peak, as a function of the whole answer's importance ratio.

Source: Shen et al. 2026, "Variational Sequence-Level Soft Policy Optimization", arXiv:2602.10693; constants
    of TRL.
Formula: L = -sg[phi(W)] A logp, phi(W) = e^lam W^k e^(-lam W), W = product of ratios of the answer, in
    [1e-8, e^20]
Use: stale or asynchronous data, without a hard clip.
Shape letters: T packed tokens, S trajectories.
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.ratios import MAX_LOG_RATIO, by_sign, log_ratio
from hybridrl.algorithms.sequences import sequence_sum


@register_policy_loss("vespo")
@dataclass(frozen=True, kw_only=True, slots=True)
class VESPO:
    """The weight phi is 1 at W = 1 and falls to 0 on both sides."""

    k_positive: float = 2.0
    """Power of W where the advantage is not negative."""

    lam_positive: float = 3.0
    """Rate of decay above W = 1 where the advantage is not negative."""

    k_negative: float = 3.0
    """Power of W where the advantage is negative."""

    lam_negative: float = 2.0
    """Rate of decay above W = 1 where the advantage is negative."""

    since: Literal["update", "sampling"] = "update"
    """Policy in the denominator of W: the one before the update, or the engine's at sampling."""

    @property
    def needs(self) -> frozenset[Column]:
        return frozenset({"old_logp"} if self.since == "update" else {"rollout_logp"})

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, **before: Tensor) -> TokenLoss:
        (before_T,) = before.values()
        total_S = sequence_sum(log_ratio(logp_T.detach(), before_T), tokens).clamp(
            math.log(1e-8), MAX_LOG_RATIO
        )
        log_w_T = total_S[tokens.seq_T]
        k_T = by_sign(advantage_T >= 0, self.k_positive, self.k_negative, logp_T.dtype)
        lam_T = by_sign(advantage_T >= 0, self.lam_positive, self.lam_negative, logp_T.dtype)
        phi_T = (lam_T + k_T * log_w_T - lam_T * log_w_T.exp()).exp()
        return TokenLoss(-phi_T * advantage_T * logp_T)
