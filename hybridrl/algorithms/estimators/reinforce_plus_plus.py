"""REINFORCE++: returns without a baseline, whitened over all trained tokens of the batch.

Source: Hu 2025, "REINFORCE++", arXiv:2501.03262
Formula: R_t = r_t + discount * R_{t+1}; A = (R - mean) / sqrt(var + eps) over all trained tokens, var with
    n-1
Use: one answer per prompt, or groups too small for their own baseline; with KL (k1) in the reward as in
    the paper.
Shape letters: N trajectories in the batch, T packed tokens held here.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Advantage, Column, OneRank, Reduce, Tokens, register_estimator
from hybridrl.algorithms.groups import check_rewards
from hybridrl.algorithms.sequences import discounted_sum, masked, whiten


@register_estimator("reinforce_plus_plus")
@dataclass(frozen=True, kw_only=True, slots=True)
class ReinforcePlusPlus:
    """The return of each token, whitened over the global batch."""

    discount: float = 1.0
    """Discount per token, in (0, 1]; tool and observation tokens do not count."""

    eps: float = 1e-8
    """Added to the variance, under the root."""

    bessel: bool = True
    """Divide by n-1 in the variance."""

    needs: ClassVar[frozenset[Column]] = frozenset({"length"})
    token_needs: ClassVar[frozenset[Column]] = frozenset()

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount = {self.discount} is not in (0, 1]")

    @property
    def per_token(self) -> bool:
        return self.discount != 1

    def __call__(self, reward_N: Tensor, group_N: Tensor, length_N: Tensor) -> Tensor:
        """The advantages, [N]. Every token has the outcome reward of its trajectory as return, so a
        trajectory counts once per token."""
        check_rewards(reward_N, group_N)
        return whiten(reward_N, length_N, OneRank(), eps=self.eps, bessel=self.bessel)

    def over_tokens(self, token_reward_T: Tensor, tokens: Tokens, reduce: Reduce) -> Advantage:
        """*Collective*. The advantages, [T], have mean 0 and variance 1 over the trained tokens of all
        ranks."""
        return_T = discounted_sum(token_reward_T, self.discount, tokens)
        white_T = whiten(return_T, tokens.mask_T, reduce, eps=self.eps, bessel=self.bessel)
        return Advantage(masked(white_T, tokens))
