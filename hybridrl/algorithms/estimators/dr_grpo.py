"""Dr. GRPO: group-relative advantages without the division by the standard deviation.

Source: Liu et al. 2025, "Understanding R1-Zero-Like Training", arXiv:2503.20783
Formula: A_i = s_i - mean_g
Use: with aggregate seq_mean_token_sum_norm, to remove the bias towards easy and hard prompts and towards
    long wrong answers.
Shape letters: N trajectories in the batch, G prompts (groups).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_estimator
from hybridrl.algorithms.groups import centre, check_rewards


@register_estimator("dr_grpo")
@dataclass(frozen=True, kw_only=True, slots=True)
class DrGRPO:
    """Reward minus its group's mean."""

    needs: ClassVar[frozenset[Column]] = frozenset()
    min_group_size: ClassVar[int] = 2
    centred: ClassVar[str] = "group"

    def __call__(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        """The advantages, [N]; they sum to 0 within each group up to rounding, and are 0 in a flat group and
        in a group of one."""
        check_rewards(reward_N, group_N)
        return centre(reward_N, group_N)
