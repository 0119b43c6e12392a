"""On-policy distillation in policy-gradient form: a token's advantage is the teacher's log-probability minus
the student's.

Source: Lu et al. 2025, "On-Policy Distillation" (Thinking Machines); MOPD, arXiv:2601.02780.
Formula: A_t = coefficient (teacher_logp - old_logp) + outcome_weight (s_i - mean_g) / (std_g + 1e-6)
Use: to move a teacher's behaviour into a student on the student's own answers, with or without a reward in
    addition.
Shape letters: T packed tokens held here, N trajectories of the batch.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Advantage, Column, Reduce, Tokens, register_estimator
from hybridrl.algorithms.estimators.grpo import GRPO
from hybridrl.algorithms.groups import check_rewards
from hybridrl.algorithms.sequences import masked


@register_estimator("distillation")
@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """Negative of the sampled reverse KL divergence to the teacher at each token."""

    coefficient: float = 1.0
    """Weight of the teacher's term."""

    outcome_weight: float = 0.0
    """Weight of a GRPO advantage from the reward; 0: the reward is not used."""

    needs: ClassVar[frozenset[Column]] = frozenset({"teacher_logp", "old_logp"})

    def __call__(
        self,
        reward_N: Tensor,
        group_N: Tensor,
        tokens: Tokens,
        reduce: Reduce,
        teacher_logp_T: Tensor,
        old_logp_T: Tensor,
    ) -> Advantage:
        """The advantages, [T]."""
        check_rewards(reward_N, group_N)
        advantage_T = self.coefficient * (teacher_logp_T - old_logp_T)
        if self.outcome_weight:
            advantage_T = advantage_T + self.outcome_weight * GRPO()(reward_N, group_N)[tokens.seq_T]
        return Advantage(masked(advantage_T, tokens))
