"""MaxRL: centred rewards over the group's mean, which weighs hard prompts as maximum likelihood would.

Source: Tajwar et al. 2026, "Maximum Likelihood Reinforcement Learning", arXiv:2602.02710.
Formula: A_i = (s_i - mean_g) / (mean_g + eps)
Use: rewards of 0 and 1 where rare successes should count most.
Shape letters: N trajectories in the batch, G prompts (groups).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, register_estimator
from hybridrl.algorithms.groups import centre, check_rewards, group_size, group_sum


@register_estimator("max_rl")
@dataclass(frozen=True, kw_only=True, slots=True)
class MaxRL:
    """Reward minus its group's mean, over that mean."""

    eps: float = 1e-6
    """Added to the mean, in units of reward."""

    needs: ClassVar[frozenset[Column]] = frozenset()
    min_group_size: ClassVar[int] = 2
    centred: ClassVar[str] = "group"

    def __call__(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        """The advantages, [N]; 0 in a flat group and in a group of one.

        Raises:
            ValueError: a reward is negative.
        """
        check_rewards(reward_N, group_N)
        if (reward_N < 0).any():
            raise ValueError(f"negative reward at {torch.nonzero(reward_N < 0).flatten().tolist()}")
        mean_N = group_sum(reward_N, group_N) / group_size(group_N, reward_N.dtype)
        # With eps = 0 a group without any reward has nothing to be divided by.
        return torch.where(mean_N > 0, centre(reward_N, group_N) / (mean_N + self.eps), 0)
