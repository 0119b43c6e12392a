"""Answers whose mean ratio per token is out of bounds are left out.

Source: Liu et al. 2025, "When Speed Kills Stability"; "geo_rs" of verl.
Formula: keep the answer if lowest <= exp(mean of (old_logp - rollout_logp)) <= highest
Use: any length: the criterion does not depend on it.
"""

from dataclasses import dataclass

from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens, register_correction
from hybridrl.algorithms.sequences import sequence_mean


@register_correction("geometric_mask")
@dataclass(frozen=True, kw_only=True, slots=True)
class GeometricMask:
    """A mask on answers that leaves the weight of the others as it is."""

    lowest: float = 0.999
    highest: float = 1.001

    def __call__(self, weight_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, reduce: Reduce) -> Tensor:
        ratio_S = sequence_mean(log_ratio_T, tokens).exp()
        inside_S = (ratio_S >= self.lowest) & (ratio_S <= self.highest)
        return weight_T * inside_S[tokens.seq_T]
