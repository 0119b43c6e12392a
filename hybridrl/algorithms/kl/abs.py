"""abs: the absolute log ratio.

Source: an option of verl besides the estimators of Schulman 2020, "Approximating KL Divergence".
Formula: |x|
Use: as a penalty that does not cancel; it estimates no divergence.
"""

from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_kl


@register_kl("abs")
class Abs:
    """It is never negative, and biased."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def __call__(self, logp_T: Tensor, ref_logp_T: Tensor) -> Tensor:
        return (logp_T - ref_logp_T).abs()
