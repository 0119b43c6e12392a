"""Truncated importance sampling of whole answers.

Source: Liu et al. 2025, "When Speed Kills Stability"; the sequence level of verl, TRL and SkyRL.
Formula: w = min(product over the answer of exp(old_logp - rollout_logp), cap)
Use: unbiased up to the cap; short answers only, since the product's variance grows with length.
"""

from dataclasses import dataclass

from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens, register_correction
from hybridrl.algorithms.ratios import MAX_LOG_RATIO
from hybridrl.algorithms.sequences import sequence_sum


@register_correction("sequence_is")
@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceIS:
    """Every token of an answer is weighed by the ratio of the whole answer."""

    cap: float = 2.0
    """Bound on the weight."""

    def __call__(self, weight_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, reduce: Reduce) -> Tensor:
        product_S = sequence_sum(log_ratio_T, tokens).clamp(max=MAX_LOG_RATIO).exp().clamp(max=self.cap)
        return weight_T * product_S[tokens.seq_T]
