"""RLOO: REINFORCE with the other answers to the prompt as baseline.

Source: Ahmadian et al. 2024, "Back to Basics", arXiv:2402.14740
Formula: A_i = s_i - mean over the others of g = n / (n - 1) * (s_i - mean_g)
Use: an unbiased baseline without a value function; advantages stay in units of reward.
Shape letters: N trajectories in the batch, G prompts (groups).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_estimator
from hybridrl.algorithms.groups import centre, check_rewards, group_size


@register_estimator("rloo")
@dataclass(frozen=True, kw_only=True, slots=True)
class RLOO:
    """Reward minus the mean reward of the other answers in its group."""

    needs: ClassVar[frozenset[Column]] = frozenset()
    min_group_size: ClassVar[int] = 2
    centred: ClassVar[str] = "group"

    def __call__(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        """The advantages, [N]; they sum to 0 within each group up to rounding, and are 0 in a flat group and
        in a group of one."""
        check_rewards(reward_N, group_N)
        size_N = group_size(group_N, reward_N.dtype)
        return centre(reward_N, group_N) * size_N / (size_N - 1).clamp(min=1)
