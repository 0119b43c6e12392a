"""Statistics over the answers to one prompt. Groups may have any size, any order, and missing numbers.

Shape letters: N trajectories, G prompts (groups).
"""

import torch
from torch import Tensor


def check_rewards(reward_N: Tensor, group_N: Tensor) -> None:
    """
    Raises:
        ValueError: lengths differ, rewards are not of a floating-point type, a group number is negative, or a
            reward is not finite.
    """
    if reward_N.shape != group_N.shape or reward_N.dim() != 1:
        raise ValueError(
            f"rewards of shape {tuple(reward_N.shape)} for groups of shape {tuple(group_N.shape)}"
        )
    if not reward_N.is_floating_point():
        raise ValueError(f"rewards of {reward_N.dtype}, whose means would be cut off: pass reward_N.float()")
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
    """Number of members of the group of each trajectory, [N]."""
    return group_sum(torch.ones(len(group_N), dtype=dtype, device=group_N.device), group_N)


def group_min(value_N: Tensor, group_N: Tensor) -> Tensor:
    """Smallest value in the group of each trajectory, [N]."""
    num_groups = int(group_N.max()) + 1 if len(group_N) else 0
    least_G = value_N.new_full((num_groups,), torch.inf).scatter_reduce(0, group_N, value_N, "amin")
    return least_G[group_N]


def group_max(value_N: Tensor, group_N: Tensor) -> Tensor:
    """Largest value in the group of each trajectory, [N]."""
    return -group_min(-value_N, group_N)


def centre(value_N: Tensor, group_N: Tensor) -> Tensor:
    """Value minus its group's mean, [N]; exactly 0 in a group whose values are all equal."""
    # The mean of equal floats may differ from them; distances from the smallest member do not have that
    # problem.
    above_N = value_N - group_min(value_N, group_N)
    return above_N - group_sum(above_N, group_N) / group_size(group_N, value_N.dtype)


def group_rank(value_N: Tensor, group_N: Tensor) -> Tensor:
    """Ascending rank of each value in its group, float64 [N], up to a constant of the group; equal values
    share the mean of their ranks.
    """
    _, order_N = torch.unique(value_N, return_inverse=True)
    cell_N = group_N * (len(value_N) + 1) + order_N
    _, cell_N, count_C = torch.unique(cell_N, return_inverse=True, return_counts=True)
    return (count_C.cumsum(0) - 0.5 * count_C.double())[cell_N]


def group_std(centred_N: Tensor, group_N: Tensor, *, bessel: bool = True) -> Tensor:
    """Standard deviation of the group of each trajectory, [N], from centred values; 0 in a group of one.

    Args:
        bessel: divide by n-1, else by n.
    """
    size_N = group_size(group_N, centred_N.dtype)
    return (group_sum(centred_N.square(), group_N) / (size_N - int(bessel)).clamp(min=1)).sqrt()


def others_std(value_N: Tensor, group_N: Tensor, *, bessel: bool = True) -> Tensor:
    """Standard deviation of each trajectory's group without itself, [N]; 0 if fewer than two are left."""
    size_N = group_size(group_N, value_N.dtype)
    num_others_N = (size_N - 1).clamp(min=1)
    centred_N = centre(value_N, group_N)
    # In centred units the others' mean is -d / (n - 1); their squares around it sum to S - d^2 - d^2 / (n -
    # 1).
    squares_N = group_sum(centred_N.square(), group_N) - centred_N.square() * size_N / num_others_N
    scale_N = group_max(centred_N.square(), group_N)
    # For equal values, what is left after cancellation is rounding, not spread.
    squares_N = torch.where(squares_N > 8 * torch.finfo(value_N.dtype).eps * size_N * scale_N, squares_N, 0)
    return (squares_N / (num_others_N - int(bessel)).clamp(min=1)).sqrt()


def batch_std(value_N: Tensor, *, bessel: bool = True) -> Tensor:
    """Standard deviation of all values, a scalar; 0 for a single value."""
    one_group_N = torch.zeros_like(value_N, dtype=torch.int64)
    return group_std(centre(value_N, one_group_N), one_group_N, bessel=bessel)[0]
