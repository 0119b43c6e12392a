"""Small models of every family: their sizes, drawn or fixed, and random tensors as a checkpoint has them."""

from typing import Any

import torch
from hypothesis import strategies as st

from hybridrl.models.spec import ModelSpec
from hybridrl.models.vision import VisionSpec

_PLAIN = {"qkv_bias": False, "attention_out_bias": False, "qk_norm": False}
_EXPERTS = {"num_experts": 4, "experts_per_token": 2, "expert_ffn_size": 4}
_LATENT = {
    "num_kv_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 6,
    "rope_head_dim": 2,
    "nope_head_dim": 1,
    "v_head_dim": 3,
    "head_dim": 3,
}
FAMILIES = {
    "llama": _PLAIN,
    "qwen2": _PLAIN | {"qkv_bias": True},
    "qwen3": _PLAIN | {"qk_norm": True},
    "gemma2": _PLAIN | {"tied": True},
    "gemma3": _PLAIN | {"qk_norm": True, "tied": True},
    "qwen3_moe": _PLAIN | _EXPERTS | {"qk_norm": True},
    "mixtral": _PLAIN | _EXPERTS,
    "deepseek_v2": _PLAIN | _EXPERTS | _LATENT | {"shared_ffn_size": 8, "first_moe_layer": 1},
    "deepseek_v3": _PLAIN | _EXPERTS | _LATENT | {"shared_ffn_size": 8, "router_bias": True},
}


def _vision(**changes):
    """A tower with features of the size of tiny()'s text model."""
    sizes = {
        "depth": 2,
        "hidden_size": 4,
        "ffn_size": 6,
        "out_size": 6,
        "patch_size": 2,
        "frames": 2,
        "merge_size": 2,
        "image_token": 30,
        "image_start": 31,
        "image_end": 32,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "config": "{}",
    }
    return VisionSpec(**sizes | changes)


WITH_TOWER = {
    "qwen2_5_vl": _PLAIN | {"qkv_bias": True, "vision": _vision()},
    "qwen3_vl": _PLAIN | {"qk_norm": True, "vision": _vision(num_positions=4, deep_layers=(0,))},
    "qwen3_vl_moe": _PLAIN
    | _EXPERTS
    | {"qk_norm": True, "vision": _vision(num_positions=4, deep_layers=(0,))},
}
DENSE = ("llama", "qwen2", "qwen3")
LATENT = ("deepseek_v2", "deepseek_v3")
MIXTURES = ("qwen3_moe", "mixtral", *LATENT)


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
    given: dict[str, Any] = sizes | rest | (FAMILIES | WITH_TOWER)[family] | changes
    return ModelSpec(family=family, **given)


@st.composite
def specs(draw, families=DENSE):
    family = draw(st.sampled_from(sorted(families)))
    num_kv_heads = draw(st.sampled_from([1, 2, 3, 4]))
    changes = {
        "hidden_size": draw(st.integers(1, 7)),
        "num_layers": draw(st.sampled_from([1, 2, 4, 6])),
        "num_heads": num_kv_heads * draw(st.sampled_from([1, 2, 3, 4])),
        "num_kv_heads": num_kv_heads,
        "head_dim": draw(st.sampled_from([2, 4])),
        "ffn_size": draw(st.sampled_from([12, 24])),
        "vocab_size": draw(st.integers(1, 300)),
        "tied": family in ("gemma2", "gemma3") or draw(st.booleans()),
    }
    if family in MIXTURES:
        changes |= draw(_mixtures(changes["num_layers"], family))
    if family in LATENT:
        changes |= draw(_latent(changes["num_heads"]))
    elif family not in ("qwen2", "mixtral"):
        bias = draw(st.booleans())
        changes |= {"qkv_bias": bias, "attention_out_bias": bias}
    return tiny(family, **changes)


@st.composite
def _mixtures(draw, num_layers, family):
    plain = 0 if family == "mixtral" else draw(st.sampled_from([0, 1, 3]))
    shared = draw(st.sampled_from([0, 12, 24])) if family in LATENT else 0
    return {
        "num_experts": draw(st.sampled_from([3, 4, 8, 12])),
        "expert_ffn_size": draw(st.sampled_from([12, 24])),
        "shared_ffn_size": shared,
        "first_moe_layer": min(plain, num_layers),
    }


@st.composite
def _latent(draw, num_heads):
    rope = draw(st.sampled_from([2, 4]))
    return {
        "num_kv_heads": num_heads,
        "q_lora_rank": draw(st.sampled_from([0, 12, 24])),
        "kv_lora_rank": 24 - rope,
        "rope_head_dim": rope,
        "nope_head_dim": draw(st.sampled_from([1, 3])),
        "v_head_dim": draw(st.sampled_from([1, 2])),
    }


def tp_sizes(spec):
    """Tensor parallel sizes that all systems accept, for experts too; Megatron cuts fused rows evenly."""
    rows = [spec.num_heads, spec.ffn_size, spec.shared_ffn_size, spec.expert_ffn_size, spec.q_lora_rank]
    if spec.kv_lora_rank:
        rows.append(spec.kv_lora_rank + spec.rope_head_dim)
    else:
        rows.append((spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim)
    kv = spec.num_kv_heads
    return [
        size
        for size in range(1, spec.num_heads + 1)
        if all(n % size == 0 for n in rows) and (kv % size == 0 or size % kv == 0)
    ]


def hf_tensors(spec, seed=0, dtype=torch.float32):
    """Random values under Hugging Face names."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (spec.vocab_size, spec.hidden_size),
        "model.norm.weight": (spec.hidden_size,),
    }
    if not spec.tied:
        shapes["lm_head.weight"] = (spec.vocab_size, spec.hidden_size)
    for layer in range(spec.num_layers):
        parts = _norm_shapes(spec) | _attention_shapes(spec) | _ffn_shapes(spec, layer)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def _norm_shapes(spec):
    names = ["input_layernorm", "post_attention_layernorm"]
    if spec.family.startswith("gemma"):
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes = {f"{name}.weight": (spec.hidden_size,) for name in names}
    if spec.qk_norm:
        shapes |= {f"self_attn.{x}_norm.weight": (spec.head_dim,) for x in "qk"}
    return shapes


def _attention_shapes(spec):
    hidden, heads = spec.hidden_size, spec.num_heads
    if spec.kv_lora_rank:
        kv, head = spec.kv_lora_rank, spec.nope_head_dim + spec.rope_head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "kv_a_proj_with_mqa.weight": (kv + spec.rope_head_dim, hidden),
            "kv_a_layernorm.weight": (kv,),
            "kv_b_proj.weight": (heads * (spec.nope_head_dim + spec.v_head_dim), kv),
            "o_proj.weight": (hidden, heads * spec.v_head_dim),
        }
        if rank := spec.q_lora_rank:
            shapes |= {"q_a_proj.weight": (rank, hidden), "q_a_layernorm.weight": (rank,)}
            shapes |= {"q_b_proj.weight": (heads * head, rank)}
        else:
            shapes["q_proj.weight"] = (heads * head, hidden)
        return {f"self_attn.{name}": shape for name, shape in shapes.items()}
    rows = {"q": heads * spec.head_dim, "k": spec.num_kv_heads * spec.head_dim}
    rows["v"] = rows["k"]
    shapes: dict[str, tuple[int, ...]] = {f"self_attn.{x}_proj.weight": (n, hidden) for x, n in rows.items()}
    shapes["self_attn.o_proj.weight"] = (hidden, rows["q"])
    if spec.qkv_bias:
        shapes |= {f"self_attn.{x}_proj.bias": (n,) for x, n in rows.items()}
    if spec.attention_out_bias:
        shapes["self_attn.o_proj.bias"] = (hidden,)
    return shapes


def _ffn_shapes(spec, layer):
    hidden = spec.hidden_size

    def gated(prefix, size, gate="gate_proj", up="up_proj", down="down_proj"):
        return {
            f"{prefix}.{gate}.weight": (size, hidden),
            f"{prefix}.{up}.weight": (size, hidden),
            f"{prefix}.{down}.weight": (hidden, size),
        }

    if not has_experts(spec, layer):
        return gated("mlp", spec.ffn_size)
    names = ("w1", "w3", "w2") if spec.family == "mixtral" else ()
    block = moe_block(spec)
    shapes: dict[str, tuple[int, ...]] = {f"{block}.gate.weight": (spec.num_experts, hidden)}
    for expert in range(spec.num_experts):
        shapes |= gated(f"{block}.experts.{expert}", spec.expert_ffn_size, *names)
    if spec.router_bias:
        shapes["mlp.gate.e_score_correction_bias"] = (spec.num_experts,)
    return shapes | (gated("mlp.shared_experts", spec.shared_ffn_size) if spec.shared_ffn_size else {})


def has_experts(spec, layer):
    return spec.num_experts > 0 and layer >= spec.first_moe_layer


def moe_block(spec):
    return "block_sparse_moe" if spec.family == "mixtral" else "mlp"
