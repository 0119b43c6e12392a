"""Bounds on the reward.

Source: PPO's reference implementations.
Formula: clip(s, lowest, highest)
Use: reward models, whose outliers would dominate a batch.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_shaping
from hybridrl.algorithms.groups import check_rewards


@register_shaping("clip")
@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """Rewards outside of the bounds become the bound."""

    lowest: float = -10.0
    highest: float = 10.0

    needs: ClassVar[frozenset[Column]] = frozenset()

    def __post_init__(self) -> None:
        if self.lowest > self.highest:
            raise ValueError(f"lowest = {self.lowest} is above highest = {self.highest}")

    def __call__(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        check_rewards(reward_N, group_N)
        return reward_N.clamp(self.lowest, self.highest)
