"""Step-REINFORCE: discounted returns over the turns of an agent, normalised over the turns of its group.

Source: ROLL, agentic pipeline, "step_reinforce".
Formula: R_k = r_k + discount R_{k+1} over turns; A = (R_k - mean) / (std + eps) over all turns of the group,
    or of the batch
Use: environments that reward single turns; the outcome reward counts for the last turn.
Shape letters: T packed tokens held here, N trajectories of the batch, K turns at most in a trajectory.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hybridrl.algorithms.base import Advantage, Column, Reduce, Tokens, register_estimator
from hybridrl.algorithms.groups import check_rewards
from hybridrl.algorithms.sequences import at_last_token, masked
from hybridrl.algorithms.turns import gather_turns, normalise_turns


@register_estimator("step_reinforce")
@dataclass(frozen=True, kw_only=True, slots=True)
class StepReinforce:
    """The normalised return of the turn that a token belongs to."""

    discount: float = 1.0
    """Discount per turn, in (0, 1]."""

    over: Literal["group", "batch"] = "group"
    """Turns that are normalised together: those of a group, or of the batch."""

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
        turns = gather_turns(
            tokens, turn_T, anchor_T, turn_reward_T + at_last_token(reward_N, tokens), reduce
        )
        peers_NK = group_N.unsqueeze(1).expand_as(turns.anchor_NK)
        peers_NK = peers_NK if self.over == "group" else torch.zeros_like(peers_NK)
        turn_NK = normalise_turns(
            turns, turns.returns(self.discount), peers_NK.unsqueeze(-1), scale_by_std=True, eps=self.eps
        )
        return Advantage(masked(turn_NK[tokens.seq_T, turn_T], tokens))
