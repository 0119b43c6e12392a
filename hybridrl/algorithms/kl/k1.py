"""k1: the log ratio itself.

Source: Schulman 2020, "Approximating KL Divergence", joschu.net/blog/kl-approx.html.
Formula: x
Use: in the reward. As a loss its expected gradient is zero: take k2 or a straight-through form there.
"""

from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_kl


@register_kl("k1")
class K1:
    """It is unbiased, has a high variance, and is negative at about half of the tokens."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def __call__(self, logp_T: Tensor, ref_logp_T: Tensor) -> Tensor:
        return logp_T - ref_logp_T
