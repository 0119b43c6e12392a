"""REINFORCE++: returns without a baseline, whitened over all trained tokens of the batch.

Source: Hu 2025, "REINFORCE++", arXiv:2501.03262
Formula: R_t = r_t + discount * R_{t+1}; A = (R - mean) / sqrt(var + eps) over all trained tokens, var with
    n-1; with penalty = token: R_t = s_i - c KL_t; with baseline = group: s_i - mean_g in place of s_i
Use: one answer per prompt, or groups too small for their own baseline; with KL (k1) in the reward as in
    the paper.
Shape letters: N trajectories in the batch, T packed tokens held here.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from hybridrl.algorithms.base import Advantage, Column, OneRank, Reduce, Tokens, register_estimator
from hybridrl.algorithms.groups import centre, check_rewards
from hybridrl.algorithms.sequences import at_last_token, discounted_sum, masked, whiten


@register_estimator("reinforce_plus_plus")
@dataclass(frozen=True, kw_only=True, slots=True)
class ReinforcePlusPlus:
    """The return of each token, whitened over the global batch."""

    discount: float = 1.0
    """Discount per token, in (0, 1]; tool and observation tokens do not count."""

    baseline: Literal["none", "group"] = "none"
    """What is subtracted from the outcome reward: nothing, or the mean of its group as in NeMo-RL."""

    penalty: Literal["return", "token"] = "return"
    """Who pays for the KL of a token, if it is in the reward: this token and all before it, or this token
    only as in NeMo-RL."""

    eps: float = 1e-8
    """Added to the variance, under the root."""

    bessel: bool = True
    """Divide by n-1 in the variance."""

    needs: ClassVar[frozenset[Column]] = frozenset({"length"})
    token_needs: ClassVar[frozenset[Column]] = frozenset()

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount = {self.discount} is not in (0, 1]")
        if self.penalty == "token" and self.discount != 1:
            raise ValueError(f"discount = {self.discount} with penalty = token: no return is discounted")

    @property
    def min_group_size(self) -> int:
        return 2 if self.baseline == "group" else 1

    @property
    def per_token(self) -> bool:
        return self.discount != 1

    def __call__(self, reward_N: Tensor, group_N: Tensor, length_N: Tensor) -> Tensor:
        """The advantages, [N]. Every token has the outcome reward of its trajectory as return, so a
        trajectory counts once per token."""
        check_rewards(reward_N, group_N)
        outcome_N = self._outcome(reward_N, group_N)
        return whiten(outcome_N, length_N, OneRank(), eps=self.eps, bessel=self.bessel)

    def token_rewards(self, reward_N: Tensor, group_N: Tensor, penalty_T: Tensor, tokens: Tokens) -> Tensor:
        """The rewards that `over_tokens` is called with, [T]; with penalty = token they are the returns."""
        outcome_N = self._outcome(reward_N, group_N)
        if self.penalty == "token":
            return masked(outcome_N[tokens.seq_T], tokens) - penalty_T
        return at_last_token(outcome_N, tokens) - penalty_T

    def over_tokens(self, token_reward_T: Tensor, tokens: Tokens, reduce: Reduce) -> Advantage:
        """*Collective*. The advantages, [T], have mean 0 and variance 1 over the trained tokens of all
        ranks."""
        return_T = token_reward_T
        if self.penalty == "return":
            return_T = discounted_sum(token_reward_T, self.discount, tokens)
        white_T = whiten(return_T, tokens.mask_T, reduce, eps=self.eps, bessel=self.bessel)
        return Advantage(masked(white_T, tokens))

    def _outcome(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        return centre(reward_N, group_N) if self.baseline == "group" else reward_N
