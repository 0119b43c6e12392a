"""OTB: at every position the baseline that minimises the variance of the gradient there.

Source: the variance-optimal baseline, with the expected squared norm of the logit gradient as weight; verl,
    "algo/otb".
Formula: W_t = sum over u <= t of (1 - 2 p_u + sum_v p_v^2) w_u^2; B_t = sum_i G_it W_it / (sum_i W_it + eps)
    over g; A_t = G_t - B_t
Use: token-level baselines without a value function; p and sum_v p_v^2 are of the policy before the update.
Shape letters: T packed tokens held here, N trajectories of the batch, G prompts, P positions among trained
tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Advantage, Column, Reduce, Tokens, register_estimator
from hybridrl.algorithms.ratios import log_ratio
from hybridrl.algorithms.sequences import discounted_sum, masked, position, running_sum


@register_estimator("optimal_token_baseline")
@dataclass(frozen=True, kw_only=True, slots=True)
class OptimalTokenBaseline:
    """Return minus the weighted mean return of the group at the same position."""

    discount: float = 1.0
    """Discount per trained token, in (0, 1]."""

    importance_cap: float | None = None
    """Weigh by the squared ratio of trainer to engine probability, with the ratio capped here; None: do not
    weigh."""

    zero_tail: bool = True
    """Use no baseline at positions that only the longest answer of a group has: it would cancel the
    return."""

    eps: float = 1e-8
    """Added to the summed weight."""

    min_group_size: ClassVar[int] = 2

    @property
    def needs(self) -> frozenset[Column]:
        engine = frozenset() if self.importance_cap is None else frozenset({"rollout_logp"})
        return engine | {"old_logp", "old_collision", "token_reward"}

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
    ) -> Advantage:
        """*Collective*. The advantages are 0 for the only answer to a prompt."""
        return_T = discounted_sum(token_reward_T, self.discount, tokens)
        weight_T = running_sum(self._energy(old_logp_T, old_collision_T, rollout_logp_T), tokens)
        position_T = position(tokens)
        longest = reduce.max((position_T + 1).max() if len(position_T) else position_T.new_zeros(()))
        cell_T = group_N[tokens.seq_T] * longest + position_T
        num_cells = (int(group_N.max()) + 1) * int(longest)

        def per_cell(value_T: Tensor) -> Tensor:
            total_C = value_T.new_zeros(num_cells).index_add(0, cell_T, masked(value_T, tokens))
            return reduce.sum(total_C)[cell_T]

        baseline_T = per_cell(return_T * weight_T) / (per_cell(weight_T) + self.eps)
        answers_T = per_cell(torch.ones_like(weight_T))
        alone_T = torch.bincount(group_N)[group_N][tokens.seq_T] == 1
        if self.zero_tail:
            baseline_T = torch.where(answers_T > 1, baseline_T, 0)
        return Advantage(masked(torch.where(alone_T, 0, return_T - baseline_T), tokens))

    def _energy(self, old_logp_T: Tensor, old_collision_T: Tensor, rollout_logp_T: Tensor | None) -> Tensor:
        """Squared norm of the gradient of logp with respect to the logits, times the squared importance
        weight, [T]."""
        energy_T = 1 - 2 * old_logp_T.exp() + old_collision_T
        if rollout_logp_T is None:
            return energy_T
        return energy_T * log_ratio(old_logp_T, rollout_logp_T).exp().clamp(max=self.importance_cap).square()
