"""Chooses the groups to train on: pure functions of scalars.

Shape letters: N trajectories, G prompts (groups).
"""

import math
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicSampling:
    """Decides how many further prompts to sample until enough groups carry a signal."""

    wanted: int
    """Number of groups of a batch."""

    max_rounds: int = 10
    """Largest number of rounds of sampling for one batch."""

    def next_prompts(self, kept: int, sampled: int, rounds: int) -> int:
        """Number of prompts to sample now, which is more than are missing if earlier rounds kept few.

        It is 0 when the batch is full, or after the last round.

        Args:
            kept, sampled: numbers of groups so far.
            rounds: number of rounds so far.
        """
        missing = self.wanted - kept
        if missing <= 0 or rounds >= self.max_rounds:
            return 0
        share = kept / sampled if kept else 0.5
        return min(math.ceil(missing / max(share, 0.1)), self.wanted)
