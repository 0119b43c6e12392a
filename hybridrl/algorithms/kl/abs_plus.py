"""abs+: the value of abs with the gradient of k2.

Source: Tang and Munos 2025, "On a few pitfalls in KL divergence gradient estimation for RL",
    arXiv:2506.09477; the "+" forms of verl.
Formula: x^2 / 2 - sg[x^2 / 2] + sg[abs]
Use: in the loss: reports the estimator that you know, and has the gradient of the KL divergence on on-policy
    tokens.
"""

from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_kl
from hybridrl.algorithms.kl.abs import Abs
from hybridrl.algorithms.ratios import straight_through


@register_kl("abs_plus")
class AbsPlus:
    """Straight through: abs forwards, k2 backwards."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def __call__(self, logp_T: Tensor, ref_logp_T: Tensor) -> Tensor:
        return straight_through(Abs()(logp_T, ref_logp_T), logp_T, ref_logp_T)
