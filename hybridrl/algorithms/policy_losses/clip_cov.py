"""Clip-Cov: a few random tokens of high covariance get no gradient, which keeps entropy up.

Source: Cui et al. 2025, "The Entropy Mechanism of RL for Reasoning Language Models", arXiv:2505.22617
Formula: PPO-clip; cov_t = (A - mean A)(old_logp - mean old_logp); of the tokens with lowest < cov < highest,
    a random share is detached
Use: entropy that collapses early. Covariances are of the policy before the update, over the whole batch, so
    that neither ranks nor microbatches change the choice.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, Known, Prepared, Reduce, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.bounds import check_clip
from hybridrl.algorithms.ratios import clipped_surrogate, log_ratio
from hybridrl.algorithms.selection import largest_share, random_per_token, token_covariance


@register_policy_loss("clip_cov")
@dataclass(frozen=True, kw_only=True, slots=True)
class ClipCov:
    """PPO-clip with gradients removed where entropy is lost fastest."""

    clip_low: float = 0.2
    """The ratio's gradient ends at 1 - clip_low."""

    clip_high: float = 0.2
    """The ratio's gradient ends at 1 + clip_high."""

    share: float = 2e-4
    """Share of the trained tokens of the batch that get no gradient, at least one token."""

    lowest: float = 1.0
    """Covariance below which a token is never chosen."""

    highest: float = 5.0
    """Covariance above which a token is never chosen."""

    seed: int = 0
    """Seed of the random choice, together with the step."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp", "kept"})
    makes: ClassVar[frozenset[Column]] = frozenset({"kept"})

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)
        if not 0 < self.share <= 1:
            raise ValueError(f"share = {self.share} is not in (0, 1]")

    def prepare(self, known: Known, reduce: Reduce) -> Prepared:
        covariance_T = token_covariance(known.advantage_T, known.columns["old_logp"], known.tokens, reduce)
        candidate_T = (covariance_T > self.lowest) & (covariance_T < self.highest) & known.tokens.mask_T
        draw_T = random_per_token(self.seed, known.step, known.tokens).where(candidate_T, -1)
        chosen_T = largest_share(draw_T, self.share, known.tokens, reduce) & candidate_T
        num_tokens = reduce.sum(known.tokens.mask_T.sum()).clamp(min=1)
        metrics = {"actor/cov_clipfrac": reduce.sum(chosen_T.sum()) / num_tokens}
        return Prepared({"kept": (~chosen_T).to(covariance_T.dtype)}, metrics)

    def __call__(
        self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor, kept_T: Tensor
    ) -> TokenLoss:
        ratio_T = log_ratio(logp_T, old_logp_T).exp()
        loss_T, clipped_T = clipped_surrogate(ratio_T, advantage_T, self.clip_low, self.clip_high)
        return TokenLoss(loss_T * kept_T, {"actor/pg_clipfrac": clipped_T.to(loss_T.dtype)})
