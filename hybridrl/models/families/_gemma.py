"""Rows of Gemma 2 and 3, which have norms before and after attention and feed-forward.

Megatron has no such norms after them: `post_attention_layernorm` and `post_mlp_layernorm` are our names. All
systems store the weight of a norm minus 1.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hybridrl.errors import ModelError
from hybridrl.models.families import _dense as dense
from hybridrl.models.table import Row, Site

ACTIVATION = "gelu_pytorch_tanh"

POST_ATTENTION_NORM = Row(
    name="layers.*.post_attention_norm",
    rows=("hidden",),
    hf=("model.layers.*.post_attention_layernorm.weight",),
    megatron=(Site("decoder.layers.*.post_attention_layernorm.weight", "whole"),),
    engine=(Site("model.layers.*.post_attention_layernorm.weight", "whole"),),
)
FFN_NORM = replace(
    dense.FFN_NORM,
    hf=("model.layers.*.pre_feedforward_layernorm.weight",),
    engine=(Site("model.layers.*.pre_feedforward_layernorm.weight", "whole"),),
)
POST_FFN_NORM = Row(
    name="layers.*.post_ffn_norm",
    rows=("hidden",),
    hf=("model.layers.*.post_feedforward_layernorm.weight",),
    megatron=(Site("decoder.layers.*.post_mlp_layernorm.weight", "whole"),),
    engine=(Site("model.layers.*.post_feedforward_layernorm.weight", "whole"),),
)
LAYERS = (
    *dense.ATTENTION,
    POST_ATTENTION_NORM,
    FFN_NORM,
    dense.GATE_UP,
    dense.DOWN,
    POST_FFN_NORM,
    dense.FINAL_NORM,
)
"""All rows after the embedding."""


def traits(config: Mapping[str, Any], *, full_every: int) -> dict[str, Any]:
    """Fields of ModelSpec for a Gemma model.

    Args:
        full_every: every layer whose number is a multiple of this, counted from 1, has no window, unless the
            config says otherwise.

    Raises:
        ModelError: the output layer is not tied, or attention is bidirectional.
    """
    if not config.get("tie_word_embeddings", True):  # Gemma's own files omit the key.
        raise ModelError(
            "tie_word_embeddings = false is not supported: engines do not load the output layer of a Gemma",
            where="config.json",
            fix="use a model with tied embeddings",
        )
    if config.get("use_bidirectional_attention"):
        raise ModelError(
            "use_bidirectional_attention = true is not supported",
            where="config.json",
            fix="use a model that generates text",
        )
    bias = config.get("attention_bias", False)
    return {
        "head_dim": config.get("head_dim") or 256,
        "tied": True,
        "qkv_bias": bias,
        "attention_out_bias": bias,
        "qk_norm": False,
        "query_scale": config.get("query_pre_attn_scalar", 256) ** -0.5,
        "window": config.get("sliding_window", 4096),
        "windowed_layers": _windowed_layers(config, full_every),
        "scaled_embedding": True,
        "centred_norms": True,
        "post_norms": True,
    }


def _windowed_layers(config: Mapping[str, Any], full_every: int) -> tuple[int, ...]:
    every = config.get("sliding_window_pattern", full_every)
    layers = range(config["num_hidden_layers"])
    kinds = config.get("layer_types") or ["" if (i + 1) % every == 0 else _WINDOWED for i in layers]
    return tuple(i for i, kind in enumerate(kinds) if kind == _WINDOWED)


_WINDOWED = "sliding_attention"
