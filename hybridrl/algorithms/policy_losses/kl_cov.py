"""KL-Cov: the tokens of highest covariance get a divergence penalty, which keeps entropy up.

Source: Cui et al. 2025, "The Entropy Mechanism of RL for Reasoning Language Models", arXiv:2505.22617
Formula: L = -r A + coefficient |log r| on the share of tokens with the largest cov_t = (A - mean A)(old_logp
    - mean old_logp)
Use: entropy that collapses early; there is no clip. Covariances are of the policy before the update, over
    the whole batch.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, Known, Prepared, Reduce, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.ratios import log_ratio
from hybridrl.algorithms.selection import largest_share, token_covariance


@register_policy_loss("kl_cov")
@dataclass(frozen=True, kw_only=True, slots=True)
class KLCov:
    """The unclipped surrogate with a divergence penalty on a few tokens."""

    share: float = 2e-4
    """Share of the trained tokens of the batch that are penalised, at least one token."""

    coefficient: float = 1.0
    """Weight of the absolute log ratio."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp", "penalised"})
    makes: ClassVar[frozenset[Column]] = frozenset({"penalised"})

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share = {self.share} is not in (0, 1]")

    def prepare(self, known: Known, reduce: Reduce) -> Prepared:
        covariance_T = token_covariance(known.advantage_T, known.columns["old_logp"], known.tokens, reduce)
        chosen_T = largest_share(covariance_T, self.share, known.tokens, reduce)
        return Prepared({"penalised": chosen_T.to(covariance_T.dtype)}, {})

    def __call__(
        self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor, penalised_T: Tensor
    ) -> TokenLoss:
        moved_T = log_ratio(logp_T, old_logp_T)
        penalty_T = self.coefficient * penalised_T * moved_T.abs()
        return TokenLoss(-moved_T.exp() * advantage_T + penalty_T, {"actor/kl_cov_penalty": penalty_T})
