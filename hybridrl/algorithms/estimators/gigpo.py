"""GiGPO: groups of answers for the outcome, and groups of equal environment states for the single turn.

Source: Feng et al. 2025, "Group-in-Group Policy Optimization", arXiv:2505.10978
Formula: A = episode_weight norm_g(s_i) + turn_weight norm_anchor(R_k), R_k = r_k + discount R_{k+1} over
    turns; the rewards r_k of an episode add up to s_i, and what no turn was given counts for the last one
Use: agents that reach the same state in several trajectories of a group; states are compared within a group
    only.
Shape letters: T packed tokens held here, N trajectories of the batch, K turns of the batch in an [N, K/N]
grid.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Advantage, Column, Reduce, Tokens, register_estimator
from hybridrl.algorithms.estimators.grpo import GRPO
from hybridrl.algorithms.groups import check_rewards
from hybridrl.algorithms.sequences import masked
from hybridrl.algorithms.turns import gather_turns, normalise_turns, step_rewards


@register_estimator("gigpo")
@dataclass(frozen=True, kw_only=True, slots=True)
class GiGPO:
    """Group-normalised outcome plus anchor-normalised return of the turn."""

    discount: float = 1.0
    """Discount per turn, in (0, 1]."""

    episode_weight: float = 1.0
    turn_weight: float = 1.0
    scale_by_std: bool = True
    """Divide both terms by their unbiased (n-1) std."""

    eps: float = 1e-6
    """Added to a std; a smaller std gives 0."""

    needs: ClassVar[frozenset[Column]] = frozenset({"turn", "anchor", "turn_reward"})
    min_group_size: ClassVar[int] = 2

    def __call__(
        self,
        reward_N: Tensor,
        group_N: Tensor,
        tokens: Tokens,
        reduce: Reduce,
        turn_T: Tensor,
        anchor_T: Tensor,
        turn_reward_T: Tensor,
    ) -> Advantage:
        """*Collective*. The advantages, [T], are the same at all tokens of a turn; a state that is reached
        once, or always with the same return, adds 0."""
        check_rewards(reward_N, group_N)
        reward_T = step_rewards(reward_N, turn_reward_T, tokens)
        turns = gather_turns(tokens, turn_T, anchor_T, reward_T, reduce)
        outcome_N = GRPO(scale_by_std=self.scale_by_std, eps=self.eps)(reward_N, group_N)
        peers = torch.stack([group_N.unsqueeze(1).expand_as(turns.anchor_NK), turns.anchor_NK], -1)
        turn_NK = normalise_turns(
            turns, turns.returns(self.discount), peers, scale_by_std=self.scale_by_std, eps=self.eps
        )
        advantage_T = (
            self.episode_weight * outcome_N[tokens.seq_T] + self.turn_weight * turn_NK[tokens.seq_T, turn_T]
        )
        return Advantage(masked(advantage_T, tokens))
