"""A*-PO: the soft value of a prompt, estimated once from the reference policy, is the baseline.

Source: Brantley et al. 2025, "Accelerating RL for LLM Reasoning with Optimal Advantage Regression",
    arXiv:2505.20686
Formula: A_i = s_i - v_star, v_star = beta log(mean over reference answers of exp(s / beta))
Use: with loss a_star_po and one sample per prompt; v_star is computed before the run (`soft_value`).
Shape letters: N trajectories in the batch, G prompts (groups).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, register_estimator
from hybridrl.algorithms.groups import check_rewards, group_max, group_size, group_sum


@register_estimator("a_star_po")
@dataclass(frozen=True, kw_only=True, slots=True)
class AStarPO:
    """Reward minus the soft value of its prompt."""

    needs: ClassVar[frozenset[Column]] = frozenset({"v_star"})

    def __call__(self, reward_N: Tensor, group_N: Tensor, v_star_N: Tensor) -> Tensor:
        """The advantages, [N]."""
        check_rewards(reward_N, group_N)
        return reward_N - v_star_N


def soft_value(reward_N: Tensor, group_N: Tensor, beta: float) -> Tensor:
    """Soft value of each prompt from answers of the reference policy, repeated for each of its answers, [N].

    Args:
        beta: temperature, in units of reward: 0.5 in the paper; a small one approaches the best reward, a
            large one the mean.
    """
    check_rewards(reward_N, group_N)
    best_N = group_max(reward_N, group_N)
    weight_N = torch.exp((reward_N - best_N) / beta)
    mean_N = group_sum(weight_N, group_N) / group_size(group_N, reward_N.dtype)
    return best_N + beta * mean_N.log()
