"""The classes that layers are built from on a kind of device: LayerSpecs fills the places of Megatron's spec.

All classes for one place have the same constructor and call. Their parameters have the names of
MegatronLayout: with transformer_engine=True if norms are inside the linear layers, otherwise with False.
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
"""Makes the spec of the core attention of a layer; the last argument is its window, None if it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpecs:
    norm: Any
    column: Any
    """Column-parallel linear layer: the rows of its weight [O, I] are sharded over tensor-parallel ranks."""

    norm_column: Any = None
    """Column-parallel linear layer that norms its input first; None if norms are separate modules."""

    row: Any
    """Row-parallel linear layer: the columns of its weight [O, I] are sharded over tensor-parallel ranks."""

    down_proj: Any
    """Down-projection of latent attention, as `latent_attention` expects it."""

    latent_attention: type[LatentAttention]
    core_attention: CoreAttention
    experts: Callable[[int], Any] | None = None
    """Makes the experts' class from their number; None takes Megatron's own, which run one after another."""


class RMSNorm(torch.nn.Module):
    """Root mean square norm that supports sequence parallelism, which Megatron's own does not.

    In a family with centred norms, the scale is 1 + weight.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        weight: Any = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # With sequence parallelism ranks have different tokens: Megatron sums gradients of marked parameters.
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
"""The classes on a CPU: Megatron's own linear layers with our norms and attention."""
