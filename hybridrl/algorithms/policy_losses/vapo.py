"""VAPO: PPO-clip and, on solved answers, the likelihood loss of supervised learning.

Source: Yue et al. 2025, "VAPO", arXiv:2504.05118; clips of DAPO.
Formula: L = max(-r A, -clip(r) A) - nll logp / (share of trained tokens in solved answers) on solved answers
Use: with estimator gae, adaptive lambda and aggregate token_mean.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, Known, Prepared, Reduce, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.bounds import check_clip
from hybridrl.algorithms.ratios import clipped_surrogate, log_ratio


@register_policy_loss("vapo")
@dataclass(frozen=True, kw_only=True, slots=True)
class VAPO:
    """PPO-clip plus nll times the mean negative log-likelihood of the solved answers."""

    clip_low: float = 0.2
    """The ratio's gradient ends at 1 - clip_low."""

    clip_high: float = 0.28
    """The ratio's gradient ends at 1 + clip_high."""

    nll: float = 0.1
    """Weight of the likelihood loss."""

    solved_above: float = 0.0
    """An answer is solved if its reward is above this."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp", "imitated"})
    makes: ClassVar[frozenset[Column]] = frozenset({"imitated"})
    aggregates: ClassVar[frozenset[str]] = frozenset({"token_mean"})

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def prepare(self, known: Known, reduce: Reduce) -> Prepared:
        solved_T = (known.reward_N > self.solved_above)[known.tokens.seq_T] & known.tokens.mask_T
        num_solved, num_tokens = reduce.sum(torch.stack([solved_T.sum(), known.tokens.mask_T.sum()])).double()
        weight = num_tokens / num_solved.clamp(min=1)
        return Prepared({"imitated": (solved_T * weight).to(known.advantage_T.dtype)}, {})

    def __call__(
        self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor, imitated_T: Tensor
    ) -> TokenLoss:
        ratio_T = log_ratio(logp_T, old_logp_T).exp()
        loss_T, clipped_T = clipped_surrogate(ratio_T, advantage_T, self.clip_low, self.clip_high)
        nll_T = -imitated_T * logp_T
        mean = {"actor/pg_clipfrac": clipped_T.to(loss_T.dtype), "actor/nll_loss": nll_T}
        return TokenLoss(loss_T + self.nll * nll_T, mean)
