"""What layers are made of on a host: the classes that stand at the places of Megatron's specification.

Modules of one place are built and called alike, and keep their parameters under the names that MegatronLayout
gives them: with transformer_engine where norms are inside the linear layers, without where they are not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig

from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.megatron.attention import PackedAttention
from hybridrl.trainer.megatron.mla import LatentAttention
from hybridrl.trainer.megatron.norms import RMSNorm

CoreAttention = Callable[[TransformerConfig, ModelSpec, int | None], ModuleSpec]
"""Attention itself, of a layer with that window; None: without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParts:
    norm: Any
    column: Any
    """Linear layer whose rows are cut over tensor-parallel ranks."""

    norm_column: Any = None
    """The same, of what it norms before; None: the norm is a module of its own."""

    row: Any
    """Linear layer whose columns are cut."""

    narrow: Any
    """The first linear layers of latent attention, as `latent_attention` expects them."""

    latent_attention: type[LatentAttention]
    core_attention: CoreAttention
    experts: Callable[[int], Any] | None = None
    """Of a layer with that many experts; None: Megatron's own, one after the other."""


def packed_attention(config: TransformerConfig, model: ModelSpec, window: int | None) -> ModuleSpec:
    return ModuleSpec(PackedAttention, {"window": window, "soft_cap": model.attention_soft_cap})


MEGATRONS = LayerParts(
    norm=RMSNorm,
    column=ColumnParallelLinear,
    row=RowParallelLinear,
    narrow=ColumnParallelLinear,
    latent_attention=LatentAttention,
    core_attention=packed_attention,
)
"""Megatron's own linear layers with our norms and attention: on a CPU."""
