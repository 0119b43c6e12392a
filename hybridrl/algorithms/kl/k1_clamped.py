"""k1 as OpenRLHF and NeMo-RL compute it: the log ratio, clamped to +-10.

Source: OpenRLHF, compute_approx_kl (openrlhf/models/utils.py); NeMo-RL, calculate_kl
    (nemo_rl/algorithms/utils.py), with its defaults.
Formula: clip(x, -10, 10)
Use: to reproduce those frameworks, in the reward; a token beyond 10 nats costs 10.
"""

from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_kl
from hybridrl.algorithms.kl.k1 import K1


@register_kl("k1_clamped")
class K1Clamped:
    """k1, within +-10."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def __call__(self, logp_T: Tensor, ref_logp_T: Tensor) -> Tensor:
        return K1()(logp_T, ref_logp_T).clamp(-10, 10)
