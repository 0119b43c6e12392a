"""Shards built the way each system builds them, from whole Hugging Face tensors: reshape, concatenate, split.

Knows nothing of runs and boxes, so that layouts, plans and executors can be checked against it.
"""

import numpy as np
import torch
from model_values import has_experts, moe_block


def megatron_shard(
    spec,
    hf,
    *,
    tp=1,
    pp=1,
    rank_tp=0,
    rank_pp=0,
    vocab_multiple=128,
    etp=1,
    rank_etp=0,
    ep=1,
    rank_ep=0,
    vpp=1,
    stage_layers=(),
    transformer_engine=False,
):
    """What a Megatron rank holds, padding zero. Its experts sit at (rank_etp, rank_ep)."""
    multiple = vocab_multiple * tp
    padded = -(-spec.vocab_size // multiple) * multiple
    sizes = list(stage_layers) or [spec.num_layers // (pp * vpp)] * (pp * vpp)
    chunks = torch.arange(spec.num_layers).split(sizes)
    found = {}
    for layer in torch.cat(chunks[rank_pp::pp]).tolist():
        theirs = _below(hf, f"model.layers.{layer}.")
        parts = _megatron_norms(spec, theirs) | _megatron_attention(
            spec, theirs, tp, rank_tp, transformer_engine
        )
        if has_experts(spec, layer):
            parts |= _megatron_experts(spec, theirs, tp, rank_tp, etp, rank_etp, ep, rank_ep)
        else:
            parts |= _megatron_mlp("mlp", *_gated(theirs, "mlp"), tp, rank_tp)
        if transformer_engine:
            parts = {_of_transformer_engine(spec, layer, name): x for name, x in parts.items()}
        found |= {f"decoder.layers.{layer}.{name}": tensor for name, tensor in parts.items()}
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


def _megatron_norms(spec, hf):
    names = {"input_layernorm": "input_layernorm", "pre_mlp_layernorm": "post_attention_layernorm"}
    if spec.family.startswith("gemma"):
        names |= {
            "post_attention_layernorm": "post_attention_layernorm",
            "pre_mlp_layernorm": "pre_feedforward_layernorm",
            "post_mlp_layernorm": "post_feedforward_layernorm",
        }
    return {f"{ours}.weight": hf[f"{theirs}.weight"] for ours, theirs in names.items()}


def _megatron_attention(spec, hf, tp, rank, transformer_engine):
    hf = _below(hf, "self_attn.")
    found = {"linear_proj.weight": _split(hf["o_proj.weight"], tp, 1)[rank]}
    if spec.kv_lora_rank:
        names = {"linear_kv_down_proj": "kv_a_proj_with_mqa", "linear_kv_up_proj": "kv_b_proj"}
        if spec.q_lora_rank:
            names |= {"linear_q_down_proj": "q_a_proj", "linear_q_up_proj": "q_b_proj"}
            found["q_layernorm.weight"] = hf["q_a_layernorm.weight"]
        else:
            names["linear_q_proj"] = "q_proj"
        found["kv_layernorm.weight"] = hf["kv_a_layernorm.weight"]
        for ours, theirs in names.items():
            parts = 1 if transformer_engine and "down" in ours else tp
            found[f"{ours}.weight"] = _split(hf[f"{theirs}.weight"], parts, 0)[rank % parts]
    else:
        for kind in ("weight", "bias"):
            if f"q_proj.{kind}" in hf:
                fused = _grouped(spec, *(hf[f"{x}_proj.{kind}"] for x in "qkv"))
                found[f"linear_qkv.{kind}"] = _split(fused, tp, 0)[rank]
        if spec.attention_out_bias:
            found["linear_proj.bias"] = hf["o_proj.bias"]
        if spec.qk_norm:
            found |= {f"{x}_layernorm.weight": hf[f"{x}_norm.weight"] for x in "qk"}
    return {f"self_attention.{name}": tensor for name, tensor in found.items()}


def _megatron_mlp(name, gate, up, down, tp, rank):
    return {
        f"{name}.linear_fc1.weight": torch.cat([_split(x, tp, 0)[rank] for x in (gate, up)]),
        f"{name}.linear_fc2.weight": _split(down, tp, 1)[rank],
    }


def _megatron_experts(spec, hf, tp, rank_tp, etp, rank_etp, ep, rank_ep):
    block = moe_block(spec)
    found = {"mlp.router.weight": hf[f"{block}.gate.weight"]}
    if spec.router_bias:
        found["mlp.router.expert_bias"] = hf["mlp.gate.e_score_correction_bias"]
    if spec.shared_ffn_size:
        found |= _megatron_mlp("mlp.shared_experts", *_gated(hf, "mlp.shared_experts"), tp, rank_tp)
    mine = np.split(np.arange(spec.num_experts), ep)[rank_ep]
    for local, expert in enumerate(mine):
        weights = _gated(hf, f"{block}.experts.{expert}")
        found |= _megatron_mlp(f"mlp.experts.local_experts.{local}", *weights, etp, rank_etp)
    return found


def _of_transformer_engine(spec, layer, name):
    """Its linear layers take in the norm before them, and its grouped ones number their weights."""
    renamed = {}
    if spec.kv_lora_rank:
        for x in ("q", "kv"):
            up = f"self_attention.linear_{x}_up_proj.layer_norm_weight"
            renamed[f"self_attention.{x}_layernorm.weight"] = up
    else:
        renamed["input_layernorm.weight"] = "self_attention.linear_qkv.layer_norm_weight"
    if not has_experts(spec, layer):
        renamed["pre_mlp_layernorm.weight"] = "mlp.linear_fc1.layer_norm_weight"
    if name.startswith("mlp.experts.local_experts."):
        expert, linear, _ = name.removeprefix("mlp.experts.local_experts.").split(".")
        return f"mlp.experts.{linear}.weight{expert}"
    return renamed.get(name, name)


def sglang_shard(spec, hf, *, tp, rank, ep=1, dp_attention=1, dp_lm_head=False, interleave=0):
    """What an SGLang rank holds, padding zero."""
    attention = (tp // dp_attention, rank % (tp // dp_attention))
    found = {"model.norm.weight": hf["model.norm.weight"]}
    ends = {"model.embed_tokens.weight": attention}
    if not spec.tied:
        ends["lm_head.weight"] = attention if dp_lm_head else (tp, rank)
    for name, (size, place) in ends.items():
        padded = -(-spec.vocab_size // 64) * 64
        if padded % size:
            padded = -(-spec.vocab_size // (64 * size)) * 64 * size
        found[name] = _split(_pad(hf[name], padded), size, 0)[place]
    if spec.family == "gemma3":
        found["model.embed_tokens.weight"] = hf["model.embed_tokens.weight"]
    experts = np.split(np.arange(spec.num_experts), ep)[rank // (tp // ep)]
    expert_place = (tp // ep, rank % (tp // ep))
    for layer in range(spec.num_layers):
        theirs = _below(hf, f"model.layers.{layer}.")
        parts = _engine_attention(spec, theirs, *attention)
        parts |= _engine_ffn(spec, theirs, (tp, rank), (tp, rank), experts, expert_place, interleave)
        found |= {f"model.layers.{layer}.{name}": tensor for name, tensor in parts.items()}
    return found


def vllm_shard(spec, hf, *, tp, rank, dp=1, expert_parallel=False):
    """What a vLLM rank holds, padding zero."""
    place = (tp, rank % tp)
    found = {"model.norm.weight": hf["model.norm.weight"]}
    for name in ["model.embed_tokens.weight"] + ([] if spec.tied else ["lm_head.weight"]):
        found[name] = _split(_pad(hf[name], -(-spec.vocab_size // 64) * 64), *place[:1], 0)[rank % tp]
    experts, expert_place = np.arange(spec.num_experts), (tp * dp, rank)
    if expert_parallel:
        experts, expert_place = np.array_split(experts, tp * dp)[rank], (1, 0)
    shared = (1, 0) if expert_parallel and tp > 1 and dp > 1 else place
    for layer in range(spec.num_layers):
        theirs = _below(hf, f"model.layers.{layer}.")
        parts = _engine_attention(spec, theirs, *place)
        parts |= _engine_ffn(spec, theirs, place, shared, experts, expert_place, 0)
        for name, tensor in parts.items():
            name = name.replace("fused_qkv_a_proj_with_mqa", "fused_qkv_a_proj")
            found[f"model.layers.{layer}.{name.replace('experts.w', 'experts.routed_experts.w')}"] = tensor
    return found


def fsdp_shard(spec, hf, *, shards, rank, tp=1, tp_rank=0):
    """What a rank of FSDP2 holds: its chunk of its tensor-parallel part of every tensor of a transformers
    module, where there is one. The vocabulary is padded to a multiple of tp; padding zero."""
    named = {name.replace(".block_sparse_moe.", ".mlp."): tensor for name, tensor in hf.items()}
    module = {name: _tensor_parallel(name, tensor, tp)[tp_rank] for name, tensor in named.items()}
    for layer in range(spec.num_layers):
        block = f"model.layers.{layer}.mlp"
        if has_experts(spec, layer):
            experts = [_gated(module, f"{block}.experts.{e}") for e in range(spec.num_experts)]
            gate, up, down = (torch.stack(each) for each in zip(*experts, strict=True))
            module = {name: x for name, x in module.items() if f"{block}.experts." not in name}
            module[f"{block}.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
            module[f"{block}.experts.down_proj"] = down
    chunks = {name: tensor.chunk(shards) for name, tensor in module.items()}
    return {name: parts[rank] for name, parts in chunks.items() if rank < len(parts)}


def _tensor_parallel(name, tensor, tp):
    layer = name.split(".")[-2]
    if layer in ("embed_tokens", "lm_head"):
        return _split(_pad(tensor, -(-len(tensor) // tp) * tp), tp, 0)
    if tp > 1 and layer in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "w1", "w3"):
        return _split(tensor, tp, 0)
    if tp > 1 and layer in ("o_proj", "down_proj", "w2") and tensor.ndim > 1:
        return _split(tensor, tp, 1)
    return [tensor] * tp


def _engine_attention(spec, hf, tp, rank):
    """Norms, which all ranks hold, and attention."""
    found = {name: tensor for name, tensor in hf.items() if "norm" in name or name == "self_attn.o_proj.bias"}
    hf = _below(hf, "self_attn.")
    parts = {"o_proj.weight": _split(hf["o_proj.weight"], tp, 1)[rank]}
    if spec.kv_lora_rank:
        down = hf["kv_a_proj_with_mqa.weight"]
        if spec.q_lora_rank:
            parts["fused_qkv_a_proj_with_mqa.weight"] = torch.cat([hf["q_a_proj.weight"], down])
        else:
            parts["kv_a_proj_with_mqa.weight"] = down
        for name in ("q_proj.weight", "q_b_proj.weight", "kv_b_proj.weight"):
            if name in hf:
                parts[name] = _split(hf[name], tp, 0)[rank]
    else:
        for kind in ("weight", "bias"):
            if f"q_proj.{kind}" in hf:
                q, k, v = (hf[f"{x}_proj.{kind}"] for x in "qkv")
                fused = [_split(q, tp, 0)[rank], *(_kv_part(spec, x, tp, rank) for x in (k, v))]
                parts[f"qkv_proj.{kind}"] = torch.cat(fused)
    return found | {f"self_attn.{name}": tensor for name, tensor in parts.items()}


def _engine_ffn(spec, hf, place, shared_place, experts, expert_place, interleave):
    block = moe_block(spec)
    if f"{block}.gate.weight" not in hf:
        return _engine_mlp("mlp", *_gated(hf, "mlp"), *place)
    found = {name: hf[name] for name in hf if ".gate." in name}
    if spec.shared_ffn_size:
        found |= _engine_mlp("mlp.shared_experts", *_gated(hf, "mlp.shared_experts"), *shared_place)
    size, rank = expert_place
    w13, w2 = [], []
    for expert in experts:
        gate, up, down = _gated(hf, f"{block}.experts.{expert}")
        gate, up = (_split(x, size, 0)[rank] for x in (gate, up))
        if interleave:
            flat_ranges = [x.reshape(-1, interleave, x.shape[1]) for x in (gate, up)]
            w13.append(torch.stack(flat_ranges, dim=1).flatten(0, 2))
        else:
            w13.append(torch.cat([gate, up]))
        w2.append(_split(down, size, 1)[rank])
    found[f"{block}.experts.w13_weight"] = torch.stack(w13)
    found[f"{block}.experts.w2_weight"] = torch.stack(w2)
    return found


def _engine_mlp(name, gate, up, down, tp, rank):
    return {
        f"{name}.gate_up_proj.weight": torch.cat([_split(x, tp, 0)[rank] for x in (gate, up)]),
        f"{name}.down_proj.weight": _split(down, tp, 1)[rank],
    }


def _gated(hf, prefix):
    """(gate, up, down)"""
    names = ("w1", "w3", "w2") if f"{prefix}.w1.weight" in hf else ("gate_proj", "up_proj", "down_proj")
    gate, up, down = (hf[f"{prefix}.{name}.weight"] for name in names)
    return gate, up, down


def _below(tensors, prefix):
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def strided_copies(table, sources, targets):
    """A descriptor table carried out element by element on NumPy arrays, in place."""
    sources, targets = ([a.reshape(-1, a.shape[-1]) for a in arrays] for arrays in (sources, targets))
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
