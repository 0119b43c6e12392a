"""Rank: the rank of an answer in its group, whatever the distances between rewards.

Source: fitness shaping of Wierstra et al. 2014, "Natural Evolution Strategies", arXiv:1106.4487.
Formula: A_i = (number of answers of g below s_i - number above it) / (n - 1), in [-1, 1]
Use: rewards whose order can be trusted and whose size cannot: judges, preference models.
Shape letters: N trajectories in the batch.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_estimator
from hybridrl.algorithms.groups import check_rewards, group_size


@register_estimator("rank")
@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """Centred rank of each reward in its group; ties share their rank."""

    needs: ClassVar[frozenset[Column]] = frozenset()
    min_group_size: ClassVar[int] = 2

    def __call__(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        """The advantages, [N]; they sum to 0 within each group, and are exactly 0 in a flat group and in a
        group of one."""
        check_rewards(reward_N, group_N)
        peer_NN = group_N.unsqueeze(1) == group_N
        balance_NN = (reward_N.unsqueeze(1) - reward_N).sign() * peer_NN
        return balance_NN.sum(1) / (group_size(group_N, reward_N.dtype) - 1).clamp(min=1)
