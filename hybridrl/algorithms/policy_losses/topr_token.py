"""TOPR by tokens: negative examples with a truncated importance weight of each token.

Source: ROLL, "topr" (actor_pg_worker.py); the paper, arXiv:2503.14286, weighs by the whole answer (topr).
Formula: L = -A logp where A > 0, else -sg[min(r, 1)] A logp
Use: to reproduce that framework, or where the ratio of a long answer is 0 or 1 and nothing between.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.ratios import log_ratio


@register_policy_loss("topr_token")
@dataclass(frozen=True, kw_only=True, slots=True)
class TOPRToken:
    """Tokens that the policy no longer gives are not pushed down further."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        ratio_T = log_ratio(logp_T.detach(), old_logp_T).exp()
        weight_T = torch.where(advantage_T > 0, 1, ratio_T.clamp(max=1))
        return TokenLoss(-weight_T * advantage_T * logp_T)
