"""Policy losses for the certificate: one that is wrong, and one that raises."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import TokenLoss, Tokens


@dataclass(frozen=True)
class LocalMean:
    """Divides by the tokens of its own microbatch: the bug that the certificate is for."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_logp"})

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        loss_T = -(logp_T - old_logp_T).exp() * advantage_T
        return TokenLoss(loss_T / tokens.mask_T.sum())


@dataclass(frozen=True)
class Raises:
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp"})

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        raise ArithmeticError("a mistake of the user's")
