"""k3 times the importance ratio: unbiased for the current policy.

Source: DeepSeek-AI 2025, "DeepSeek-V3.2"
Formula: r (exp(-x) - 1 + x), r = exp(logp - old_logp), with the gradient through r
Use: several optimizer steps per batch, where tokens are no longer from the current policy.
"""

from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_kl
from hybridrl.algorithms.kl.k3 import K3
from hybridrl.algorithms.ratios import log_ratio


@register_kl("k3_unbiased")
class K3Unbiased:
    """The gradient is that of the divergence itself."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    def __call__(self, logp_T: Tensor, ref_logp_T: Tensor, old_logp_T: Tensor) -> Tensor:
        return log_ratio(logp_T, old_logp_T).exp() * K3()(logp_T, ref_logp_T)
