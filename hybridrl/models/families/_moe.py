"""Rows that mixture-of-experts models share: a norm, a router, experts, and shared experts.

Engines keep the experts of a layer in two tensors, w13 (gate, then up) and w2, one expert after the other.
Megatron has separate tensors for every expert, in a list of modules or, with Transformer Engine, numbered.
"""

from collections.abc import Mapping
from typing import Any

from hybridrl.models.table import Row, Site


def num_experts(config: Mapping[str, Any], key: str) -> int:
    """Number of experts per layer, under the family's key or the one that transformers 5 writes for all."""
    return config[key] if key in config else config["num_local_experts"]


def router_groups(config: Mapping[str, Any]) -> dict[str, int]:
    """Fields of ModelSpec for a router that first chooses groups of experts."""
    groups = {"router_groups": config.get("n_group"), "router_top_groups": config.get("topk_group")}
    return {name: count or 1 for name, count in groups.items()}


NORM = Row(
    name="layers.*.moe_norm",
    rows=("hidden",),
    hf=("model.layers.*.post_attention_layernorm.weight",),
    megatron=(Site("decoder.layers.*.pre_mlp_layernorm.weight", "whole"),),
    engine=(Site("model.layers.*.post_attention_layernorm.weight", "whole"),),
    kind="moe",
)
ROUTER = Row(
    name="layers.*.router",
    rows=("experts",),
    cols="hidden",
    hf=("model.layers.*.mlp.gate.weight",),
    megatron=(Site("decoder.layers.*.mlp.router.weight", "whole"),),
    engine=(Site("model.layers.*.mlp.gate.weight", "whole"),),
    kind="moe",
)
ROUTER_BIAS = Row(
    name="layers.*.router_bias",
    rows=("experts",),
    hf=("model.layers.*.mlp.gate.e_score_correction_bias",),
    megatron=(Site("decoder.layers.*.mlp.router.expert_bias", "whole"),),
    engine=(Site("model.layers.*.mlp.gate.e_score_correction_bias", "whole"),),
    kind="moe",
    when="router_bias",
)
EXPERTS_GATE_UP = Row(
    name="layers.*.experts.gate_up",
    rows=("expert_ffn", "expert_ffn"),
    cols="hidden",
    hf=(
        "model.layers.*.mlp.experts.#.gate_proj.weight",
        "model.layers.*.mlp.experts.#.up_proj.weight",
    ),
    megatron=(Site("decoder.layers.*.mlp.experts.local_experts.#.linear_fc1.weight", "rows"),),
    transformer_engine=(Site("decoder.layers.*.mlp.experts.linear_fc1.weight#", "rows"),),
    engine=(Site("model.layers.*.mlp.experts.w13_weight", "gate_up"),),
    vllm=(Site("model.layers.*.mlp.experts.routed_experts.w13_weight", "gate_up"),),
    kind="moe",
    per_expert=True,
)
EXPERTS_DOWN = Row(
    name="layers.*.experts.down",
    rows=("hidden",),
    cols="expert_ffn",
    hf=("model.layers.*.mlp.experts.#.down_proj.weight",),
    megatron=(Site("decoder.layers.*.mlp.experts.local_experts.#.linear_fc2.weight", "columns"),),
    transformer_engine=(Site("decoder.layers.*.mlp.experts.linear_fc2.weight#", "columns"),),
    engine=(Site("model.layers.*.mlp.experts.w2_weight", "columns"),),
    vllm=(Site("model.layers.*.mlp.experts.routed_experts.w2_weight", "columns"),),
    kind="moe",
    per_expert=True,
)
SHARED_GATE_UP = Row(
    name="layers.*.shared_experts.gate_up",
    rows=("shared_ffn", "shared_ffn"),
    cols="hidden",
    hf=(
        "model.layers.*.mlp.shared_experts.gate_proj.weight",
        "model.layers.*.mlp.shared_experts.up_proj.weight",
    ),
    megatron=(Site("decoder.layers.*.mlp.shared_experts.linear_fc1.weight", "rows"),),
    engine=(Site("model.layers.*.mlp.shared_experts.gate_up_proj.weight", "rows"),),
    group="shared",
    kind="moe",
    when="shared_experts",
)
SHARED_DOWN = Row(
    name="layers.*.shared_experts.down",
    rows=("hidden",),
    cols="shared_ffn",
    hf=("model.layers.*.mlp.shared_experts.down_proj.weight",),
    megatron=(Site("decoder.layers.*.mlp.shared_experts.linear_fc2.weight", "columns"),),
    engine=(Site("model.layers.*.mlp.shared_experts.down_proj.weight", "columns"),),
    group="shared",
    kind="moe",
    when="shared_experts",
)
