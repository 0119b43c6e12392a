"""REINFORCE++-baseline: group-centred rewards, whitened over all trained tokens of the batch.

Source: Hu 2025, "REINFORCE++", arXiv:2501.03262, the variant with a group-mean baseline.
Formula: d_i = s_i - mean_g; A = (d - mean) / sqrt(var + eps) over all trained tokens, var with n-1
Use: several answers per prompt where group standard deviations are too noisy to divide by; KL as k2 in the
    loss.
Shape letters: N trajectories in the batch.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, OneRank, register_estimator
from hybridrl.algorithms.groups import centre, check_rewards
from hybridrl.algorithms.sequences import whiten


@register_estimator("reinforce_plus_plus_baseline")
@dataclass(frozen=True, kw_only=True, slots=True)
class ReinforcePlusPlusBaseline:
    """Reward minus its group's mean, whitened over the global batch."""

    eps: float = 1e-8
    """Added to the variance, under the root."""

    bessel: bool = True
    """Divide by n-1 in the variance."""

    needs: ClassVar[frozenset[Column]] = frozenset({"length"})
    min_group_size: ClassVar[int] = 2

    def __call__(self, reward_N: Tensor, group_N: Tensor, length_N: Tensor) -> Tensor:
        """The advantages, [N]. Their mean over tokens is 0, so those of a flat group are near 0 but not
        exactly 0 when lengths and rewards are related."""
        check_rewards(reward_N, group_N)
        return whiten(centre(reward_N, group_N), length_N, OneRank(), eps=self.eps, bessel=self.bessel)
