"""SAPO: a smooth gate in place of the clip.

Source: Gao et al. 2025, "Soft Adaptive Policy Optimization", arXiv:2511.20347
Formula: L = -(4 / tau) sigmoid(tau (r - 1)) A, tau = tau_positive where A > 0, else tau_negative;
    with level = sequence: r is the geometric mean over the answer
Use: with aggregate seq_mean_token_mean; tokens that drift keep a small gradient.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.ratios import by_sign
from hybridrl.algorithms.sequences import importance_ratio


@register_policy_loss("sapo")
@dataclass(frozen=True, kw_only=True, slots=True)
class SAPO:
    """The gate equals r near r = 1, up to a constant, and flattens on both sides."""

    tau_positive: float = 1.0
    """Sharpness of the gate where the advantage is positive."""

    tau_negative: float = 1.05
    """Sharpness of the gate at all other tokens; larger, because negative gradients spread over the whole
    vocabulary."""

    level: Literal["token", "sequence"] = "token"
    """Ratio of each token, or of the whole answer (the geometric mean over its tokens), as in TRL's
    importance_sampling_level."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __post_init__(self) -> None:
        if min(self.tau_positive, self.tau_negative) <= 0:
            raise ValueError(
                f"tau_positive = {self.tau_positive} or tau_negative = {self.tau_negative} is not positive"
            )

    def __call__(self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor) -> TokenLoss:
        ratio_T = importance_ratio(logp_T, old_logp_T, tokens, self.level)
        tau_T = by_sign(advantage_T > 0, self.tau_positive, self.tau_negative, logp_T.dtype)
        return TokenLoss(-4 / tau_T * torch.sigmoid(tau_T * (ratio_T - 1)) * advantage_T)
