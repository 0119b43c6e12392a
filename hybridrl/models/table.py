"""The types of a model table: which parameters a family has, and where each system keeps them.

A canonical parameter is a matrix that all systems agree on once fused tensors are treated as one: q, k and v
are the three row blocks of one parameter, gate and up the two of another. Sizes are words ("hidden", "kv")
that stand for numbers of a ModelSpec.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from hybridrl.models.vision import Colour, VisionSpec

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
"""Size words. q and kv: number of heads times head_dim. head: head_dim. shared_ffn: all shared experts.

For latent attention: kv_lora_rope is the compressed k and v with the rotary key, mla_q is heads times (nope +
rope), mla_kv is heads times (nope + v), mla_out is heads times v. value: the single output of a value head.
"""

Sharding = Literal["whole", "rows", "columns", "vocab", "grouped_qkv", "heads", "gate_up"]
"""How tensor parallelism shards a parameter; layout/sharding.py has one function for each."""

Group = Literal["embed", "attention", "ffn", "shared", "head"]
"""Engines with data parallelism may shard each group over different ranks; shared: the shared experts."""

Stage = Literal["first", "layers", "last"]
"""Pipeline stages that hold a parameter."""

Kind = Literal["every", "dense", "moe"]
"""Layers that have a parameter: all layers, those with a dense feed-forward, or those with experts."""


class Site(NamedTuple):
    """The tensor in which one system keeps a parameter."""

    tensor: str
    """Tensor name. * stands for the layer, counted over the whole model.

    # stands for the expert, counted over those of the holder. Without #, one tensor holds all experts, end to
    end.
    """

    sharding: Sharding
    blocks: tuple[int, ...] = ()
    """Indices of the contiguous row blocks of the parameter that this tensor has; (): all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a model table: a parameter that the model has once, or on every layer of a kind."""

    name: str
    """Canonical name; * stands for the layer."""

    rows: tuple[Size, ...]
    """Sizes of the row blocks, end to end. Each block is one tensor in a Hugging Face checkpoint."""

    cols: Size | None = None
    """Number of columns; None: the parameter is a vector."""

    hf: tuple[str, ...]
    """Tensor names in a Hugging Face checkpoint, one per block; # stands for the expert."""

    megatron: tuple[Site, ...]
    """Tensors of Megatron's own modules."""

    transformer_engine: tuple[Site, ...] = ()
    """Tensors of Megatron with Transformer Engine's modules; (): the same as `megatron`."""

    engine: tuple[Site, ...]
    """Tensors of SGLang."""

    vllm: tuple[Site, ...] = ()
    """Tensors of vLLM; (): the same as SGLang's."""

    stage: Stage = "layers"
    group: Group = "ffn"
    kind: Kind = "every"
    per_expert: bool = False
    """Whether every expert has the parameter; `rows` and `cols` are then those of one expert."""

    when: str = ""
    """Field or property of ModelSpec that must be true for a model to have this parameter; "": always."""

    tied_copy: Site | None = None
    """Second copy of a tied parameter on Megatron's last pipeline stage, if that is not also the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """What a family says about its vision tower."""

    parameters: Callable[[VisionSpec], Iterator["Parameter"]]
    """Sizes of a tower -> its canonical parameters, in the order of its modules."""

    defaults: Mapping[str, Any]
    """Values of vision_config's keys that are absent, as transformers reads the architecture."""

    mean: Colour
    std: Colour


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model table: one file in models/families."""

    architecture: str
    """Architecture name in config.json."""

    rows: tuple[Row, ...]
    activation: str = "silu"
    """Activation of the gate, as config.json names it."""

    dp_attention: bool = False
    """Whether SGLang supports data-parallel attention for this family."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of config.json keys that are absent, as transformers reads the architecture."""

    traits: Callable[[Mapping[str, Any]], dict[str, Any]]
    """config.json -> the fields of ModelSpec that depend on the family."""

    tower: Tower | None = None
    """The vision tower; None: the family reads text only. `traits` gets the config of the text model."""

    fused_experts: bool = False
    """Whether a checkpoint has all experts of a layer in two tensors, see models/fused_experts.py."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A row of a model table with numbers in place of size words."""

    name: str
    blocks: tuple[int, ...]
    cols: int | None
    row: Row

    layers: range
    """Layers that have the parameter; range(1) for a parameter that the model has once."""

    experts: range
    """Experts that have the parameter; range(1) for a parameter without experts."""

    shape: tuple[int, ...] = ()
    """Shape of its tensor if that has more than two axes: the rows are all axes but the last. The parameter
    has one tensor then, which is whole everywhere."""

    @property
    def per_layer(self) -> bool:
        """Whether each layer has the parameter; otherwise the model has it once."""
        return self.row.stage == "layers"

    @property
    def num_rows(self) -> int:
        """Number of rows, of one expert if experts have the parameter."""
        return sum(self.blocks)

    @property
    def num_elements(self) -> int:
        """Number of elements over all layers and experts."""
        one = self.num_rows * (1 if self.cols is None else self.cols)
        return one * len(self.layers) * len(self.experts)

    def checkpoint_tensors(self) -> Iterator[tuple[str, int]]:
        """(name, rows) of the tensors in a Hugging Face checkpoint that hold the parameter."""
        for layer in self.layers:
            for expert in self.experts:
                for name, rows in zip(self.row.hf, self.blocks, strict=True):
                    yield name.replace("*", str(layer)).replace("#", str(expert)), rows

    def keep(self, blocks: tuple[int, ...]) -> tuple[int, "Parameter"]:
        """(number of rows before these blocks, the parameter with only these row blocks); (): all blocks."""
        if not blocks:
            return 0, self
        sizes = tuple(self.blocks[i] for i in blocks)
        return sum(self.blocks[: blocks[0]]), replace(self, blocks=sizes)


def is_norm(parameter: Parameter) -> bool:
    """Whether a vector is the weight of a norm, and not a bias."""
    name = parameter.name.removesuffix(".weight")
    return parameter.cols is None and name.endswith("norm")
