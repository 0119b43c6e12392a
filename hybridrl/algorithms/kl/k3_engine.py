"""k3 with an importance weight from the engine's policy to the current one.

Source: an option of NeMo-RL (use_on_policy_kl_approximation).
Formula: sg[exp(logp - rollout_logp)] (exp(-x) - 1 + x)
Use: stale data, or an engine that differs from the trainer.
"""

from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_kl
from hybridrl.algorithms.kl.k3 import K3
from hybridrl.algorithms.ratios import log_ratio


@register_kl("k3_engine")
class K3Engine:
    """The estimator k3 times an importance weight without gradient."""

    needs: ClassVar[frozenset[Column]] = frozenset({"rollout_logp"})

    def __call__(self, logp_T: Tensor, ref_logp_T: Tensor, rollout_logp_T: Tensor) -> Tensor:
        return log_ratio(logp_T.detach(), rollout_logp_T).exp() * K3()(logp_T, ref_logp_T)
