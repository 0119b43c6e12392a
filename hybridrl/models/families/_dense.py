"""Rows that dense decoders share: pre-norm attention with grouped queries, gated feed-forward, RMS norms.

Megatron keeps the q, k and v of a query group together; SGLang keeps all q, then all k, then all v of a rank.
Both are shardings of the same canonical parameter. Transformer Engine keeps a norm inside the linear layer
that follows it.
"""

from hybridrl.models.table import Row, Site

EMBED = Row(
    name="embed",
    rows=("vocab",),
    cols="hidden",
    hf=("model.embed_tokens.weight",),
    megatron=(Site("embedding.word_embeddings.weight", "vocab"),),
    engine=(Site("model.embed_tokens.weight", "vocab"),),
    group="embed",
    stage="first",
    tied_copy=Site("output_layer.weight", "vocab"),
)
ATTENTION_NORM = Row(
    name="layers.*.attention_norm",
    rows=("hidden",),
    hf=("model.layers.*.input_layernorm.weight",),
    megatron=(Site("decoder.layers.*.input_layernorm.weight", "whole"),),
    transformer_engine=(Site("decoder.layers.*.self_attention.linear_qkv.layer_norm_weight", "whole"),),
    engine=(Site("model.layers.*.input_layernorm.weight", "whole"),),
)
QKV = Row(
    name="layers.*.qkv",
    rows=("q", "kv", "kv"),
    cols="hidden",
    hf=(
        "model.layers.*.self_attn.q_proj.weight",
        "model.layers.*.self_attn.k_proj.weight",
        "model.layers.*.self_attn.v_proj.weight",
    ),
    megatron=(Site("decoder.layers.*.self_attention.linear_qkv.weight", "grouped_qkv"),),
    engine=(Site("model.layers.*.self_attn.qkv_proj.weight", "heads"),),
    group="attention",
)
QKV_BIAS = Row(
    name="layers.*.qkv_bias",
    rows=("q", "kv", "kv"),
    hf=(
        "model.layers.*.self_attn.q_proj.bias",
        "model.layers.*.self_attn.k_proj.bias",
        "model.layers.*.self_attn.v_proj.bias",
    ),
    megatron=(Site("decoder.layers.*.self_attention.linear_qkv.bias", "grouped_qkv"),),
    engine=(Site("model.layers.*.self_attn.qkv_proj.bias", "heads"),),
    group="attention",
    when="qkv_bias",
)
Q_NORM = Row(
    name="layers.*.q_norm",
    rows=("head",),
    hf=("model.layers.*.self_attn.q_norm.weight",),
    megatron=(Site("decoder.layers.*.self_attention.q_layernorm.weight", "whole"),),
    engine=(Site("model.layers.*.self_attn.q_norm.weight", "whole"),),
    when="qk_norm",
)
K_NORM = Row(
    name="layers.*.k_norm",
    rows=("head",),
    hf=("model.layers.*.self_attn.k_norm.weight",),
    megatron=(Site("decoder.layers.*.self_attention.k_layernorm.weight", "whole"),),
    engine=(Site("model.layers.*.self_attn.k_norm.weight", "whole"),),
    when="qk_norm",
)
ATTENTION_OUT = Row(
    name="layers.*.attention_out",
    rows=("hidden",),
    cols="q",
    hf=("model.layers.*.self_attn.o_proj.weight",),
    megatron=(Site("decoder.layers.*.self_attention.linear_proj.weight", "columns"),),
    engine=(Site("model.layers.*.self_attn.o_proj.weight", "columns"),),
    group="attention",
)
ATTENTION_OUT_BIAS = Row(
    name="layers.*.attention_out_bias",
    rows=("hidden",),
    hf=("model.layers.*.self_attn.o_proj.bias",),
    megatron=(Site("decoder.layers.*.self_attention.linear_proj.bias", "whole"),),
    engine=(Site("model.layers.*.self_attn.o_proj.bias", "whole"),),
    when="attention_out_bias",
)
FFN_NORM = Row(
    name="layers.*.ffn_norm",
    rows=("hidden",),
    hf=("model.layers.*.post_attention_layernorm.weight",),
    megatron=(Site("decoder.layers.*.pre_mlp_layernorm.weight", "whole"),),
    transformer_engine=(Site("decoder.layers.*.mlp.linear_fc1.layer_norm_weight", "whole"),),
    engine=(Site("model.layers.*.post_attention_layernorm.weight", "whole"),),
    kind="dense",
)
GATE_UP = Row(
    name="layers.*.gate_up",
    rows=("ffn", "ffn"),
    cols="hidden",
    hf=("model.layers.*.mlp.gate_proj.weight", "model.layers.*.mlp.up_proj.weight"),
    megatron=(Site("decoder.layers.*.mlp.linear_fc1.weight", "rows"),),
    engine=(Site("model.layers.*.mlp.gate_up_proj.weight", "rows"),),
    kind="dense",
)
DOWN = Row(
    name="layers.*.down",
    rows=("hidden",),
    cols="ffn",
    hf=("model.layers.*.mlp.down_proj.weight",),
    megatron=(Site("decoder.layers.*.mlp.linear_fc2.weight", "columns"),),
    engine=(Site("model.layers.*.mlp.down_proj.weight", "columns"),),
    kind="dense",
)
FINAL_NORM = Row(
    name="final_norm",
    rows=("hidden",),
    hf=("model.norm.weight",),
    megatron=(Site("decoder.final_layernorm.weight", "whole"),),
    engine=(Site("model.norm.weight", "whole"),),
    stage="last",
)
LM_HEAD = Row(
    name="lm_head",
    rows=("vocab",),
    cols="hidden",
    hf=("lm_head.weight",),
    megatron=(Site("output_layer.weight", "vocab"),),
    engine=(Site("lm_head.weight", "vocab"),),
    group="head",
    stage="last",
    when="untied",
)
VALUE_HEAD = Row(
    name="value_head",
    rows=("value",),
    cols="hidden",
    hf=("score.weight",),
    megatron=(Site("value_head.weight", "whole"),),
    engine=(Site("score.weight", "whole"),),
    group="head",
    stage="last",
    when="value_head",
)
"""The value head that replaces the output layer in any family, as ...ForSequenceClassification has it."""

ATTENTION = (ATTENTION_NORM, QKV, QKV_BIAS, Q_NORM, K_NORM, ATTENTION_OUT, ATTENTION_OUT_BIAS)
"""Attention with grouped queries. A family's traits say which of the biases and norms a model has."""

ROWS = (EMBED, *ATTENTION, FFN_NORM, GATE_UP, DOWN, FINAL_NORM, LM_HEAD)
"""All rows of a model without experts."""
