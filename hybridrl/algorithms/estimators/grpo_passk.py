"""GRPO for pass@k: only the best answer of a group is reinforced, by its distance to the second best.

Source: Tang et al. 2025, "Optimizing Language Models for Inference Time Objectives using RL",
    arXiv:2503.19595.
Formula: A_i = (s_(1) - s_(2)) / (std_g + eps) for the best answer of g, 0 for the others
Use: when an answer counts as solved if any of k samples is right.
Shape letters: N trajectories in the batch, G prompts (groups).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, register_estimator
from hybridrl.algorithms.groups import centre, check_rewards, group_max, group_size, group_std


@register_estimator("grpo_passk")
@dataclass(frozen=True, kw_only=True, slots=True)
class GRPOPassK:
    """The margin of the best answer over the second best; 0 in a tie, a flat group or a group of one."""

    scale_by_std: bool = True
    """Divide by the group's unbiased (n-1) std."""

    eps: float = 1e-6
    """Added to the std, in units of reward."""

    needs: ClassVar[frozenset[Column]] = frozenset()
    min_group_size: ClassVar[int] = 2

    def __call__(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        """The advantages, [N]."""
        check_rewards(reward_N, group_N)
        best_N = group_max(reward_N, group_N)
        # In a tie every best answer has another one as good, and a margin of 0.
        rest_N = torch.where(reward_N == best_N, -torch.inf, reward_N)
        second_N = torch.where(
            self._is_shared(reward_N == best_N, group_N), best_N, group_max(rest_N, group_N)
        )
        leads_N = (reward_N == best_N) & (group_size(group_N, reward_N.dtype) > 1)
        advantage_N = torch.where(leads_N, best_N - second_N, 0)
        if not self.scale_by_std:
            return advantage_N
        return advantage_N / (group_std(centre(reward_N, group_N), group_N) + self.eps)

    @staticmethod
    def _is_shared(is_best_N: Tensor, group_N: Tensor) -> Tensor:
        return torch.bincount(group_N, is_best_N.double())[group_N] > 1
