"""Mirror descent of Kimi k1.5: the policy gradient with the squared log ratio of the whole answer.

Source: Kimi team 2025, "Kimi k1.5", arXiv:2501.12599, section 2.3.2
Formula: L of an answer = -A sum of logp + tau / 2 (sum of log r)^2, A = s - mean over the group; over =
    token: sum of (log r)^2
Use: with estimator dr_grpo; several optimizer steps per batch without a clip.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.sequences import squared_log_ratio


@register_policy_loss("kimi_k15")
@dataclass(frozen=True, kw_only=True, slots=True)
class KimiK15:
    """REINFORCE held near the policy before the update."""

    tau: float = 0.1
    """Weight of the squared log ratio."""

    over: Literal["answer", "token"] = "answer"
    """What is squared: the log ratio of the whole answer as in the paper, or of each token as in ROLL."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        square_T = squared_log_ratio(logp_T, old_logp_T, tokens, self.over)
        return TokenLoss(-advantage_T * logp_T + self.tau / 2 * square_T)
