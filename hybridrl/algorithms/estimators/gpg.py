"""GPG: centred rewards, scaled up by the share of the batch that carries a gradient.

Source: Chu et al. 2025, "GPG: A Simple and Strong RL Baseline", arXiv:2504.02546
Formula: A_i = alpha (s_i - mean_g) / norm, alpha = N / number of informative trajectories
Use: with loss `reinforce`, without dynamic sampling.
Shape letters: N trajectories in the batch, G prompts (groups).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from hybridrl.algorithms.base import Column, register_estimator
from hybridrl.algorithms.groups import centre, check_rewards, group_max, group_min


@register_estimator("gpg")
@dataclass(frozen=True, kw_only=True, slots=True)
class GPG:
    """Reward minus its group's mean, times N / (number of trajectories that count)."""

    count: Literal["informative", "nonzero"] = "informative"
    """informative: trajectories of groups that are not flat, as in the paper; nonzero: trajectories
    whose reward is not 0, which with rewards of -1 and 1 is all of them."""

    norm: float = 1.0
    """Constant divisor."""

    needs: ClassVar[frozenset[Column]] = frozenset()
    min_group_size: ClassVar[int] = 2
    centred: ClassVar[str] = "group"

    def __call__(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        """The advantages, [N]; 0 in a flat group and in a group of one."""
        check_rewards(reward_N, group_N)
        spread_N = group_max(reward_N, group_N) - group_min(reward_N, group_N)
        counted_N = (spread_N if self.count == "informative" else reward_N) != 0
        alpha = len(reward_N) / max(int(counted_N.sum()), 1)
        return centre(reward_N, group_N) * alpha / self.norm
