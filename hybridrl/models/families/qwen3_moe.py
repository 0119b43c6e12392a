"""Qwen3 with experts: the attention of Qwen3, a router without bias, no shared experts."""

from collections.abc import Mapping
from typing import Any

from hybridrl.errors import ModelError
from hybridrl.models.families import _dense as dense
from hybridrl.models.families import _moe as moe
from hybridrl.models.table import Family


def _traits(config: Mapping[str, Any]) -> dict[str, Any]:
    bias = config.get("attention_bias", False)
    return {
        "qkv_bias": bias,
        "attention_out_bias": bias,
        "qk_norm": True,
        "num_experts": moe.num_experts(config, "num_experts"),
        "experts_per_token": config["num_experts_per_tok"],
        "expert_ffn_size": config["moe_intermediate_size"],
        "first_moe_layer": _first_moe_layer(config),
        "router_normalizes": config.get("norm_topk_prob", False),
    }


def _first_moe_layer(config: Mapping[str, Any]) -> int:
    if config.get("decoder_sparse_step", 1) != 1:
        raise ModelError(
            f"decoder_sparse_step = {config['decoder_sparse_step']} is not supported",
            where="config.json",
            fix="use a model with experts on every layer after the first ones",
        )
    plain = sorted(config.get("mlp_only_layers") or [])
    if plain != list(range(len(plain))):
        raise ModelError(
            f"mlp_only_layers = {plain} is not supported: layers without experts must come first",
            where="config.json",
            fix="use a model with experts on every layer after the first ones",
        )
    return len(plain)


FAMILY = Family(
    architecture="Qwen3MoeForCausalLM",
    rows=(
        dense.EMBED,
        *dense.ATTENTION,
        dense.FFN_NORM,
        dense.GATE_UP,
        dense.DOWN,
        moe.NORM,
        moe.ROUTER,
        moe.EXPERTS_GATE_UP,
        moe.EXPERTS_DOWN,
        dense.FINAL_NORM,
        dense.LM_HEAD,
    ),
    dp_attention=True,
    defaults={"num_key_value_heads": 4, "num_experts_per_tok": 8},
    traits=_traits,
)
