"""OPO: the baseline that minimises the variance of an exactly on-policy gradient.

Source: Hao et al. 2025, "On-Policy RL with Optimal Reward Baseline", arXiv:2505.23585
Formula: A_i = s_i - b_g, b_g = sum of l_j s_j / sum of l_j over g, l = trained tokens
Use: one optimizer step per batch, no KL; long answers weigh more in the baseline.
Shape letters: N trajectories in the batch, G prompts (groups).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_estimator
from hybridrl.algorithms.groups import check_rewards, group_min, group_sum


@register_estimator("opo")
@dataclass(frozen=True, kw_only=True, slots=True)
class OPO:
    """Reward minus the length-weighted mean of its group."""

    needs: ClassVar[frozenset[Column]] = frozenset({"length"})
    min_group_size: ClassVar[int] = 2

    def __call__(self, reward_N: Tensor, group_N: Tensor, length_N: Tensor) -> Tensor:
        """The advantages, [N]; 0 in a flat group and in a group of one."""
        check_rewards(reward_N, group_N)
        above_N = reward_N - group_min(reward_N, group_N)
        length_N = length_N.to(reward_N.dtype)
        total_N = group_sum(length_N, group_N).clamp(min=1)
        return above_N - group_sum(length_N * above_N, group_N) / total_N
