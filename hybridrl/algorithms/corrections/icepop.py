"""IcePop: tokens whose ratio is within bounds get it as their weight, the others are left out.

Source: Ling team 2025, "Every Step Evolves" (IcePop), arXiv:2510.18855.
Formula: w = r if lowest <= r <= highest else 0, r = exp(old_logp - rollout_logp)
Use: mixture-of-experts models, whose router sometimes disagrees completely.
"""

from dataclasses import dataclass

from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens, register_correction


@register_correction("icepop")
@dataclass(frozen=True, kw_only=True, slots=True)
class IcePop:
    """Importance sampling without the tail."""

    lowest: float = 0.5
    highest: float = 5.0

    def __call__(self, weight_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, reduce: Reduce) -> Tensor:
        ratio_T = log_ratio_T.exp()
        inside_T = (ratio_T >= self.lowest) & (ratio_T <= self.highest)
        return weight_T * ratio_T * inside_T
