"""Hierarchical GRPO: every role of an episode is compared with its peers, within the episode or across the
group.

Source: no paper; the scheme of prime-rl for proposers and solvers.
Formula: A_i = s_i - mean over its peers; peers: same role in the same episode, or same role in the whole
    group
Use: a proposer writes a task and several solvers try it: solvers are compared per task, proposers across
    tasks.
Shape letters: N trajectories in the batch, P sets of peers.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, register_estimator
from hybridrl.algorithms.groups import centre, check_rewards


@register_estimator("hierarchical_grpo")
@dataclass(frozen=True, kw_only=True, slots=True)
class HierarchicalGRPO:
    """Reward minus the mean of its peers; 0 for a trajectory without peers."""

    episode_agents: tuple[int, ...] = ()
    """Roles that are compared within one episode; the others are compared across their group."""

    needs: ClassVar[frozenset[Column]] = frozenset({"agent", "episode"})
    min_group_size: ClassVar[int] = 2

    def __call__(self, reward_N: Tensor, group_N: Tensor, agent_N: Tensor, episode_N: Tensor) -> Tensor:
        """The advantages, [N].

        Args:
            episode_N: number of each episode, unique within its group only.
        """
        check_rewards(reward_N, group_N)
        within_N = torch.isin(
            agent_N, torch.tensor(self.episode_agents, dtype=agent_N.dtype, device=agent_N.device)
        )
        place_N = torch.where(within_N, episode_N, -1)
        _, peers_N = torch.unique(torch.stack([group_N, agent_N, place_N], 1), dim=0, return_inverse=True)
        return centre(reward_N, peers_N)
