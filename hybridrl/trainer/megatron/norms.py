"""The norm that layers have in place of Megatron's, which refuses sequence parallelism."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class RMSNorm(torch.nn.Module):
    """Root mean square norm; of a family with centred norms, the weight is its distance from 1."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        weight: Any = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Where ranks have different tokens, Megatron sums the gradients of what is marked so.
        weight.sequence_parallel = config.sequence_parallel
        self.weight = weight
        self._eps, self._centred = eps, config.layernorm_zero_centered_gamma

    def forward(self, x: Tensor) -> Tensor:
        if not self._centred:
            return F.rms_norm(x, self.weight.shape, self.weight, self._eps)
        weight = 1.0 + self.weight.float()  # bf16 would round the sum
        return F.rms_norm(x.float(), weight.shape, weight, self._eps).to(x.dtype)
