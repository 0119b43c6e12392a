"""The weight swaps that benchmarks/reshard.py measures: real models, and who trains and serves them where.

Colocated engines fill the devices of the trainer in order, disaggregated ones those after them. Nodes have
eight devices.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from hybridrl.layout.base import Layout
from hybridrl.layout.fsdp import FSDPLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.layout.trainers import TrainerLayout
from hybridrl.layout.vllm import VLLMLayout
from hybridrl.models.published import published_config
from hybridrl.models.spec import ModelSpec, from_config
from hybridrl.reshard.plan import Job
from hybridrl.reshard.topology import Topology

NODE_SIZE = 8

_HUB = {
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2.5-72b": "Qwen/Qwen2.5-72B-Instruct",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
    "qwen3-235b-a22b": "Qwen/Qwen3-235B-A22B",
    "deepseek-v3": "deepseek-ai/DeepSeek-V3",
    "kimi-k2": "moonshotai/Kimi-K2-Instruct",
}
_PUBLISHED = {model: published_config(name) or {} for model, name in _HUB.items()}

CONFIGS: dict[str, dict[str, Any]] = _PUBLISHED | {
    # Nobody ships these two: every awkward case of a layout in two small models.
    "awkward-gqa": _PUBLISHED["qwen3-30b-a3b"]
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
    "awkward-mla": _PUBLISHED["deepseek-v3"]
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
    """Fields of `trainer`; Megatron's tensors are Transformer Engine's unless they say otherwise."""

    serve: Mapping[str, Any]
    """Fields of `server`, one engine."""

    num_engines: int = 1
    colocated: bool = True
    once_per_node: bool = False
    """Whether bytes reach a node once, as with engines on devices of their own, and are passed on inside."""

    trainer: type[TrainerLayout] = MegatronLayout
    server: type[SGLangLayout | VLLMLayout] = SGLangLayout

    @cached_property
    def source(self) -> TrainerLayout:
        fields: dict[str, Any] = dict(self.train)
        if self.trainer is MegatronLayout:
            fields = {"transformer_engine": True} | fields
        return self.trainer(spec(self.model), **fields)

    @cached_property
    def engine(self) -> Layout:
        return self.server(spec(self.model), **self.serve)

    @property
    def targets(self) -> tuple[Layout, ...]:
        return (self.engine,) * self.num_engines

    @property
    def topology(self) -> Topology:
        """As long as nobody permutes the engines' ranks."""
        partition = Topology.colocated if self.colocated else Topology.separate
        return partition(self.source.world_size, [engine.world_size for engine in self.targets], NODE_SIZE)

    @property
    def job(self) -> Job:
        return Job(self.source, self.targets, self.topology, once_per_node=self.once_per_node)

    @property
    def title(self) -> str:
        where = "separate" if self.once_per_node else "colocated" if self.colocated else "disaggregated"
        train, serve = (
            " ".join(f"{k}{v}" for k, v in fields.items() if type(v) is int)
            for fields in (self.train, self.serve)
        )
        train = train if self.trainer is MegatronLayout else f"fsdp {train}"
        serve = serve if self.server is SGLangLayout else f"vllm {serve}"
        fp8 = " fp8" if self.serve.get("fp8") else ""
        return f"{self.model}: {train} -> {serve}{fp8} x{self.num_engines}, {where}"


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

_IN_FP8 = {
    "W7": ({"tp": 8, "ep": 8, "fp8": True}, 8),
    "W8": ({"tp": 16, "ep": 16, "fp8": True}, 16),
    "W9": ({"tp": 16, "ep": 16, "fp8": True}, 16),
    "W10": ({"tp": 16, "ep": 16, "fp8": True}, 64),
}
"""Workload -> engines in block FP8 on as many devices: in larger ones, ranks would share blocks."""

FP8_WORKLOADS = tuple(
    replace(
        workload,
        name=f"{workload.name}q" if colocated else f"{workload.name}qs",
        serve=_IN_FP8[workload.name][0],
        num_engines=_IN_FP8[workload.name][1],
        colocated=colocated,
        once_per_node=not colocated,
    )
    for workload in WORKLOADS
    if workload.name in _IN_FP8
    for colocated in (True, False)
)
"""Into engines in block FP8, on the trainer's devices (q) and on devices of their own (qs)."""

SEPARATE_WORKLOADS = tuple(
    replace(workload, name=f"{workload.name}s", colocated=False, once_per_node=True)
    for workload in WORKLOADS
    if workload.name in _IN_FP8
)
"""Into engines in bf16 on devices of their own."""

VLLM_WORKLOADS = (
    Workload("V1", "qwen2.5-7b", {"tp": 2, "dp": 4}, {"tp": 1}, 8, server=VLLMLayout),
    Workload("V2", "qwen2.5-7b", {"tp": 4, "dp": 2}, {"tp": 2}, 4, server=VLLMLayout),
    Workload("V3", "qwen2.5-72b", {"tp": 8, "pp": 4}, {"tp": 8}, 4, server=VLLMLayout),
    Workload(
        "V4", "qwen3-30b-a3b", {"dp": 8, "ep": 8}, {"tp": 8, "expert_parallel": True}, server=VLLMLayout
    ),
    Workload("V5", "qwen3-30b-a3b", {"tp": 4, "dp": 2, "ep": 8}, {"tp": 2}, 4, server=VLLMLayout),
)
"""From Megatron into the other engine."""

FSDP_WORKLOADS = (
    Workload("F1", "qwen2.5-7b", {"dp": 8}, {"tp": 1}, 8, trainer=FSDPLayout),
    Workload("F2", "qwen2.5-7b", {"dp": 16}, {"tp": 2}, 4, colocated=False, trainer=FSDPLayout),
    Workload("F3", "qwen2.5-72b", {"dp": 32}, {"tp": 8}, 4, trainer=FSDPLayout),
    Workload("F4", "qwen2.5-72b", {"dp": 32}, {"tp": 8}, 4, trainer=FSDPLayout, server=VLLMLayout),
)
"""From the other trainer backend, and into the other engine; benchmarks/fsdp.py measures them."""


PLANNED = (*WORKLOADS, *SEPARATE_WORKLOADS, *FP8_WORKLOADS, *VLLM_WORKLOADS)
"""The workloads whose plans are measured."""


@cache
def spec(model: str) -> ModelSpec:
    """The layouts' view of a model of CONFIGS."""
    return from_config(CONFIGS[model], where=model)


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
