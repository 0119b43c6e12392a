"""The layers on a GPU: Transformer Engine's norms, linear layers with a norm inside, grouped experts, and
attention over packed sequences. Importing this module needs no GPU; building its layers does.

Shape letters: T packed tokens of this rank, H query heads, K key heads, D size of a query or key head, E size
of a value head.
"""

import copy
import warnings
from typing import Any

from megatron.core.extensions.transformer_engine import (
    TEColumnParallelLinear,
    TEDotProductAttention,
    TELayerNormColumnParallelLinear,
    TELinear,
    TENorm,
    TERowParallelLinear,
)
from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec_for_backend
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.megatron.layers import inside
from hybridrl.trainer.megatron.mla import WholeLatentAttention
from hybridrl.trainer.megatron.parts import LayerSpecs, packed_attention
from hybridrl.trainer.places import Packing


class VarlenAttention(MegatronModule):
    """Passes packed sequences to Transformer Engine's attention: without a batch dim, with cu_seqlens.

    Under context parallelism it exchanges keys and values by itself; it expects the zigzag partition of
    packing.py.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        *,
        product: Any,
        window: int | None,
        **options: Any,
    ) -> None:
        """
        Args:
            product: class of Transformer Engine's attention.
            window: a token attends to itself and the `window` - 1 tokens before it; None attends to all.
        """
        super().__init__(config=config)
        self.product = product(
            with_window(config, window), layer_number, attn_mask_type, attention_type, **options
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        packed_seq_params: Packing,
        **unused: Any,
    ) -> Tensor:
        """
        Args:
            query: [T, 1, H, D]
            key: [T, 1, K, D]
            value: [T, 1, K, E]

        Returns:
            [T, 1, H * E]
        """
        heads = (x.squeeze(1) for x in (query, key, value))
        options = {"attn_mask_type": AttnMaskType.causal, "packed_seq_params": varlen(packed_seq_params)}
        return self.product(*heads, None, **options).reshape(len(query), 1, -1)


def varlen(packing: Packing) -> PackedSeqParams:
    """Sequence boundaries for Transformer Engine. Filler counts as a part of its sequence."""
    longest = max(length for _, length in packing.runs)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=packing.edge_S,
        cu_seqlens_kv=packing.edge_S,
        cu_seqlens_q_padded=packing.edge_S,
        cu_seqlens_kv_padded=packing.edge_S,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


def with_window(config: TransformerConfig, window: int | None) -> TransformerConfig:
    """A copy of the config with the window as Transformer Engine counts it: without the token itself."""
    changed = copy.copy(config)
    changed.window_size = None if window is None else (window - 1, 0)
    return changed


def core_attention(config: TransformerConfig, model: ModelSpec, window: int | None) -> ModuleSpec:
    """Transformer Engine's attention if it supports the model, otherwise ours, with a warning."""
    if lacks := _lacks(config, model, window):
        warnings.warn(
            f"{lacks}: attention runs one product per length of sequences, which is slower", stacklevel=2
        )
        return packed_attention(config, model, window)
    return ModuleSpec(VarlenAttention, {"product": TEDotProductAttention, "window": window})


def _lacks(config: TransformerConfig, model: ModelSpec, window: int | None) -> str:
    """Why Transformer Engine cannot compute the attention of a layer; "" if it can."""
    if model.attention_soft_cap is not None:
        return "Transformer Engine's attention is not called with a soft cap"
    if config.context_parallel_size > 1 and window is not None:
        return "Transformer Engine's ring attention has no window"
    if config.context_parallel_size > 1 and model.latent:
        return "Transformer Engine's ring attention is not used for heads of two sizes"
    if model.head_dim % 8:
        return f"Transformer Engine's attention has no heads of {model.head_dim}, which 8 does not divide"
    if config.params_dtype.itemsize == 4:
        return "Transformer Engine's attention over packed sequences has no fp32"
    return ""


def _grouped_experts(num_experts: int) -> Any:
    moe = get_moe_module_spec_for_backend(TESpecProvider(), num_experts=num_experts, moe_grouped_gemm=True)
    return inside(moe).experts


TRANSFORMER_ENGINES = LayerSpecs(
    norm=TENorm,
    column=TEColumnParallelLinear,
    norm_column=TELayerNormColumnParallelLinear,
    row=TERowParallelLinear,
    down_proj=TELinear,
    latent_attention=WholeLatentAttention,
    core_attention=core_attention,
    experts=_grouped_experts,
)
