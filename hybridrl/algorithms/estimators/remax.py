"""ReMax: the reward of the greedy answer is the baseline.

Source: Li et al. 2023, "ReMax", arXiv:2310.10505
Formula: A_t = sum of r_u for u >= t, minus the reward of the greedy answer
Use: one sample and one greedy answer per prompt; no value function, no group.
Shape letters: N trajectories in the batch, T packed tokens held here.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Advantage, Column, Reduce, Tokens, register_estimator
from hybridrl.algorithms.groups import check_rewards
from hybridrl.algorithms.sequences import discounted_sum, masked


@register_estimator("remax")
@dataclass(frozen=True, kw_only=True, slots=True)
class ReMax:
    """Return minus the greedy answer's reward."""

    needs: ClassVar[frozenset[Column]] = frozenset({"greedy_reward"})
    token_needs: ClassVar[frozenset[Column]] = frozenset({"greedy_reward"})
    per_token: ClassVar[bool] = False

    def __call__(self, reward_N: Tensor, group_N: Tensor, greedy_reward_N: Tensor) -> Tensor:
        """The advantages, [N]."""
        check_rewards(reward_N, group_N)
        return reward_N - greedy_reward_N

    def over_tokens(
        self, token_reward_T: Tensor, tokens: Tokens, reduce: Reduce, greedy_reward_N: Tensor
    ) -> Advantage:
        """The advantages, [T], for rewards that contain a KL penalty."""
        return_T = discounted_sum(token_reward_T, 1.0, tokens)
        return Advantage(masked(return_T - greedy_reward_N[tokens.seq_T], tokens))
