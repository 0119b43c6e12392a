"""Rejects tokens or whole answers by a divergence between engine and trainer.

Source: the k1, k2 and k3 criteria of verl's rollout correction; estimators as in Schulman 2020; binary_kl by
    answers: FlashREINFORCE (Hu et al. 2026); binary_kl and binary_tv of a token: DPPO, arXiv:2602.04879.
Formula: keep where lowest <= D <= highest; with x = rollout_logp - old_logp: k1 = x, k2 = x^2 / 2, k3 =
    exp(-x) - 1 + x; with p of the engine, q of the trainer: binary_kl = p log(p / q) + (1 - p) log((1 - p) /
    (1 - q)), binary_tv = |p - q|
Use: a guard in addition to importance weights; k3 and the binary ones never cancel within an answer, and the
    binary ones ignore large ratios of rare tokens.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, Reduce, Tokens, register_correction
from hybridrl.algorithms.divergence import binary_kl, binary_tv
from hybridrl.algorithms.sequences import sequence_max, sequence_mean, sequence_sum


@register_correction("reject")
@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """Tokens or answers out of bounds get weight 0."""

    divergence: Literal["k1", "k2", "k3", "binary_kl", "binary_tv"] = "k3"
    level: Literal["token", "sequence_sum", "sequence_mean", "sequence_max"] = "sequence_mean"
    """What must be within bounds: each token, or the sum, mean or largest absolute value over the answer."""

    lowest: float | None = None
    """Lower bound in nats, useful for k1, which can be negative; None: no lower bound."""

    highest: float = 0.01
    """Upper bound in nats; of binary_tv, a probability."""

    @property
    def needs(self) -> frozenset[Column]:
        binary = self.divergence in ("binary_kl", "binary_tv")
        return frozenset({"old_logp", "rollout_logp"}) if binary else frozenset()

    def __call__(
        self,
        weight_T: Tensor,
        log_ratio_T: Tensor,
        tokens: Tokens,
        reduce: Reduce,
        old_logp_T: Tensor | None = None,
        rollout_logp_T: Tensor | None = None,
    ) -> Tensor:
        if rollout_logp_T is None or old_logp_T is None:
            divergence_T = self._by_ratio(log_ratio_T)
        else:
            binary = {"binary_kl": binary_kl, "binary_tv": binary_tv}[self.divergence]
            divergence_T = binary(rollout_logp_T, old_logp_T)
        if self.level == "token":
            return weight_T * self._inside(divergence_T)
        over = {
            "sequence_sum": sequence_sum,
            "sequence_mean": sequence_mean,
            "sequence_max": sequence_max,
        }[self.level]
        value_T = divergence_T.abs() if self.level == "sequence_max" else divergence_T
        return weight_T * self._inside(over(value_T, tokens))[tokens.seq_T]

    def _by_ratio(self, log_ratio_T: Tensor) -> Tensor:
        if self.divergence == "k1":
            return -log_ratio_T
        return log_ratio_T.square() / 2 if self.divergence == "k2" else torch.expm1(log_ratio_T) - log_ratio_T

    def _inside(self, value: Tensor) -> Tensor:
        return (value <= self.highest) & (True if self.lowest is None else value >= self.lowest)
