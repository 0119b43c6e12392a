"""Configs of small models of every family, as SGLang reads them, and orders of programs that load them."""

import copy
from typing import Any

import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 151,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
}
_GROUPED: dict[str, Any] = SIZES | {"num_key_value_heads": 2}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_YARN |= {"original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
_LATENT: dict[str, Any] = SIZES | _EXPERTS
_LATENT |= {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 8,
}
_LATENT |= {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
_LATENT |= {
    "num_key_value_heads": 8,
    "n_group": 1,
    "topk_group": 1,
    "moe_layer_freq": 1,
    "rope_parameters": _YARN,
}

# What SGLang reads and the configs of transformers have no fields for.
_HEADS: dict[str, Any] = {"head_dim": 16}
_SOFTMAX: dict[str, Any] = {"scoring_func": "softmax"}
_SIGMOID: dict[str, Any] = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
_GELU: dict[str, Any] = {"hidden_act": "gelu_pytorch_tanh"}

DENSE = ("llama", "llama-bias-tied", "qwen2", "qwen3-tied", "qwen3-bias", "gemma2", "gemma3")
CONFIGS = {
    "llama": ("LlamaForCausalLM", transformers.LlamaConfig(**_GROUPED)),
    "llama-bias-tied": (
        "LlamaForCausalLM",
        transformers.LlamaConfig(**_GROUPED, attention_bias=True, tie_word_embeddings=True),
    ),
    "qwen2": ("Qwen2ForCausalLM", transformers.Qwen2Config(**_GROUPED)),
    "qwen3-tied": (
        "Qwen3ForCausalLM",
        transformers.Qwen3Config(**_GROUPED, head_dim=16, tie_word_embeddings=True),
    ),
    "qwen3-bias": (
        "Qwen3ForCausalLM",
        transformers.Qwen3Config(**_GROUPED, head_dim=16, attention_bias=True),
    ),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        transformers.Qwen3MoeConfig(**_GROUPED, **_EXPERTS, **_HEADS, num_experts=8),
    ),
    "mixtral": (
        "MixtralForCausalLM",
        transformers.MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2),
    ),
    "deepseek-v2": (
        "DeepseekV2ForCausalLM",
        transformers.DeepseekV2Config(**_LATENT, **_SOFTMAX, q_lora_rank=24),
    ),
    "deepseek-v2-lite": (
        "DeepseekV2ForCausalLM",
        transformers.DeepseekV2Config(**_LATENT, **_SOFTMAX, q_lora_rank=None),
    ),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        transformers.DeepseekV3Config(**_LATENT, **_SIGMOID, q_lora_rank=24),
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        transformers.Gemma2Config(**_GROUPED, **_GELU, head_dim=16),
    ),
    "gemma3": ("Gemma3ForCausalLM", transformers.Gemma3TextConfig(**_GROUPED, head_dim=16)),
}
"""Name -> (architecture, config)."""

_BLOCKS: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
}
_LATENT_BLOCKS: dict[str, Any] = _BLOCKS | {
    "num_key_value_heads": 4,
    "head_dim": 64,  # of the rotary part, as transformers has it
    "q_lora_rank": 384,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
IN_BLOCKS = {
    "qwen2": _BLOCKS,
    "qwen3-tied": _BLOCKS,
    "llama": _BLOCKS,
    "gemma2": _BLOCKS,
    "gemma3": _BLOCKS,
    "qwen3-moe": _BLOCKS,
    "mixtral": _BLOCKS | {"hidden_size": 512},  # SGLang divides it by the heads
    "deepseek-v2": _LATENT_BLOCKS,
    "deepseek-v3": _LATENT_BLOCKS,
}
"""Model -> the sizes with which it divides into FP8 blocks."""


def cases(sizes):
    """(model, one of its sizes) of {model: "TP[:EP[:DP]],..."}."""
    return [(model, size) for model, every in sizes.items() for size in every.split(",")]


def orders(root, sizes, *, in_blocks=False):
    """Write the configs of models into folders of `root`; what a program that loads them is told.

    Args:
        in_blocks: with sizes that divide into FP8 blocks.
    """
    for name in sizes:
        architecture, config = CONFIGS[name]
        config.architectures = [architecture]
        if in_blocks:
            config = copy.deepcopy(config)
            config.update(IN_BLOCKS[name])
        config.save_pretrained(root / name)
    return [f"{root / name}={every}" for name, every in sizes.items()]
