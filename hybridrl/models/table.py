"""The vocabulary of a model table: what parameters a family has, and where each system keeps them.

A canonical parameter is what the systems agree on after fusing: q, k and v are the three row blocks of one
parameter, gate and up the two of another. Sizes are words ("hidden", "kv") for numbers of a ModelSpec.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Size = Literal["vocab", "hidden", "ffn", "q", "kv", "head"]
"""q and kv: number of heads times head_dim; head: head_dim."""

Cut = Literal["whole", "rows", "columns", "vocab", "grouped_qkv", "heads"]
"""How tensor parallelism cuts a parameter; layout/cuts.py has one function for each."""

Stage = Literal["first", "layers", "last"]
"""Pipeline stages that hold a parameter."""


class Site(NamedTuple):
    """Where one system keeps a parameter."""

    tensor: str
    """Name of the tensor; * is the layer, counted over the whole model."""

    cut: Cut


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
    """Tensor names in a Hugging Face checkpoint, one for each block."""

    megatron: Site
    sglang: Site
    stage: Stage = "layers"
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
    traits: Callable[[Mapping[str, Any]], dict[str, Any]]
    """config.json -> the fields of ModelSpec that only this family decides."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A line of a table with numbers for words."""

    name: str
    blocks: tuple[int, ...]
    cols: int | None
    row: Row

    @property
    def per_layer(self) -> bool:
        """Every layer has one; otherwise the model has one."""
        return self.row.stage == "layers"

    @property
    def num_rows(self) -> int:
        return sum(self.blocks)

    @property
    def num_elements(self) -> int:
        """Of the parameter once, that is on one layer."""
        return self.num_rows * (1 if self.cols is None else self.cols)
