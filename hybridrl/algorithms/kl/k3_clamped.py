"""k3 as other frameworks compute it: clamped after the exponential.

Source: the "low_var_kl" of verl and slime; k3 of OpenRLHF (compute_approx_kl) and NeMo-RL (calculate_kl).
Formula: clip(exp(-x) - 1 + x, -10, 10)
Use: to reproduce those frameworks. A token whose value is above 10 has no gradient, so the farthest tokens
    are not pulled back. Prefer k3 or k3_plus.
"""

from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_kl
from hybridrl.algorithms.kl.k3 import K3


@register_kl("k3_clamped")
class K3Clamped:
    """k3, at most 10."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def __call__(self, logp_T: Tensor, ref_logp_T: Tensor) -> Tensor:
        return K3()(logp_T, ref_logp_T).clamp(-10, 10)
