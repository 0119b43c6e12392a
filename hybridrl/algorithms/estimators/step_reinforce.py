"""Step-REINFORCE: discounted returns over the turns of an agent, normalised over the turns of its group.

Source: ROLL, agentic pipeline, "step_reinforce".
Formula: R_k = r_k + discount R_{k+1} over turns; A = (R_k - mean) / (std + eps) over all turns of the group,
    over those of the same number, or over the batch; the rewards r_k of an episode add up to its reward, and
    what no turn was given counts for the last one
Use: environments that reward single turns. over: turn where early turns earn other rewards than late ones:
    one baseline for all turns would then punish the late ones.
Shape letters: T packed tokens held here, N trajectories of the batch, K turns at most in a trajectory.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hybridrl.algorithms.base import Advantage, Column, Reduce, Tokens, register_estimator
from hybridrl.algorithms.groups import check_rewards
from hybridrl.algorithms.sequences import masked
from hybridrl.algorithms.turns import Turns, gather_turns, normalise_turns, step_rewards


@register_estimator("step_reinforce")
@dataclass(frozen=True, kw_only=True, slots=True)
class StepReinforce:
    """The normalised return of the turn that a token belongs to."""

    discount: float = 1.0
    """Discount per turn, in (0, 1]."""

    over: Literal["group", "turn", "batch"] = "group"
    """Turns that are normalised together: those of a group, those of the same number in a group, or those of
    the batch."""

    eps: float = 1e-6
    """Added to the std; a smaller std gives 0."""

    needs: ClassVar[frozenset[Column]] = frozenset({"turn", "anchor", "turn_reward"})

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
        """*Collective*. The advantages, [T], are the same at all tokens of a turn."""
        check_rewards(reward_N, group_N)
        reward_T = step_rewards(reward_N, turn_reward_T, tokens)
        turns = gather_turns(tokens, turn_T, anchor_T, reward_T, reduce)
        turn_NK = normalise_turns(
            turns,
            turns.returns(self.discount),
            self._peers(turns, group_N),
            scale_by_std=True,
            eps=self.eps,
        )
        return Advantage(masked(turn_NK[tokens.seq_T, turn_T], tokens))

    def _peers(self, turns: Turns, group_N: Tensor) -> Tensor:
        """Equal entries for turns that are normalised together, [N, K, 2]."""
        group_NK = group_N.unsqueeze(1).expand_as(turns.anchor_NK)
        turn_NK = torch.arange(group_NK.shape[1], device=group_N.device).expand_as(group_NK)
        zero_NK = torch.zeros_like(group_NK)
        first_NK = zero_NK if self.over == "batch" else group_NK
        return torch.stack([first_NK, turn_NK if self.over == "turn" else zero_NK], -1)
