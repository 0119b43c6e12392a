"""k3+: the value of k3 with the gradient of k2.

Source: Tang and Munos 2025, "On a few pitfalls in KL divergence gradient estimation for RL",
    arXiv:2506.09477; the "+" forms of verl.
Formula: x^2 / 2 - sg[x^2 / 2] + sg[k3]
Use: in the loss: reports the estimator that you know, and has the gradient of the KL divergence on on-policy
    tokens.
"""

from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_kl
from hybridrl.algorithms.kl.k3 import K3
from hybridrl.algorithms.ratios import straight_through


@register_kl("k3_plus")
class K3Plus:
    """Straight through: k3 forwards, k2 backwards."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def __call__(self, logp_T: Tensor, ref_logp_T: Tensor) -> Tensor:
        return straight_through(K3()(logp_T, ref_logp_T), logp_T, ref_logp_T)
