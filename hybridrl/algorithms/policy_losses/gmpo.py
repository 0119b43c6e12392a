"""GMPO: the geometric mean of the clipped token ratios weighs the whole answer.

Source: Zhao et al. 2025, "Geometric-Mean Policy Optimization", arXiv:2507.20673
Formula: R = exp(mean of clipped log r), clipped above clip_high where A > 0, below -clip_low where A < 0; L
    = -R A
Use: less sensitive to single outlier tokens than an arithmetic mean; wide clips.
Shape letters: T packed tokens, S trajectories.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.ratios import log_ratio
from hybridrl.algorithms.sequences import sequence_mean


@register_policy_loss("gmpo")
@dataclass(frozen=True, kw_only=True, slots=True)
class GMPO:
    """One ratio for the answer, with the clip inside the mean."""

    clip_low: float = 0.4
    """The log ratio of a token with negative advantage is at least -clip_low."""

    clip_high: float = 0.4
    """The log ratio of a token with positive advantage is at most clip_high."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})
    aggregates: ClassVar[frozenset[str]] = frozenset({"seq_mean_token_mean"})

    def __post_init__(self) -> None:
        if min(self.clip_low, self.clip_high) < 0:
            raise ValueError(f"clip_low = {self.clip_low} or clip_high = {self.clip_high} is negative")

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        free_T = log_ratio(logp_T, old_logp_T)
        bounded_T = free_T.where(advantage_T <= 0, free_T.clamp(max=self.clip_high))
        bounded_T = bounded_T.where(advantage_T >= 0, free_T.clamp(min=-self.clip_low)).where(
            advantage_T != 0, 0
        )
        ratio_S = sequence_mean(bounded_T, tokens).exp()
        clipped_T = (bounded_T != free_T) & (advantage_T != 0)
        return TokenLoss(
            -ratio_S[tokens.seq_T] * advantage_T, {"actor/pg_clipfrac": clipped_T.to(logp_T.dtype)}
        )
