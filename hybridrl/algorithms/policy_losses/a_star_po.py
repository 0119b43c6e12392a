"""A*-PO: regression of the log ratio to the reference onto the optimal advantage.

Source: Brantley et al. 2025, "Accelerating RL for LLM Reasoning with Optimal Advantage Regression",
    arXiv:2505.20686
Formula: L of an answer = (beta sum of (logp - ref_logp) - A)^2
Use: with estimator a_star_po; one sample per prompt, no ratio, no clip.
Shape letters: T packed tokens, S trajectories.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.sequences import sequence_mean, sequence_sum, spread


@register_policy_loss("a_star_po")
@dataclass(frozen=True, kw_only=True, slots=True)
class AStarPOLoss:
    """A least-squares loss on whole answers."""

    beta: float = 1e-3
    """Reward per nat of divergence from the reference."""

    needs: ClassVar[frozenset[Column]] = frozenset({"ref_logp"})
    aggregates: ClassVar[frozenset[str]] = frozenset({"seq_mean_token_sum"})

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, ref_logp_T: Tensor) -> TokenLoss:
        regularised_S = self.beta * sequence_sum(logp_T - ref_logp_T, tokens)
        return TokenLoss(spread((regularised_S - sequence_mean(advantage_T, tokens)).square(), tokens))
