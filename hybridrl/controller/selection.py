"""Which groups carry a learning signal, and the metrics of a step's selection among sampled groups.

Shape letters: N trajectories.
"""

from collections.abc import Sequence

import torch

from hybridrl.algorithms.sampling import informative, within_difficulty
from hybridrl.config.schema import DynamicSamplingConfig
from hybridrl.types import Group, mean


def has_signal(group: Group, dynamic: DynamicSamplingConfig) -> bool:
    """Whether the rewards of the group's answers differ and the share of solved ones is in the range."""
    reward_N = torch.tensor([t.reward for t in group.trajectories], dtype=torch.float64)
    one_group_N = torch.zeros(len(reward_N), dtype=torch.int64)
    inside_N = within_difficulty(
        reward_N,
        one_group_N,
        lowest=dynamic.lowest,
        highest=dynamic.highest,
        solved_above=dynamic.solved_above,
    )
    return bool((informative(reward_N, one_group_N) & inside_N).all())


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
