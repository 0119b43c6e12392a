"""The vocabulary of a model table: what parameters a family has, and where each system keeps them.

A canonical parameter is what the systems agree on after fusing: q, k and v are the three row blocks of one
parameter, gate and up the two of another. Sizes are words ("hidden", "kv") for numbers of a ModelSpec.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

Size = Literal[
    "vocab",
    "hidden",
    "ffn",
    "q",
    "kv",
    "head",
    "experts",
    "expert_ffn",
    "shared_ffn",
    "q_lora",
    "kv_lora",
    "kv_lora_rope",
    "mla_q",
    "mla_kv",
    "mla_out",
    "value",
]
"""q and kv: number of heads times head_dim; head: head_dim; shared_ffn: of all shared experts together.

Of latent attention: kv_lora_rope, the compressed k and v with the rotary key; mla_q, heads times (nope +
rope); mla_kv, heads times (nope + v); mla_out, heads times v. value: the one number of a value head.
"""

Sharding = Literal["whole", "rows", "columns", "vocab", "grouped_qkv", "heads", "gate_up"]
"""How tensor parallelism cuts a parameter; layout/cuts.py has one function for each."""

Group = Literal["embed", "attention", "ffn", "shared", "head"]
"""Engines with data parallelism cut each over a group of ranks of its own; shared: the shared experts."""

Stage = Literal["first", "layers", "last"]
"""Pipeline stages that hold a parameter."""

Kind = Literal["every", "dense", "moe"]
"""Layers that have a parameter: all, or those with a plain feed-forward, or those with experts."""


class Site(NamedTuple):
    """Where one system keeps a parameter."""

    tensor: str
    """Name of the tensor; * is the layer, counted over the whole model.

    # is the expert, counted over those that the holder has; without it one tensor holds them all, end to end.
    """

    sharding: Sharding
    blocks: tuple[int, ...] = ()
    """Which row blocks of the parameter, neighbours, this tensor keeps; (): all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a model table: a parameter, once or on every layer."""

    name: str
    """Canonical; * is the layer."""

    rows: tuple[Size, ...]
    """Row blocks, end to end; each is one tensor in a Hugging Face checkpoint."""

    cols: Size | None = None
    """None: a vector."""

    hf: tuple[str, ...]
    """Tensor names in a Hugging Face checkpoint, one for each block; # is the expert."""

    megatron: tuple[Site, ...]
    """Of Megatron's own modules."""

    transformer_engine: tuple[Site, ...] = ()
    """Of Megatron with Transformer Engine's modules, where that differs; (): as `megatron`."""

    engine: tuple[Site, ...]
    """Of SGLang."""

    vllm: tuple[Site, ...] = ()
    """Where vLLM differs from SGLang; (): it does not."""

    stage: Stage = "layers"
    group: Group = "ffn"
    kind: Kind = "every"
    per_expert: bool = False
    """Every expert has one: `rows` and `cols` are those of one expert."""

    when: str = ""
    """Field or property of ModelSpec that must be true for the model to have this parameter; "": always."""

    tied_copy: Site | None = None
    """A tied model's second copy on Megatron's last pipeline stage, where that is not the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model table: one file in models/families."""

    architecture: str
    """As config.json names it."""

    rows: tuple[Row, ...]
    activation: str = "silu"
    """Of the gate, as config.json names it."""

    dp_attention: bool = False
    """SGLang can copy the attention of this family instead of cutting it over all ranks."""

    traits: Callable[[Mapping[str, Any]], dict[str, Any]]
    """config.json -> the fields of ModelSpec that only this family decides."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A line of a table with numbers for words."""

    name: str
    blocks: tuple[int, ...]
    cols: int | None
    row: Row

    layers: range
    """That have one; range(1) for a parameter that the model has once."""

    experts: range
    """range(1) for a parameter that is not an expert's."""

    @property
    def per_layer(self) -> bool:
        """Layers have one; otherwise the model has one."""
        return self.row.stage == "layers"

    @property
    def num_rows(self) -> int:
        """Of one expert, if experts have it."""
        return sum(self.blocks)

    @property
    def num_elements(self) -> int:
        """Over all its layers and experts."""
        one = self.num_rows * (1 if self.cols is None else self.cols)
        return one * len(self.layers) * len(self.experts)

    def checkpoint_tensors(self) -> Iterator[tuple[str, int]]:
        """(name, rows) of the tensors of a Hugging Face checkpoint that hold it."""
        for layer in self.layers:
            for expert in self.experts:
                for name, rows in zip(self.row.hf, self.blocks, strict=True):
                    yield name.replace("*", str(layer)).replace("#", str(expert)), rows

    def keep(self, blocks: tuple[int, ...]) -> tuple[int, "Parameter"]:
        """(rows before them, the parameter with these row blocks only); (): as it is."""
        if not blocks:
            return 0, self
        sizes = tuple(self.blocks[i] for i in blocks)
        return sum(self.blocks[: blocks[0]]), replace(self, blocks=sizes)
