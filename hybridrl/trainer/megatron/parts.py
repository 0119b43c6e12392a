"""What layers are made of on a host: the classes that stand at the places of Megatron's specification.

Modules of one place are built and called alike, and keep their parameters under the names that MegatronLayout
gives them: with transformer_engine where norms are inside the linear layers, without where they are not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.megatron.attention import PackedAttention
from hybridrl.trainer.megatron.mla import LatentAttention

CoreAttention = Callable[[TransformerConfig, ModelSpec, int | None], ModuleSpec]
"""Attention itself, of a layer with that window; None: without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpecs:
    norm: Any
    column: Any
    """Linear layer whose rows are cut over tensor-parallel ranks."""

    norm_column: Any = None
    """The same, of what it norms before; None: the norm is a module of its own."""

    row: Any
    """Linear layer whose columns are cut."""

    down_proj: Any
    """The first linear layers of latent attention, as `latent_attention` expects them."""

    latent_attention: type[LatentAttention]
    core_attention: CoreAttention
    experts: Callable[[int], Any] | None = None
    """Of a layer with that many experts; None: Megatron's own, one after the other."""


class RMSNorm(torch.nn.Module):
    """Root mean square norm in place of Megatron's, which refuses sequence parallelism.

    In a family with centred norms, the weight is its distance from 1.
    """

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


def packed_attention(config: TransformerConfig, model: ModelSpec, window: int | None) -> ModuleSpec:
    return ModuleSpec(PackedAttention, {"window": window, "soft_cap": model.attention_soft_cap})


MEGATRONS = LayerSpecs(
    norm=RMSNorm,
    column=ColumnParallelLinear,
    row=RowParallelLinear,
    down_proj=ColumnParallelLinear,
    latent_attention=LatentAttention,
    core_attention=packed_attention,
)
"""Megatron's own linear layers with our norms and attention: on a CPU."""
