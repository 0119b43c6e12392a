"""Product clip: PPO-clip on the probability ratio of the whole answer, the product of its tokens' ratios.

Source: Ahmadian et al. 2024, "Back to Basics", arXiv:2402.14740, which takes the answer as one action; clip
    as in TRL's RLOOTrainer.
Formula: L of an answer = max(-p A, -clip(p, 1 - clip_low, 1 + clip_high) A), p = exp(sum of log r)
Use: with estimator rloo and few optimizer steps per batch: one token that moves can end the gradient of its
    answer.
Shape letters: T packed tokens, S trajectories.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.bounds import check_clip
from hybridrl.algorithms.ratios import MAX_LOG_RATIO, clipped_surrogate, log_ratio
from hybridrl.algorithms.sequences import sequence_mean, sequence_sum, spread


@register_policy_loss("product_clip")
@dataclass(frozen=True, kw_only=True, slots=True)
class ProductClip:
    """A loss of whole answers: sums over tokens are right, means over tokens are not."""

    clip_low: float = 0.2
    """The gradient ends where the answer's ratio falls to 1 - clip_low."""

    clip_high: float = 0.2
    """The gradient ends where the answer's ratio rises to 1 + clip_high."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})
    aggregates: ClassVar[frozenset[str]] = frozenset({"seq_mean_token_sum", "seq_mean_token_sum_norm"})

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        log_product_S = sequence_sum(log_ratio(logp_T, old_logp_T), tokens)
        ratio_S = log_product_S.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        loss_S, clipped_S = clipped_surrogate(
            ratio_S, sequence_mean(advantage_T, tokens), self.clip_low, self.clip_high
        )
        clipped_T = clipped_S.to(loss_S.dtype)[tokens.seq_T]
        return TokenLoss(spread(loss_S, tokens), {"actor/pg_clipfrac": clipped_T})
