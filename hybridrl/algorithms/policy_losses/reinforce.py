"""REINFORCE, the plain policy gradient; the loss of GPG.

Source: Williams 1992; GPG: Chu et al. 2025, arXiv:2504.02546
Formula: L = -A logp
Use: exactly on-policy data: one optimizer step per batch.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss


@register_policy_loss("reinforce")
@dataclass(frozen=True, kw_only=True, slots=True)
class Reinforce:
    """There is neither an importance weight nor a clip: it is right for on-policy tokens only."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens) -> TokenLoss:
        return TokenLoss(-advantage_T * logp_T)
