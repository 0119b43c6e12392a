"""GAE: advantages from a value function, with VAPO's decoupled and length-adaptive lambda.

Source: Schulman et al. 2015, arXiv:1506.02438; decoupled and adaptive lambda: VAPO, arXiv:2504.05118
Formula: d_t = r_t + discount V_{t+1} - V_t; A_t = d_t + discount lambda A_{t+1}; return = A (with
    value_lambda) + V
Use: PPO with a critic; long answers need adaptive lambda and value_lambda = 1.
Shape letters: T packed tokens held here, S trajectories.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Advantage, Column, Reduce, Tokens, register_estimator
from hybridrl.algorithms.sequences import discounted_sum, masked, next_token, sequence_length, whiten


@register_estimator("gae")
@dataclass(frozen=True, kw_only=True, slots=True)
class GAE:
    """Exponentially weighted temporal differences. Tool and observation tokens are skipped."""

    discount: float = 1.0
    """Discount per trained token, in (0, 1]."""

    policy_lambda: float = 1.0
    """lambda of the advantage, in [0, 1]."""

    value_lambda: float | None = None
    """lambda of the returns that the value function is trained on; None: policy_lambda. 1 in VAPO."""

    adaptive_lambda: float | None = None
    """alpha of lambda = 1 - 1 / (alpha * trained tokens), at least 0, which replaces policy_lambda; 0.05 in
    VAPO; None: lambda is fixed."""

    whiten: bool = True
    """Whiten the advantages over all trained tokens of the batch."""

    eps: float = 1e-8
    """Added to the variance of whitening, under the root."""

    bessel: bool = True
    """Divide by n-1 in the variance of whitening."""

    needs: ClassVar[frozenset[Column]] = frozenset({"value", "token_reward"})

    def __post_init__(self) -> None:
        for name in ("discount", "policy_lambda", "value_lambda"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} = {value} is not in [0, 1]")

    def __call__(
        self,
        reward_N: Tensor,
        group_N: Tensor,
        tokens: Tokens,
        reduce: Reduce,
        value_T: Tensor,
        token_reward_T: Tensor,
    ) -> Advantage:
        """*Collective* if it whitens. The returns are those before whitening."""
        value_T = masked(value_T, tokens)
        difference_T = token_reward_T + self.discount * next_token(value_T, tokens) - value_T
        advantage_T = discounted_sum(
            difference_T, self.discount * self._policy_lambda(value_T, tokens), tokens
        )
        target_T = advantage_T
        if self.value_lambda is not None or self.adaptive_lambda is not None:
            own = self.policy_lambda if self.value_lambda is None else self.value_lambda
            target_T = discounted_sum(difference_T, self.discount * own, tokens)
        if self.whiten:
            advantage_T = whiten(advantage_T, tokens.mask_T, reduce, eps=self.eps, bessel=self.bessel)
        return Advantage(masked(advantage_T, tokens), masked(target_T + value_T, tokens))

    def _policy_lambda(self, value_T: Tensor, tokens: Tokens) -> Tensor:
        """lambda of each token, [T], constant within a trajectory."""
        if self.adaptive_lambda is None:
            return torch.full_like(value_T, self.policy_lambda)
        length_S = sequence_length(tokens, value_T.dtype).clamp(min=1)
        return (1 - 1 / (self.adaptive_lambda * length_S)).clamp(min=0)[tokens.seq_T]
