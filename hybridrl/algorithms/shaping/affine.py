"""Shift and scale.

Source: the reward bias and scaling of AReaL and others.
Formula: scale (s + shift)
Use: rewards of 0 and 1 that a paper has as -1 and 1.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_shaping
from hybridrl.algorithms.groups import check_rewards


@register_shaping("affine")
@dataclass(frozen=True, kw_only=True, slots=True)
class Affine:
    """Rewards with another zero and unit."""

    scale: float = 1.0
    shift: float = 0.0

    needs: ClassVar[frozenset[Column]] = frozenset()

    def __call__(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        check_rewards(reward_N, group_N)
        return self.scale * (reward_N + self.shift)
