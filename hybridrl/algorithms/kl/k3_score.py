"""k3 with the gradient of the divergence itself: that of the estimate, and that of the sampling.

Source: Tang and Munos 2025, arXiv:2506.09477; NeMo-RL, whose KL loss has this form (loss_functions.py, August
    2026)
Formula: clip(pi / sg[pi] (exp(-x) - 1 + x), -10, 10)
Use: to reproduce NeMo-RL. On tokens of the current policy it is k3_unbiased; it keeps that form when the
    policy has moved.
"""

from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_kl
from hybridrl.algorithms.kl.k3 import K3


@register_kl("k3_score")
class K3Score:
    """k3, at most 10, times a weight of 1 that carries the gradient of the token's probability."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def __call__(self, logp_T: Tensor, ref_logp_T: Tensor) -> Tensor:
        weight_T = (logp_T - logp_T.detach()).exp()
        return (weight_T * K3()(logp_T, ref_logp_T)).clamp(-10, 10)
