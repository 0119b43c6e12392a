"""The layers of every model family as Megatron's layer specs, built from the classes of a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.megatron.parts import LayerSpecs
from hybridrl.trainer.megatron.rope import PackedRotary
from hybridrl.trainer.megatron.router import Router
from hybridrl.trainer.megatron.vision import Placed
from hybridrl.trainer.places import Packing


@dataclass(kw_only=True)
class MegatronPacking(Packing, PackedSeqParams):
    """Our packing as a PackedSeqParams, which Megatron passes to every attention layer."""

    placed: Placed | None = None
    """Features of the pictures, once the embedding has been computed; None: the microbatch shows none."""


def layer_specs(
    config: TransformerConfig, model: ModelSpec, layers: Sequence[int], parts: LayerSpecs
) -> TransformerBlockSubmodules:
    """Specs of consecutive layers of a model, and of the final norm.

    Args:
        layers: layer indices in the whole model, from 0.
    """
    return TransformerBlockSubmodules(
        layer_specs=[_layer(config, model, layer, parts) for layer in layers], layer_norm=parts.norm
    )


class DecoderLayer(TransformerLayer):
    """Megatron's layer, with post norms and per-layer rotary angles for the families that have them."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: Any,
        *,
        post_norm: Callable[..., torch.nn.Module] | None,
        angles: int | None,
        **options: Any,
    ) -> None:
        """
        Args:
            post_norm: class of the norms applied to the outputs of attention and feed-forward before they are
                added to the residual stream; None if the family has none.
            angles: index of this layer's angles in the output of PackedRotary; None if all layers share them.
        """
        super().__init__(config, submodules, **options)
        self._angles = angles
        if post_norm is not None:
            size, eps = config.hidden_size, config.layernorm_epsilon
            self.post_attention_layernorm = post_norm(config, size, eps)
            self.post_mlp_layernorm = post_norm(config, size, eps)
            self.self_attn_bda = partial(_add_normed, self.post_attention_layernorm)
            self.mlp_bda = partial(_add_normed, self.post_mlp_layernorm)

    def forward(
        self,
        *args: Any,
        packed_seq_params: "MegatronPacking",
        rotary_pos_emb: Tensor | None = None,
        **options: Any,
    ) -> Any:
        if self.is_moe_layer:  # Megatron passes packed_seq_params to the attention only
            self.mlp.router.packing = packed_seq_params
        if rotary_pos_emb is not None and self._angles is not None:
            rotary_pos_emb = rotary_pos_emb[self._angles]
        hidden, *rest = super().forward(
            *args, packed_seq_params=packed_seq_params, rotary_pos_emb=rotary_pos_emb, **options
        )
        if packed_seq_params.placed is not None:
            hidden = packed_seq_params.placed.add(hidden, self.layer_number - 1)
        return hidden, *rest


def _add_normed(norm: torch.nn.Module, training: bool, fused: bool) -> Callable[..., Tensor]:
    """Replaces Megatron's bias-dropout-add: here is neither bias nor dropout, and the output is normed."""

    def add(output_with_bias: tuple[Tensor, None], residual: Tensor, dropout: float) -> Tensor:
        return residual + norm(output_with_bias[0])

    return add


def _layer(config: TransformerConfig, model: ModelSpec, layer: int, parts: LayerSpecs) -> ModuleSpec:
    windowed = layer in model.windowed_layers
    has_experts = layer in model.layers("moe")
    spec = get_gpt_layer_local_spec(
        num_experts=model.num_experts if has_experts else None,
        qk_layernorm=model.qk_norm,
        multi_latent_attention=model.latent,
        normalization="RMSNorm",
    )
    spec.module = DecoderLayer
    spec.params["post_norm"] = parts.norm if model.post_norms else None
    spec.params["angles"] = None if model.window_rope_theta is None else int(windowed)
    places = spec.submodules
    places.input_layernorm = places.pre_mlp_layernorm = parts.norm
    attention = places.self_attention
    attention.submodules.core_attention = parts.core_attention(
        config, model, model.window if windowed else None
    )
    attention.submodules.linear_proj = parts.row
    if model.latent:
        attention.module = parts.latent_attention
        attention.params["rotary"] = PackedRotary(model)
        _place_latent(attention.submodules, parts)
    else:
        _place_grouped(places, model, parts)
    if has_experts:
        _place_experts(inside(places.mlp), model, parts)
    else:
        _place_feed_forward(places, parts)
    return spec


def _place_grouped(places: Any, model: ModelSpec, parts: LayerSpecs) -> None:
    """Fill in the classes of grouped-query attention."""
    attention = places.self_attention.submodules
    attention.linear_qkv = parts.norm_column or parts.column
    if parts.norm_column:
        places.input_layernorm = IdentityOp
    if model.qk_norm:
        attention.q_layernorm = attention.k_layernorm = parts.norm


def _place_latent(attention: Any, parts: LayerSpecs) -> None:
    """Fill in the classes of multi-head latent attention."""
    attention.linear_q_proj = parts.column
    attention.linear_q_down_proj = attention.linear_kv_down_proj = parts.down_proj
    attention.linear_q_up_proj = attention.linear_kv_up_proj = parts.norm_column or parts.column
    attention.q_layernorm = attention.kv_layernorm = IdentityOp if parts.norm_column else parts.norm


def _place_feed_forward(places: Any, parts: LayerSpecs) -> None:
    linears = inside(places.mlp)
    linears.linear_fc1, linears.linear_fc2 = parts.norm_column or parts.column, parts.row
    if parts.norm_column:
        places.pre_mlp_layernorm = IdentityOp


def _place_experts(moe: Any, model: ModelSpec, parts: LayerSpecs) -> None:
    moe.router = partial(Router, model=model)
    shared = inside(moe.shared_experts)
    shared.linear_fc1, shared.linear_fc2 = parts.column, parts.row
    if parts.experts is not None:
        moe.experts = parts.experts(model.num_experts)


def inside(spec: Any) -> Any:
    """The submodules of a spec. Newer releases of Megatron bind them to the class with functools.partial."""
    return spec.keywords["submodules"] if isinstance(spec, partial) else spec.submodules
