"""The weight swaps that benchmarks/reshard.py measures: real models, and who trains and serves them where.

Colocated engines fill the devices of the trainer in order, disaggregated ones those after them. Nodes have
eight devices.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hybridrl.layout.base import Layout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import ModelSpec, read
from hybridrl.reshard.topology import Topology

NODE_SIZE = 8

_QWEN = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}
_QWEN3_MOE = _QWEN | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "vocab_size": 151936,
    "head_dim": 128,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "attention_bias": False,
}
_DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "vocab_size": 129280,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 163840,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_QWEN25_7B = _QWEN | {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2.5-7b": _QWEN25_7B,
    "qwen2.5-72b": _QWEN25_7B
    | {
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "qwen3-30b-a3b": _QWEN3_MOE
    | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
    },
    "qwen3-235b-a22b": _QWEN3_MOE
    | {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
    },
    "deepseek-v3": _DEEPSEEK_V3,
    "kimi-k2": _DEEPSEEK_V3
    | {
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "n_routed_experts": 384,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 2.827,
        "vocab_size": 163840,
        "rope_theta": 50000.0,
        "max_position_embeddings": 131072,
    },
    # Nobody ships these two: every awkward case of a layout in two small models.
    "awkward-gqa": _QWEN3_MOE
    | {
        "vocab_size": 50021,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "moe_intermediate_size": 512,
        "num_hidden_layers": 11,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "num_experts": 16,
        "tie_word_embeddings": True,
    },
    "awkward-mla": _DEEPSEEK_V3
    | {
        "vocab_size": 50021,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "moe_intermediate_size": 512,
        "num_hidden_layers": 11,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "n_routed_experts": 16,
        "first_k_dense_replace": 2,
    },
}
"""config.json of every model, without what no layout reads."""


@dataclass(frozen=True)
class Workload:
    name: str
    model: str
    train: Mapping[str, Any]
    """Fields of MegatronLayout; its tensors are Transformer Engine's unless they say otherwise."""

    serve: Mapping[str, Any]
    """Fields of SGLangLayout, one engine."""

    num_engines: int = 1
    colocated: bool = True

    @cached_property
    def source(self) -> MegatronLayout:
        fields: dict[str, Any] = {"transformer_engine": True} | dict(self.train)
        return MegatronLayout(spec(self.model), **fields)

    @cached_property
    def engine(self) -> Layout:
        return SGLangLayout(spec(self.model), **self.serve)

    @property
    def targets(self) -> tuple[Layout, ...]:
        return (self.engine,) * self.num_engines

    @property
    def topology(self) -> Topology:
        """As long as nobody permutes the engines' ranks."""
        deal = Topology.colocated if self.colocated else Topology.apart
        return deal(self.source.world_size, [engine.world_size for engine in self.targets], NODE_SIZE)

    @property
    def title(self) -> str:
        where = "colocated" if self.colocated else "disaggregated"
        train, serve = (
            " ".join(f"{k}{v}" for k, v in fields.items() if type(v) is int)
            for fields in (self.train, self.serve)
        )
        return f"{self.model}: {train} -> {serve} x{self.num_engines}, {where}"


WORKLOADS = (
    Workload("W1", "qwen2.5-7b", {"tp": 2, "dp": 4}, {"tp": 1}, 8),
    Workload("W2", "qwen2.5-7b", {"tp": 4, "dp": 2}, {"tp": 2}, 4),
    Workload("W3", "qwen2.5-72b", {"tp": 8, "pp": 4}, {"tp": 8}, 4),
    Workload("W4", "qwen3-30b-a3b", {"dp": 8, "ep": 8}, {"tp": 8, "ep": 8}),
    Workload("W5", "qwen3-30b-a3b", {"tp": 4, "dp": 2, "ep": 8}, {"tp": 2, "ep": 2}, 4),
    Workload("W6", "qwen3-30b-a3b", {"tp": 4, "dp": 4, "ep": 8}, {"tp": 8, "ep": 8}, 2, colocated=False),
    Workload(
        "W7",
        "qwen3-235b-a22b",
        {"tp": 4, "pp": 4, "dp": 4, "ep": 16, "stage_layers": (24, 24, 23, 23)},
        {"tp": 8, "ep": 8},
        8,
    ),
    Workload(
        "W8",
        "deepseek-v3",
        {"pp": 16, "dp": 16, "ep": 16, "stage_layers": (4,) * 13 + (3,) * 3},
        {"tp": 32, "ep": 32},
        8,
    ),
    Workload(
        "W9",
        "kimi-k2",
        {"tp": 8, "pp": 8, "dp": 4, "ep": 32, "stage_layers": (8,) * 5 + (7,) * 3},
        {"tp": 32, "ep": 32},
        8,
    ),
    Workload(
        "W10",
        "kimi-k2",
        {"tp": 8, "pp": 8, "dp": 16, "ep": 32, "stage_layers": (8,) * 5 + (7,) * 3},
        {"tp": 16, "ep": 16},
        64,
    ),
    # No model is both grouped-query and latent: the adversarial workload is two.
    Workload(
        "W11a",
        "awkward-gqa",
        {"tp": 4, "pp": 2, "dp": 2, "cp": 2, "ep": 4, "etp": 2, "vpp": 2, "stage_layers": (2, 3, 3, 3)},
        {"tp": 8, "ep": 4, "interleave": 16},
        4,
    ),
    Workload(
        "W11b",
        "awkward-mla",
        {
            "tp": 4,
            "pp": 2,
            "dp": 2,
            "cp": 2,
            "ep": 4,
            "etp": 2,
            "vpp": 2,
            "stage_layers": (2, 3, 3, 3),
            "transformer_engine": False,
        },
        {"tp": 8, "ep": 4, "interleave": 16},
        4,
    ),
)


@cache
def spec(model: str) -> ModelSpec:
    """The layouts' view of a model of CONFIGS."""
    return read_config(CONFIGS[model])


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    """As from a model folder."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return read(folder)


def shrunk(model: str, *, divide: int, layers: int, vocab: int) -> ModelSpec:
    """The same heads, narrower and fewer layers: for swaps that move real bytes on a CPU.

    Args:
        vocab: rows; Megatron's own resharding needs a number that both layouts pad to the same.
    """
    full = spec(model)
    return replace(
        full,
        num_layers=layers,
        hidden_size=full.hidden_size // divide,
        head_dim=full.head_dim // divide,
        ffn_size=full.ffn_size // divide,
        vocab_size=vocab,
    )
