"""Masked importance sampling: answers whose product of ratios is out of bounds are left out (MIS).

Source: Liu et al. 2025, "When Speed Kills Stability".
Formula: w = p if lowest <= p <= highest else 0, p = product over the answer of exp(old_logp - rollout_logp);
    or 1 in place of p
Use: as sequence_is, without the bias of truncation.
"""

from dataclasses import dataclass

from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens, register_correction
from hybridrl.algorithms.ratios import MAX_LOG_RATIO
from hybridrl.algorithms.sequences import sequence_sum


@register_correction("sequence_mask")
@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceMask:
    """A mask on whole answers."""

    lowest: float = 0.5
    highest: float = 2.0
    weigh: bool = True
    """Weigh the answers that stay by their product; False: by 1."""

    def __call__(self, weight_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, reduce: Reduce) -> Tensor:
        product_S = sequence_sum(log_ratio_T, tokens).clamp(max=MAX_LOG_RATIO).exp()
        inside_S = (product_S >= self.lowest) & (product_S <= self.highest)
        kept_S = inside_S * product_S if self.weigh else inside_S.to(product_S.dtype)
        return weight_T * kept_S[tokens.seq_T]
