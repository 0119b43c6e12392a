"""An answer with a single token out of bounds is left out.

Source: the "outlier" guard of SkyRL and verl's seq_max criteria.
Formula: keep the answer if every token has lowest <= exp(old_logp - rollout_logp) <= highest
Use: a broken engine, or tokens that are impossible for the trainer.
"""

from dataclasses import dataclass

from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens, register_correction
from hybridrl.algorithms.sequences import sequence_sum


@register_correction("outlier_mask")
@dataclass(frozen=True, kw_only=True, slots=True)
class OutlierMask:
    """A hard guard with wide bounds."""

    lowest: float = 1e-4
    highest: float = 100.0

    def __call__(self, weight_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, reduce: Reduce) -> Tensor:
        ratio_T = log_ratio_T.exp()
        outside_T = ((ratio_T < self.lowest) | (ratio_T > self.highest)).to(weight_T.dtype)
        return weight_T * (sequence_sum(outside_T, tokens) == 0)[tokens.seq_T]
