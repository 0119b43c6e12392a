"""k3: the low-variance estimator that GRPO adds to its loss.

Source: Schulman 2020, "Approximating KL Divergence"; GRPO, arXiv:2402.03300
Formula: exp(-x) - 1 + x
Use: in the loss, as in GRPO; with log ratios clamped to +-20 against overflow and no clamp on the value.
"""

from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, register_kl
from hybridrl.algorithms.ratios import log_ratio


@register_kl("k3")
class K3:
    """It is unbiased and never negative."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def __call__(self, logp_T: Tensor, ref_logp_T: Tensor) -> Tensor:
        minus_x_T = log_ratio(ref_logp_T, logp_T)
        return torch.expm1(minus_x_T) - minus_x_T
