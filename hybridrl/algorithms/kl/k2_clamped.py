"""k2 as OpenRLHF and NeMo-RL compute it: half the squared log ratio, clamped to +-10.

Source: OpenRLHF, compute_approx_kl (openrlhf/models/utils.py); NeMo-RL, calculate_kl
    (nemo_rl/algorithms/utils.py), with its defaults.
Formula: min(x^2 / 2, 10)
Use: to reproduce those frameworks. A token whose value is above 10 has no gradient. Prefer k2.
"""

from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_kl
from hybridrl.algorithms.kl.k2 import K2


@register_kl("k2_clamped")
class K2Clamped:
    """k2, within +-10."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def __call__(self, logp_T: Tensor, ref_logp_T: Tensor) -> Tensor:
        return K2()(logp_T, ref_logp_T).clamp(-10, 10)
