"""RAE: a running baseline for every role of a multi-agent game.

Source: Liu et al. 2025, "SPIRAL", arXiv:2506.24119
Formula: A_i = s_i - b_role, then b_role <- decay b_role + (1 - decay) s_i, from b = 0
Use: self-play, where the two sides of a game have different expected returns and no group exists.
Shape letters: N trajectories in the batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, register_estimator
from hybridrl.algorithms.groups import check_rewards


@register_estimator("rae")
@dataclass(frozen=True, kw_only=True, slots=True)
class RAE:
    """Reward minus the running mean of its role. It keeps state between steps, which `state_dict` puts into
    the checkpoint."""

    decay: float = 0.95
    """Decay of the running mean per trajectory, in [0, 1)."""

    baseline: dict[int, float] = field(init=False, default_factory=dict)
    needs: ClassVar[frozenset[Column]] = frozenset({"agent"})

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay = {self.decay} is not in [0, 1)")

    def __call__(self, reward_N: Tensor, group_N: Tensor, agent_N: Tensor) -> Tensor:
        """The advantages, [N]; trajectories are scored in order, each before it updates its role's
        baseline."""
        check_rewards(reward_N, group_N)
        advantages = []
        for reward, agent in zip(reward_N.tolist(), agent_N.tolist(), strict=True):
            before = self.baseline.get(agent, 0.0)
            advantages.append(reward - before)
            self.baseline[agent] = self.decay * before + (1 - self.decay) * reward
        return torch.tensor(advantages, dtype=reward_N.dtype, device=reward_N.device)

    def state_dict(self) -> dict[str, float]:
        return {str(agent): value for agent, value in self.baseline.items()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.baseline.clear()
        self.baseline.update({int(agent): value for agent, value in state.items()})
