"""Score centering: REINFORCE minus the score that the engine's distribution would have anyway.

Source: "Score Centering Stabilizes Off-policy Reinforcement Learning" 2026, arXiv:2609.20807, equations 7 to
    14 (TIS + SC; with cap = null SC alone).
Formula: L = -A (sg[w_y] logp_y - sum over the engine's K likeliest v of sg[q_v w_v - alpha p_v] logp_v),
    w = min(p / q, cap) or 1, alpha = rho w(1 / rho), rho = (1 - sum q_v) / (1 - sum p_v)
Use: quantised engines and stale data: the mismatch of engine and trainer pulls the policy towards the engine,
    whatever the rewards, and this pull is taken off.
Shape letters: T packed tokens, K tokens of the engine's head.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.ratios import log_ratio

_LEAST_TAIL = 1e-6
"""Least probability outside the head: 1 - sum may round to 0."""


@register_policy_loss("score_centering")
@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreCentering:
    """The policy gradient of the engine's samples, whose expectation over these samples is 0 for a constant
    reward."""

    cap: float | None = 2.0
    """Bound on the importance weight of the policy against the engine; None: tokens are not weighed."""

    head_tokens: int = 20
    """K: for how many of its likeliest tokens the engine reports log-probabilities."""

    needs: ClassVar[frozenset[Column]] = frozenset({"rollout_logp", "engine_head_logp", "head_logp"})

    def __post_init__(self) -> None:
        if self.cap is not None and self.cap <= 0:
            raise ValueError(f"cap = {self.cap} is not positive")
        if self.head_tokens < 1:
            raise ValueError(f"head_tokens = {self.head_tokens}: at least one token is needed")

    def __call__(
        self,
        logp_T: Tensor,
        advantage_T: Tensor,
        tokens: Tokens,
        rollout_logp_T: Tensor,
        engine_head_logp_TK: Tensor,
        head_logp_TK: Tensor,
    ) -> TokenLoss:
        q_TK, p_TK = engine_head_logp_TK.exp(), head_logp_TK.detach().exp()
        tail_ratio_T = _tail(q_TK) / _tail(p_TK)
        if self.cap is None:
            weight_T, weighted_TK, tail_T = torch.ones_like(logp_T), q_TK, tail_ratio_T
        else:
            weight_T = log_ratio(logp_T.detach(), rollout_logp_T).exp().clamp(max=self.cap)
            weighted_TK = torch.minimum(p_TK, self.cap * q_TK)  # q min(p / q, cap), finite where q is 0
            tail_T = (self.cap * tail_ratio_T).clamp(max=1)
        centre_TK = weighted_TK - tail_T.unsqueeze(1) * p_TK
        correction_T = (centre_TK * head_logp_TK).sum(1)
        return TokenLoss(
            -advantage_T * (weight_T * logp_T - correction_T),
            {"actor/score_centre": centre_TK.abs().sum(1), "actor/engine_head": q_TK.sum(1)},
        )


def _tail(p_TK: Tensor) -> Tensor:
    return (1 - p_TK.sum(1)).clamp(min=_LEAST_TAIL)
