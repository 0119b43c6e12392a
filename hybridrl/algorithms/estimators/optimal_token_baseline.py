"""OTB: at every position the baseline that minimises the variance of the gradient there.

Source: Li et al. 2026, "The Optimal Token Baseline", arXiv:2602.07078: the variance-optimal baseline, with
    the expected squared norm of the logit gradient as weight; verl, "algo/otb", whose
    tir_optimal_token_baseline this is for several turns, too; by turns: the authors' turn_optimal_baseline.
Formula: W_t = sum over u <= t of (1 - 2 p_u + sum_v p_v^2) w_u^2; B_t = sum_i G_it W_it / (sum_i W_it + eps)
    over g; A_t = G_t - B_t; with level = turn: t and u are turns, W and G those of all tokens of the turn
Use: token-level baselines without a value function; p and sum_v p_v^2 are of the policy before the update.
Shape letters: T packed tokens held here, N trajectories of the batch, G prompts, P positions among trained
tokens, K turns of the longest trajectory.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hybridrl.algorithms.base import Advantage, Column, Reduce, Tokens, register_estimator
from hybridrl.algorithms.ratios import log_ratio
from hybridrl.algorithms.sequences import discounted_sum, masked, position, running_sum
from hybridrl.algorithms.turns import first_of_turn, gather_turns, step_rewards


@register_estimator("optimal_token_baseline")
@dataclass(frozen=True, kw_only=True, slots=True)
class OptimalTokenBaseline:
    """Return minus the weighted mean return of the group at the same position."""

    level: Literal["token", "turn"] = "token"
    """Answers of a group are compared at equal positions among their trained tokens, or at equal turns."""

    discount: float = 1.0
    """Discount per trained token, or per turn, in (0, 1]."""

    importance_cap: float | None = None
    """Weigh by the squared ratio of trainer to engine probability, with the ratio capped here; None: do not
    weigh."""

    zero_tail: bool = True
    """Use no baseline at positions or turns that only the longest answer of a group has: it would cancel the
    return."""

    eps: float = 1e-8
    """Added to the summed weight."""

    min_group_size: ClassVar[int] = 2

    @property
    def needs(self) -> frozenset[Column]:
        engine = frozenset() if self.importance_cap is None else frozenset({"rollout_logp"})
        turns = frozenset({"turn", "turn_reward"}) if self.level == "turn" else frozenset()
        return engine | turns | {"old_logp", "old_collision", "token_reward"}

    def __call__(
        self,
        reward_N: Tensor,
        group_N: Tensor,
        tokens: Tokens,
        reduce: Reduce,
        old_logp_T: Tensor,
        old_collision_T: Tensor,
        token_reward_T: Tensor,
        rollout_logp_T: Tensor | None = None,
        turn_T: Tensor | None = None,
        turn_reward_T: Tensor | None = None,
    ) -> Advantage:
        """*Collective*. The advantages are 0 for the only answer to a prompt."""
        energy_T = self._energy(old_logp_T, old_collision_T, rollout_logp_T)
        if turn_T is None or turn_reward_T is None:
            return_T = discounted_sum(token_reward_T, self.discount, tokens)
            weight_T = running_sum(energy_T, tokens)
            position_T = position(tokens)
            counted_T = tokens.mask_T
        else:
            reward_T = token_reward_T + step_rewards(torch.zeros_like(reward_N), turn_reward_T, tokens)
            return_T, weight_T = self._by_turn(tokens, turn_T, reward_T, energy_T, reduce)
            position_T, counted_T = turn_T, tokens.mask_T & first_of_turn(turn_T, tokens)
        baseline_T = self._baseline(return_T, weight_T, position_T, counted_T, group_N[tokens.seq_T], reduce)
        alone_T = torch.bincount(group_N)[group_N][tokens.seq_T] == 1
        return Advantage(masked(torch.where(alone_T, 0, return_T - baseline_T), tokens))

    def _by_turn(
        self, tokens: Tokens, turn_T: Tensor, reward_T: Tensor, energy_T: Tensor, reduce: Reduce
    ) -> tuple[Tensor, Tensor]:
        """Return and weight of the turn of each token, [T]."""
        rewards = gather_turns(tokens, turn_T, torch.zeros_like(turn_T), reward_T, reduce)
        energies = gather_turns(tokens, turn_T, torch.zeros_like(turn_T), energy_T, reduce)
        return_NK, weight_NK = rewards.returns(self.discount), energies.reward_NK.cumsum(1)
        return return_NK[tokens.seq_T, turn_T], weight_NK[tokens.seq_T, turn_T]

    def _baseline(
        self,
        return_T: Tensor,
        weight_T: Tensor,
        position_T: Tensor,
        counted_T: Tensor,
        group_T: Tensor,
        reduce: Reduce,
    ) -> Tensor:
        """The weighted mean return of the group at the position of each token, over the tokens that are
        counted, [T]."""
        num_groups = reduce.max(group_T.max() + 1 if len(group_T) else group_T.new_zeros(()))
        longest = reduce.max((position_T + 1).max() if len(position_T) else position_T.new_zeros(()))
        cell_T, num_cells = group_T * longest + position_T, int(num_groups * longest)

        def per_cell(value_T: Tensor) -> Tensor:
            counted = torch.where(counted_T, value_T, 0)
            return reduce.sum(value_T.new_zeros(num_cells).index_add(0, cell_T, counted))[cell_T]

        baseline_T = per_cell(return_T * weight_T) / (per_cell(weight_T) + self.eps)
        if self.zero_tail:
            baseline_T = torch.where(per_cell(torch.ones_like(weight_T)) > 1, baseline_T, 0)
        return baseline_T

    def _energy(self, old_logp_T: Tensor, old_collision_T: Tensor, rollout_logp_T: Tensor | None) -> Tensor:
        """Squared norm of the gradient of logp with respect to the logits, times the squared importance
        weight, [T]."""
        energy_T = 1 - 2 * old_logp_T.exp() + old_collision_T
        if rollout_logp_T is None:
            return energy_T
        return energy_T * log_ratio(old_logp_T, rollout_logp_T).exp().clamp(max=self.importance_cap).square()
