"""DRO: a quadratic penalty in place of ratios, for data of any origin.

Source: Richemond et al. 2024, "Offline Regularised RL for LLM Alignment", arXiv:2405.19107
Formula: L of an answer = -(A sum of logp - beta / 2 (sum of log r)^2); over = token: sum of (log r)^2
Use: off-policy or offline data, with an advantage over a learned baseline or a group baseline.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.sequences import squared_log_ratio


@register_policy_loss("dro")
@dataclass(frozen=True, kw_only=True, slots=True)
class DRO:
    """REINFORCE held near the policy before the update."""

    beta: float
    """Weight of the squared log ratio."""

    over: Literal["answer", "token"] = "answer"
    """What is squared: the log ratio of the whole answer as in the paper, or of each token as in verl."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        square_T = squared_log_ratio(logp_T, old_logp_T, tokens, self.over)
        return TokenLoss(-advantage_T * logp_T + self.beta / 2 * square_T)
