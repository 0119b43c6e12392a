"""Kimi k1.5's length reward: short right answers gain and long ones lose; wrong ones never gain.

Source: Kimi team 2025, "Kimi k1.5", arXiv:2501.12599
Formula: s + weight * l where solved, else s + weight * min(0, l), l = 1/2 - (length - shortest) / (longest -
    shortest) in the group
Use: against overthinking, once the policy solves the prompts.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, register_shaping
from hybridrl.algorithms.groups import check_rewards, group_max, group_min


@register_shaping("kimi_length")
@dataclass(frozen=True, kw_only=True, slots=True)
class KimiLength:
    """A group whose answers are equally long gets no length reward."""

    weight: float = 1.0
    """Weight of the length reward."""

    solved_above: float = 0.0
    """An answer is solved if its reward is above this."""

    needs: ClassVar[frozenset[Column]] = frozenset({"length"})

    def __call__(self, reward_N: Tensor, group_N: Tensor, length_N: Tensor) -> Tensor:
        check_rewards(reward_N, group_N)
        length_N = length_N.to(reward_N.dtype)
        shortest_N = group_min(length_N, group_N)
        range_N = group_max(length_N, group_N) - shortest_N
        bonus_N = torch.where(range_N > 0, 0.5 - (length_N - shortest_N) / range_N.clamp(min=1), 0)
        return reward_N + self.weight * bonus_N.where(reward_N > self.solved_above, bonus_N.clamp(max=0))
