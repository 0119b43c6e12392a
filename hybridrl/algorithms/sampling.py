"""Chooses the groups to train on: pure functions of scalars.

Shape letters: N trajectories, G prompts (groups).
"""

from torch import Tensor

from hybridrl.algorithms.groups import check_rewards, group_max, group_min, group_size, group_sum


def informative(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """A mask, bool [N]: trajectories of groups whose rewards are not all equal; a group of one counts as all
    equal.

    Source: dynamic sampling, DAPO, arXiv:2503.14476
    """
    check_rewards(reward_N, group_N)
    return group_max(reward_N, group_N) > group_min(reward_N, group_N)


def within_difficulty(
    reward_N: Tensor, group_N: Tensor, *, lowest: float, highest: float, solved_above: float = 0.0
) -> Tensor:
    """A mask, bool [N]: trajectories of groups whose share of solved answers is in [lowest, highest].

    Source: the accuracy filter of PRIME, arXiv:2502.01456, appendix, with 0.2 and 0.8.
    """
    check_rewards(reward_N, group_N)
    solved_N = (reward_N > solved_above).to(reward_N.dtype)
    share_N = group_sum(solved_N, group_N) / group_size(group_N, reward_N.dtype)
    return (share_N >= lowest) & (share_N <= highest)
