"""GRPO: group-relative advantages for outcome rewards.

Source: Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300, section 4.1.2.
Formula: A_i = (s_i - mean_g) / (std_g + eps), std with n-1
Use: outcome rewards and several answers per prompt; the usual first choice.
Shape letters: N trajectories in the batch, G prompts (groups).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_estimator
from hybridrl.algorithms.groups import centre, check_rewards, group_std


@register_estimator("grpo")
@dataclass(frozen=True, kw_only=True, slots=True)
class GRPO:
    """Reward minus its group's mean, by default over the group's standard deviation."""

    scale_by_std: bool = True
    """Divide by the group's unbiased (n-1) std."""

    eps: float = 1e-6
    """Added to the std, in units of reward."""

    needs: ClassVar[frozenset[Column]] = frozenset()
    min_group_size: ClassVar[int] = 2
    centred: ClassVar[str] = "group"

    def __call__(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        """Advantage of each trajectory.

        Args:
            reward_N: float [N], one outcome reward per trajectory.
            group_N: int64 [N], prompt of each trajectory, in [0, G); any order.

        Returns:
            [N]; they sum to 0 within each group up to rounding, and are exactly 0 in a flat group and in a
            group of one.

        Raises:
            ValueError: a reward is not finite.
        """
        check_rewards(reward_N, group_N)
        advantage_N = centre(reward_N, group_N)
        if not self.scale_by_std:
            return advantage_N
        return advantage_N / (group_std(advantage_N, group_N) + self.eps)
