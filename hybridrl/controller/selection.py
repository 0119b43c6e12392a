"""Which groups carry a learning signal, and the metrics of a step's selection among sampled groups.

Shape letters: N trajectories, G groups.
"""

from collections.abc import Sequence

import torch

from hybridrl.algorithms.sampling import informative, within_difficulty
from hybridrl.config.schema import DynamicSamplingConfig
from hybridrl.types import Group, mean


def with_signal(groups: Sequence[Group], dynamic: DynamicSamplingConfig) -> list[bool]:
    """For each group, whether its rewards differ and the share of solved answers is in the range."""
    rewards = [t.reward for group in groups for t in group.trajectories]
    count_G = torch.tensor([len(group.trajectories) for group in groups])
    reward_N = torch.tensor(rewards, dtype=torch.float64)
    group_N = torch.repeat_interleave(torch.arange(len(groups)), count_G)
    inside_N = within_difficulty(
        reward_N,
        group_N,
        lowest=dynamic.lowest,
        highest=dynamic.highest,
        solved_above=dynamic.solved_above,
    )
    of_group_N = informative(reward_N, group_N) & inside_N
    return of_group_N[count_G.cumsum(0) - 1].tolist()


def selection_metrics(flat: Sequence[Group], kept: Sequence[Group]) -> dict[str, float]:
    """Metrics of the groups of a step and the flat ones they replaced: the reward of the kept ones alone says
    little."""
    sampled = [*flat, *kept]
    scores = [float(t.reward or 0.0) for group in sampled for t in group.trajectories]
    return {
        "rollout/prompts_sampled": float(len(sampled)),
        "rollout/kept_share": len(kept) / len(sampled),
        "rollout/sampled_score": mean(scores),
    }
