"""LitePPO: group mean, batch standard deviation.

Source: Liu et al. 2025, "Tricks or Traps? A Deep Dive into RL for LLM Reasoning", arXiv:2508.08221.
Formula: A_i = (s_i - mean_g) / (std_batch + eps), std of the rewards of the whole batch with n-1
Use: with aggregate token_mean; groups whose rewards hardly differ are not scaled up.
Shape letters: N trajectories in the batch, G prompts (groups).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_estimator
from hybridrl.algorithms.groups import batch_std, centre, check_rewards


@register_estimator("lite_ppo")
@dataclass(frozen=True, kw_only=True, slots=True)
class LitePPO:
    """Reward minus its group's mean, over the standard deviation of all rewards."""

    eps: float = 1e-6
    """Added to the std, in units of reward."""

    needs: ClassVar[frozenset[Column]] = frozenset()
    min_group_size: ClassVar[int] = 2
    centred: ClassVar[str] = "group"

    def __call__(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        """The advantages, [N]; 0 in a flat group and in a group of one."""
        check_rewards(reward_N, group_N)
        return centre(reward_N, group_N) / (batch_std(reward_N) + self.eps)
