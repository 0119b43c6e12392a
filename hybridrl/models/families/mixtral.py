"""Mixtral: the attention of Llama, and experts on every layer, where w1 is gate, w3 up and w2 down."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hybridrl.errors import ModelError
from hybridrl.models.families import _dense as dense
from hybridrl.models.families import _moe as moe
from hybridrl.models.table import Family, Site

_ROUTER = replace(
    moe.ROUTER,
    hf=("model.layers.*.block_sparse_moe.gate.weight",),
    engine=(Site("model.layers.*.block_sparse_moe.gate.weight", "whole"),),
)
_EXPERTS_GATE_UP = replace(
    moe.EXPERTS_GATE_UP,
    hf=(
        "model.layers.*.block_sparse_moe.experts.#.w1.weight",
        "model.layers.*.block_sparse_moe.experts.#.w3.weight",
    ),
    engine=(Site("model.layers.*.block_sparse_moe.experts.w13_weight", "gate_up"),),
    vllm=(Site("model.layers.*.block_sparse_moe.experts.routed_experts.w13_weight", "gate_up"),),
)
_EXPERTS_DOWN = replace(
    moe.EXPERTS_DOWN,
    hf=("model.layers.*.block_sparse_moe.experts.#.w2.weight",),
    engine=(Site("model.layers.*.block_sparse_moe.experts.w2_weight", "columns"),),
    vllm=(Site("model.layers.*.block_sparse_moe.experts.routed_experts.w2_weight", "columns"),),
)


def _traits(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("sliding_window") is not None:
        raise ModelError(
            f"sliding_window = {config['sliding_window']} is not supported",
            where="config.json",
            fix="use a model with full attention",
        )
    return {
        "qkv_bias": False,
        "attention_out_bias": False,
        "qk_norm": False,
        "num_experts": moe.num_experts(config, "num_local_experts"),
        "experts_per_token": config["num_experts_per_tok"],
        "expert_ffn_size": config["intermediate_size"],
        "router_normalizes": True,
    }


FAMILY = Family(
    architecture="MixtralForCausalLM",
    rows=(
        dense.EMBED,
        *dense.ATTENTION,
        moe.NORM,
        _ROUTER,
        _EXPERTS_GATE_UP,
        _EXPERTS_DOWN,
        dense.FINAL_NORM,
        dense.LM_HEAD,
    ),
    defaults={"num_key_value_heads": 8, "num_experts_per_tok": 2, "rope_theta": 1e6},
    traits=_traits,
)
