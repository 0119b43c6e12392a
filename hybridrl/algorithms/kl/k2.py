"""k2: half the squared log ratio.

Source: Schulman 2020, "Approximating KL Divergence", joschu.net/blog/kl-approx.html.
Formula: x^2 / 2
Use: in the loss; its gradient is that of the KL divergence when the tokens are on-policy.
"""

from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_kl


@register_kl("k2")
class K2:
    """It is never negative, and slightly biased."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def __call__(self, logp_T: Tensor, ref_logp_T: Tensor) -> Tensor:
        return (logp_T - ref_logp_T).square() / 2
