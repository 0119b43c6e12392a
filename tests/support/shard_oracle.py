"""Shards built the way each system builds them, from whole Hugging Face tensors: reshape, concatenate, split.

Knows nothing of runs and boxes, so that layouts, plans and executors can be checked against it.
"""

import numpy as np
import torch
from hypothesis import strategies as st

from hybridrl.layout.cuts import fits
from hybridrl.models.spec import ModelSpec

FAMILIES = {
    "llama": {"qkv_bias": False, "attention_out_bias": False, "qk_norm": False},
    "qwen2": {"qkv_bias": True, "attention_out_bias": False, "qk_norm": False},
    "qwen3": {"qkv_bias": False, "attention_out_bias": False, "qk_norm": True},
}


def tiny(family="qwen3", **changes):
    """A spec small enough to copy a thousand times."""
    sizes = {
        "hidden_size": 6,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 2,
        "ffn_size": 8,
        "vocab_size": 37,
        "tied": False,
    }
    rest = {"norm_eps": 1e-6, "rope_theta": 1e4, "max_positions": 64, "dtype": "float32"}
    return ModelSpec(family=family, **(sizes | rest | FAMILIES[family] | changes))


@st.composite
def specs(draw):
    family = draw(st.sampled_from(sorted(FAMILIES)))
    num_kv_heads = draw(st.sampled_from([1, 2, 3, 4]))
    bias = draw(st.booleans())
    return tiny(
        family,
        hidden_size=draw(st.integers(1, 7)),
        num_layers=draw(st.sampled_from([1, 2, 4, 6])),
        num_heads=num_kv_heads * draw(st.sampled_from([1, 2, 3, 4])),
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from([2, 4])),
        ffn_size=draw(st.sampled_from([12, 24])),
        vocab_size=draw(st.integers(1, 300)),
        tied=draw(st.booleans()),
        **({} if family == "qwen2" else {"qkv_bias": bias, "attention_out_bias": bias}),
    )


def tp_sizes(spec):
    """Tensor parallel sizes that both systems accept; Megatron cuts the fused rows evenly too."""
    rows = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    return [size for size in range(1, spec.num_heads + 1) if fits(spec, size) and rows % size == 0]


def hf_tensors(spec, seed=0, dtype=torch.float32):
    """Random values under Hugging Face names."""
    generator = torch.Generator().manual_seed(seed)
    q, kv, hidden, ffn = (
        spec.num_heads * spec.head_dim,
        spec.num_kv_heads * spec.head_dim,
        spec.hidden_size,
        spec.ffn_size,
    )
    shapes = {"model.embed_tokens.weight": (spec.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not spec.tied:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    for layer in range(spec.num_layers):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        shapes |= {
            f"model.layers.{layer}.input_layernorm.weight": (hidden,),
            f"model.layers.{layer}.post_attention_layernorm.weight": (hidden,),
            f"{attention}.q_proj.weight": (q, hidden),
            f"{attention}.k_proj.weight": (kv, hidden),
            f"{attention}.v_proj.weight": (kv, hidden),
            f"{attention}.o_proj.weight": (hidden, q),
            f"{mlp}.gate_proj.weight": (ffn, hidden),
            f"{mlp}.up_proj.weight": (ffn, hidden),
            f"{mlp}.down_proj.weight": (hidden, ffn),
        }
        if spec.qkv_bias:
            shapes |= {f"{attention}.{x}_proj.bias": (n,) for x, n in (("q", q), ("k", kv), ("v", kv))}
        if spec.attention_out_bias:
            shapes[f"{attention}.o_proj.bias"] = (hidden,)
        if spec.qk_norm:
            shapes |= {f"{attention}.{x}_norm.weight": (spec.head_dim,) for x in "qk"}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def megatron_shard(spec, hf, *, tp, pp, rank_tp, rank_pp, vocab_multiple=128):
    """What a Megatron rank holds, padding zero."""
    multiple = vocab_multiple * tp
    padded = -(-spec.vocab_size // multiple) * multiple
    part = spec.num_layers // pp
    found = {}
    for layer in range(rank_pp * part, (rank_pp + 1) * part):
        theirs, ours = f"model.layers.{layer}", f"decoder.layers.{layer}"
        found[f"{ours}.input_layernorm.weight"] = hf[f"{theirs}.input_layernorm.weight"]
        found[f"{ours}.pre_mlp_layernorm.weight"] = hf[f"{theirs}.post_attention_layernorm.weight"]
        for kind in ("weight", "bias"):
            if f"{theirs}.self_attn.q_proj.{kind}" in hf:
                q, k, v = (hf[f"{theirs}.self_attn.{x}_proj.{kind}"] for x in "qkv")
                found[f"{ours}.self_attention.linear_qkv.{kind}"] = _split(_grouped(spec, q, k, v), tp, 0)[
                    rank_tp
                ]
        found[f"{ours}.self_attention.linear_proj.weight"] = _split(
            hf[f"{theirs}.self_attn.o_proj.weight"], tp, 1
        )[rank_tp]
        if spec.attention_out_bias:
            found[f"{ours}.self_attention.linear_proj.bias"] = hf[f"{theirs}.self_attn.o_proj.bias"]
        if spec.qk_norm:
            for x in "qk":
                found[f"{ours}.self_attention.{x}_layernorm.weight"] = hf[
                    f"{theirs}.self_attn.{x}_norm.weight"
                ]
        gate, up = (_split(hf[f"{theirs}.mlp.{x}_proj.weight"], tp, 0)[rank_tp] for x in ("gate", "up"))
        found[f"{ours}.mlp.linear_fc1.weight"] = torch.cat([gate, up])
        found[f"{ours}.mlp.linear_fc2.weight"] = _split(hf[f"{theirs}.mlp.down_proj.weight"], tp, 1)[rank_tp]
    embedding = _split(_pad(hf["model.embed_tokens.weight"], padded), tp, 0)[rank_tp]
    if rank_pp == 0:
        found["embedding.word_embeddings.weight"] = embedding
    if rank_pp == pp - 1:
        found["decoder.final_layernorm.weight"] = hf["model.norm.weight"]
        if not spec.tied:
            found["output_layer.weight"] = _split(_pad(hf["lm_head.weight"], padded), tp, 0)[rank_tp]
        elif pp > 1:
            found["output_layer.weight"] = embedding
    return found


def sglang_shard(spec, hf, *, tp, rank):
    """What an SGLang rank holds, padding zero."""
    found = {"model.norm.weight": hf["model.norm.weight"]}
    for name in ["model.embed_tokens.weight"] + ([] if spec.tied else ["lm_head.weight"]):
        padded = -(-spec.vocab_size // 64) * 64
        if padded % tp:
            padded = -(-spec.vocab_size // (64 * tp)) * 64 * tp
        found[name] = _split(_pad(hf[name], padded), tp, 0)[rank]
    for layer in range(spec.num_layers):
        base = f"model.layers.{layer}"
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.o_proj.bias"):
            if f"{base}.{name}" in hf:
                found[f"{base}.{name}"] = hf[f"{base}.{name}"]
        for x in "qk" if spec.qk_norm else "":
            found[f"{base}.self_attn.{x}_norm.weight"] = hf[f"{base}.self_attn.{x}_norm.weight"]
        for kind in ("weight", "bias"):
            if f"{base}.self_attn.q_proj.{kind}" in hf:
                q, k, v = (hf[f"{base}.self_attn.{x}_proj.{kind}"] for x in "qkv")
                parts = [_split(q, tp, 0)[rank], *(_kv_part(spec, x, tp, rank) for x in (k, v))]
                found[f"{base}.self_attn.qkv_proj.{kind}"] = torch.cat(parts)
        gate, up = (_split(hf[f"{base}.mlp.{x}_proj.weight"], tp, 0)[rank] for x in ("gate", "up"))
        found[f"{base}.mlp.gate_up_proj.weight"] = torch.cat([gate, up])
        found[f"{base}.self_attn.o_proj.weight"] = _split(hf[f"{base}.self_attn.o_proj.weight"], tp, 1)[rank]
        found[f"{base}.mlp.down_proj.weight"] = _split(hf[f"{base}.mlp.down_proj.weight"], tp, 1)[rank]
    return found


def strided_copies(table, sources, targets):
    """A descriptor table carried out element by element on NumPy arrays, in place."""
    sources, targets = [np.atleast_2d(a) for a in sources], [np.atleast_2d(a) for a in targets]
    for source, target, row, col, to_row, to_col, rows, cols in table.boxes.tolist():
        for i in range(rows):
            for j in range(cols):
                targets[target][to_row + i, to_col + j] = sources[source][row + i, col + j]


def _grouped(spec, q, k, v):
    """q heads of a group, its k, its v, group after group."""
    rest = q.shape[1:]
    q = q.reshape(spec.num_kv_heads, -1, *rest)
    k, v = (x.reshape(spec.num_kv_heads, spec.head_dim, *rest) for x in (k, v))
    return torch.cat([q, k, v], dim=1).reshape(-1, *rest)


def _kv_part(spec, x, tp, rank):
    if tp > spec.num_kv_heads:
        return _split(x, spec.num_kv_heads, 0)[rank // (tp // spec.num_kv_heads)]
    return _split(x, tp, 0)[rank]


def _split(x, parts, dim):
    assert x.shape[dim] % parts == 0
    return x.split(x.shape[dim] // parts, dim)


def _pad(x, rows):
    return torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])
