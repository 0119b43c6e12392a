"""TOPR: positive examples as in supervised learning, negative ones with a truncated importance weight.

Source: Le Roux et al. 2025, "Tapered Off-Policy REINFORCE", arXiv:2503.14286
Formula: L = -A logp where A > 0, else -sg[min(R, 1)] A logp, R = product of the ratios of the answer
Use: off-policy data with many failures, which would otherwise push the policy anywhere.
Shape letters: T packed tokens, S trajectories.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.sequences import sequence_sum


@register_policy_loss("topr")
@dataclass(frozen=True, kw_only=True, slots=True)
class TOPR:
    """Answers that the policy no longer gives are not pushed down further."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        truncated_S = sequence_sum(logp_T.detach() - old_logp_T, tokens).clamp(max=0).exp()
        weight_T = torch.where(advantage_T > 0, 1, truncated_S[tokens.seq_T])
        return TokenLoss(-weight_T * advantage_T * logp_T)
