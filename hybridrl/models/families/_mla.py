"""Rows of multi-head latent attention: q, and k with v, each pass a down-projection and its norm.

Engines fuse the two down-projections into one tensor that every rank holds. Megatron keeps two tensors. Its
own modules shard them over the tensor-parallel ranks. Transformer Engine's do not, and they keep each norm
inside the up-projection that follows it. All systems order the rows of a head as the checkpoint does.

Engines derive further tensors from mla_kv_up after loading it. Code that writes it in place must trigger that
(SGLang: the model's post_load_weights).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hybridrl.errors import ModelError
from hybridrl.models.families import _dense as dense
from hybridrl.models.families import _moe as moe
from hybridrl.models.table import Row, Site


def traits(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ModelSpec for a DeepSeek model: latent attention, and experts after the first layers.

    Raises:
        ModelError: the attention has biases, only some of the later layers have experts, or rotary pairs are
            not interleaved.
    """
    for key, only in (("attention_bias", False), ("moe_layer_freq", 1), ("rope_interleave", True)):
        if config.get(key, only) != only:
            raise ModelError(
                f"{key} = {config[key]} is not supported", where="config.json", fix=f"use a model with {only}"
            )
    ffn = config["moe_intermediate_size"]
    return {
        "qkv_bias": False,
        "attention_out_bias": False,
        "qk_norm": False,
        "num_kv_heads": config["num_attention_heads"],
        "head_dim": config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
        "num_experts": moe.num_experts(config, "n_routed_experts"),
        "experts_per_token": config["num_experts_per_tok"],
        "expert_ffn_size": ffn,
        "shared_ffn_size": ffn * (config.get("n_shared_experts") or 0),
        "first_moe_layer": config.get("first_k_dense_replace", 0),
        "router_scale": config.get("routed_scaling_factor", 1.0),
        "q_lora_rank": config.get("q_lora_rank") or 0,
        "kv_lora_rank": config["kv_lora_rank"],
        "rope_head_dim": config["qk_rope_head_dim"],
        "nope_head_dim": config["qk_nope_head_dim"],
        "v_head_dim": config["v_head_dim"],
    }


# With latent attention, no linear layer of Transformer Engine contains this norm.
ATTENTION_NORM = replace(dense.ATTENTION_NORM, transformer_engine=())
DOWN = Row(
    name="layers.*.mla_down",
    rows=("q_lora", "kv_lora_rope"),
    cols="hidden",
    hf=(
        "model.layers.*.self_attn.q_a_proj.weight",
        "model.layers.*.self_attn.kv_a_proj_with_mqa.weight",
    ),
    megatron=(
        Site("decoder.layers.*.self_attention.linear_q_down_proj.weight", "rows", (0,)),
        Site("decoder.layers.*.self_attention.linear_kv_down_proj.weight", "rows", (1,)),
    ),
    transformer_engine=(
        Site("decoder.layers.*.self_attention.linear_q_down_proj.weight", "whole", (0,)),
        Site("decoder.layers.*.self_attention.linear_kv_down_proj.weight", "whole", (1,)),
    ),
    engine=(Site("model.layers.*.self_attn.fused_qkv_a_proj_with_mqa.weight", "whole"),),
    vllm=(Site("model.layers.*.self_attn.fused_qkv_a_proj.weight", "whole"),),
    group="attention",
    when="compressed_q",
)
KV_DOWN = Row(
    name="layers.*.mla_kv_down",
    rows=("kv_lora_rope",),
    cols="hidden",
    hf=("model.layers.*.self_attn.kv_a_proj_with_mqa.weight",),
    megatron=(Site("decoder.layers.*.self_attention.linear_kv_down_proj.weight", "rows"),),
    transformer_engine=(Site("decoder.layers.*.self_attention.linear_kv_down_proj.weight", "whole"),),
    engine=(Site("model.layers.*.self_attn.kv_a_proj_with_mqa.weight", "whole"),),
    group="attention",
    when="plain_q",
)
Q = Row(
    name="layers.*.mla_q",
    rows=("mla_q",),
    cols="hidden",
    hf=("model.layers.*.self_attn.q_proj.weight",),
    megatron=(Site("decoder.layers.*.self_attention.linear_q_proj.weight", "rows"),),
    engine=(Site("model.layers.*.self_attn.q_proj.weight", "rows"),),
    group="attention",
    when="plain_q",
)
Q_NORM = Row(
    name="layers.*.mla_q_norm",
    rows=("q_lora",),
    hf=("model.layers.*.self_attn.q_a_layernorm.weight",),
    megatron=(Site("decoder.layers.*.self_attention.q_layernorm.weight", "whole"),),
    transformer_engine=(Site("decoder.layers.*.self_attention.linear_q_up_proj.layer_norm_weight", "whole"),),
    engine=(Site("model.layers.*.self_attn.q_a_layernorm.weight", "whole"),),
    when="compressed_q",
)
Q_UP = Row(
    name="layers.*.mla_q_up",
    rows=("mla_q",),
    cols="q_lora",
    hf=("model.layers.*.self_attn.q_b_proj.weight",),
    megatron=(Site("decoder.layers.*.self_attention.linear_q_up_proj.weight", "rows"),),
    engine=(Site("model.layers.*.self_attn.q_b_proj.weight", "rows"),),
    group="attention",
    when="compressed_q",
)
KV_NORM = Row(
    name="layers.*.mla_kv_norm",
    rows=("kv_lora",),
    hf=("model.layers.*.self_attn.kv_a_layernorm.weight",),
    megatron=(Site("decoder.layers.*.self_attention.kv_layernorm.weight", "whole"),),
    transformer_engine=(
        Site("decoder.layers.*.self_attention.linear_kv_up_proj.layer_norm_weight", "whole"),
    ),
    engine=(Site("model.layers.*.self_attn.kv_a_layernorm.weight", "whole"),),
)
KV_UP = Row(
    name="layers.*.mla_kv_up",
    rows=("mla_kv",),
    cols="kv_lora",
    hf=("model.layers.*.self_attn.kv_b_proj.weight",),
    megatron=(Site("decoder.layers.*.self_attention.linear_kv_up_proj.weight", "rows"),),
    engine=(Site("model.layers.*.self_attn.kv_b_proj.weight", "rows"),),
    group="attention",
)
OUT = Row(
    name="layers.*.mla_out",
    rows=("hidden",),
    cols="mla_out",
    hf=("model.layers.*.self_attn.o_proj.weight",),
    megatron=(Site("decoder.layers.*.self_attention.linear_proj.weight", "columns"),),
    engine=(Site("model.layers.*.self_attn.o_proj.weight", "columns"),),
    group="attention",
)

ROWS = (
    dense.EMBED,
    ATTENTION_NORM,
    DOWN,
    KV_DOWN,
    Q,
    Q_NORM,
    Q_UP,
    KV_NORM,
    KV_UP,
    OUT,
    dense.FFN_NORM,
    dense.GATE_UP,
    dense.DOWN,
    moe.NORM,
    moe.ROUTER,
    moe.ROUTER_BIAS,
    moe.EXPERTS_GATE_UP,
    moe.EXPERTS_DOWN,
    moe.SHARED_GATE_UP,
    moe.SHARED_DOWN,
    dense.FINAL_NORM,
    dense.LM_HEAD,
)
"""All rows of a DeepSeek model."""
