"""Statistics over the answers to one prompt. Groups may have any size, any order, and missing numbers.

Shape letters: N trajectories, G prompts (groups).
"""

import torch
from torch import Tensor


def check_rewards(reward_N: Tensor, group_N: Tensor) -> None:
    """
    Raises:
        ValueError: lengths differ, a group number is negative, or a reward is not finite.
    """
    if reward_N.shape != group_N.shape or reward_N.dim() != 1:
        raise ValueError(
            f"rewards of shape {tuple(reward_N.shape)} for groups of shape {tuple(group_N.shape)}"
        )
    if (group_N < 0).any():
        raise ValueError(f"negative group at {torch.nonzero(group_N < 0).flatten().tolist()}")
    if not torch.isfinite(reward_N).all():
        raise ValueError(
            f"non-finite reward at {torch.nonzero(~torch.isfinite(reward_N)).flatten().tolist()}"
        )


def group_sum(value_N: Tensor, group_N: Tensor) -> Tensor:
    """Sum over the group of each trajectory, [N]."""
    num_groups = int(group_N.max()) + 1 if len(group_N) else 0
    return value_N.new_zeros(num_groups).index_add(0, group_N, value_N)[group_N]


def group_size(group_N: Tensor, dtype: torch.dtype) -> Tensor:
    """Members of the group of each trajectory, [N]."""
    return group_sum(torch.ones(len(group_N), dtype=dtype, device=group_N.device), group_N)


def group_min(value_N: Tensor, group_N: Tensor) -> Tensor:
    """Smallest value in the group of each trajectory, [N]."""
    num_groups = int(group_N.max()) + 1 if len(group_N) else 0
    least_G = value_N.new_full((num_groups,), torch.inf).scatter_reduce(0, group_N, value_N, "amin")
    return least_G[group_N]


def centre(value_N: Tensor, group_N: Tensor) -> Tensor:
    """Value minus its group's mean, [N]; exactly 0 in a group whose values are all equal."""
    # The mean of equal floats need not equal them; distances from the least member do not have that problem.
    above_N = value_N - group_min(value_N, group_N)
    return above_N - group_sum(above_N, group_N) / group_size(group_N, value_N.dtype)


def group_std(centred_N: Tensor, group_N: Tensor) -> Tensor:
    """Unbiased (n-1) standard deviation of the group of each trajectory, [N], from centred values; 0 in a
    group of one."""
    size_N = group_size(group_N, centred_N.dtype)
    return (group_sum(centred_N.square(), group_N) / (size_N - 1).clamp(min=1)).sqrt()
