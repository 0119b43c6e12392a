"""The layers of every family, as Megatron's specifications: its linear layers, our attention and norms."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.megatron.attention import PackedAttention
from hybridrl.trainer.megatron.mla import LatentAttention
from hybridrl.trainer.megatron.norms import RMSNorm
from hybridrl.trainer.megatron.packing import Packing
from hybridrl.trainer.megatron.rope import PackedRotary
from hybridrl.trainer.megatron.router import Router


def layer_specs(
    config: TransformerConfig, model: ModelSpec, layers: Sequence[int]
) -> TransformerBlockSubmodules:
    """Some layers of a model, neighbours, and the norm after the last one.

    Args:
        layers: counted over the whole model, from 0.
    """
    return TransformerBlockSubmodules(
        layer_specs=[_layer(config, model, layer) for layer in layers], layer_norm=RMSNorm
    )


class DecoderLayer(TransformerLayer):
    """Megatron's layer, with what some families add to it."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: Any,
        *,
        post_norms: bool,
        angles: int | None,
        **options: Any,
    ) -> None:
        """
        Args:
            post_norms: what attention and feed-forward add to the residual stream is normed.
            angles: which of the rotary embedding's it turns by; None: there is one kind.
        """
        super().__init__(config, submodules, **options)
        self._angles = angles
        if post_norms:
            size, eps = config.hidden_size, config.layernorm_epsilon
            self.post_attention_layernorm = RMSNorm(config, size, eps)
            self.post_mlp_layernorm = RMSNorm(config, size, eps)
            self.self_attn_bda = partial(_add_normed, self.post_attention_layernorm)
            self.mlp_bda = partial(_add_normed, self.post_mlp_layernorm)

    def forward(
        self,
        *args: Any,
        packed_seq_params: Packing,
        rotary_pos_emb: Tensor | None = None,
        **options: Any,
    ) -> Any:
        if self.is_moe_layer:  # Megatron tells the attention only
            self.mlp.router.packing = packed_seq_params
        if rotary_pos_emb is not None and self._angles is not None:
            rotary_pos_emb = rotary_pos_emb[self._angles]
        return super().forward(
            *args, packed_seq_params=packed_seq_params, rotary_pos_emb=rotary_pos_emb, **options
        )


def _add_normed(norm: torch.nn.Module, training: bool, fused: bool) -> Callable[..., Tensor]:
    """In place of Megatron's bias, dropout and addition: there is neither bias nor dropout."""

    def add(output_with_bias: tuple[Tensor, None], residual: Tensor, dropout: float) -> Tensor:
        return residual + norm(output_with_bias[0])

    return add


def _layer(config: TransformerConfig, model: ModelSpec, layer: int) -> ModuleSpec:
    windowed = layer in model.windowed_layers
    has_experts = layer in model.layers("moe")
    spec = get_gpt_layer_local_spec(
        num_experts=model.num_experts if has_experts else None,
        qk_layernorm=model.qk_norm,
        multi_latent_attention=model.latent,
        normalization="RMSNorm",
    )
    spec.module = DecoderLayer
    spec.params["post_norms"] = model.post_norms
    spec.params["angles"] = None if model.window_rope_theta is None else int(windowed)
    parts = spec.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention = parts.self_attention
    attention.submodules.core_attention = ModuleSpec(
        PackedAttention,
        {"window": model.window if windowed else None, "soft_cap": model.attention_soft_cap},
    )
    if model.latent:
        attention.module = LatentAttention
        attention.params["rotary"] = PackedRotary(model)
        attention.submodules.q_layernorm = attention.submodules.kv_layernorm = RMSNorm
    elif model.qk_norm:
        attention.submodules.q_layernorm = attention.submodules.k_layernorm = RMSNorm
    if has_experts:
        parts.mlp.submodules.router = partial(Router, model=model)
    return spec
