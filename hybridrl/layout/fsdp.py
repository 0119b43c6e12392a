"""Shards of a transformers model under FSDP2: rows of each tensor over ranks, after tensor parallelism.

Ranks count tp fastest, then cp, then dp, as Megatron's do. Context- and data-parallel ranks together share
the rows; with `shard`, only so many neighbours of them do, and each such group holds the whole model (HSDP).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, Self

from hybridrl.errors import ConfigError, LayoutError, ModelError
from hybridrl.layout.base import Holding
from hybridrl.layout.runs import Run, Runs
from hybridrl.layout.sharding import Held, Place, divisors, refuse_unfit, refuse_unfit_experts, shard
from hybridrl.layout.trainers import CheckpointTensors
from hybridrl.models.spec import ModelSpec
from hybridrl.models.table import Parameter, Row, Sharding, Site

FAMILIES = (
    "llama",
    "qwen2",
    "qwen3",
    "mixtral",
    "qwen3_moe",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
)
"""Model families whose transformers modules are trained."""

ROPE_SCALINGS = ("linear", "llama3", "yarn")
"""Kinds of rotary scaling whose angles depend on the position alone, as packed sequences need it."""


@dataclass(frozen=True)
class FSDPLayout(CheckpointTensors):
    """Tensor parallelism shards a tensor first. The ranks of a shard group then share the rows of that part
    as torch.chunk does: equal parts, but the last is shorter, or several are empty.

    A rank without rows does not have the tensor. A tied model has no lm_head.weight. The experts of a layer
    are two tensors, of which each rank has whole experts. The vocabulary is padded to a multiple of tp.
    Tensor parallelism leaves a vision tower whole.
    """

    PACKAGES = ("transformers",)
    CERTIFIED = ("dp2", "dp3", "tp2", "cp2keys", "cp2heads", "dp4shard2", "tp2cp2", "tp2dp2", "cp2dp2")
    shards_weights = True

    def __post_init__(self) -> None:
        self._refuse_axes()
        if self.tp > 1 and not self.spec.has_table:
            raise LayoutError(
                f"tp = {self.tp}: nothing says how a model without a table is split into heads",
                fix=f"tp = 1, and dp = {self.dp * self.tp}",
            )
        refuse_unfit(self.spec, self.tp)
        refuse_unfit_experts(self.spec, 1, self.tp)
        if self.spec.num_kv_heads * self.spec.head_dim % self.tp:
            raise LayoutError(
                f"tp = {self.tp} does not divide the {self.spec.num_kv_heads * self.spec.head_dim} rows of k",
                fix="lower tp",
            )
        if self.cp * self.dp % self.num_shards:
            raise LayoutError(
                f"shard = {self.shard} does not divide the {self.cp * self.dp} ranks of cp {self.cp} x "
                f"dp {self.dp}",
                fix=f"use one of {', '.join(map(str, divisors(self.cp * self.dp)))}, or leave shard out",
            )

    def _refuse_axes(self) -> None:
        sizes = {axis: getattr(self, axis) for axis in ("pp", "ep", "etp", "vpp")}
        if found := [axis for axis, size in sizes.items() if size > 1]:
            raise LayoutError(
                f"{', '.join(f'{a} = {sizes[a]}' for a in found)}: the FSDP backend has tp, cp, dp and shard",
                fix=f"dp = {self.dp * self.pp}, and leave {', '.join(found)} out",
            )
        if self.stage_layers:
            raise LayoutError(
                "stage_layers: the FSDP backend has no pipeline stages", fix="leave stage_layers out"
            )

    @classmethod
    def of(cls, spec: ModelSpec, *, on_gpu: bool, **sizes: Any) -> Self:
        return cls(spec, **sizes)

    @classmethod
    def refuse_keys(cls, model: ModelSpec, parallel: Any) -> None:
        if parallel.sp:
            raise LayoutError(
                "sp = true: the FSDP backend has no sequence parallelism",
                fix="leave sp out, or actor.backend: fsdp",
            )
        if parallel.cp_exchange == "heads" and model.num_kv_heads % (parallel.tp * parallel.cp):
            raise LayoutError(
                f"cp_exchange = heads gives each rank some of the {model.num_kv_heads} key-value heads, "
                f"tp x cp = {parallel.tp * parallel.cp} does not divide them",
                fix="set cp_exchange: keys",
            )

    @classmethod
    def refuse_unbuildable(cls, model: ModelSpec, *, where: str) -> None:
        kind = (model.rope_scaling or {}).get("rope_type")
        reasons = {
            f"the FSDP backend trains {', '.join(FAMILIES)} and models without a table, this model is "
            f"{model.family}": model.has_table and model.family not in FAMILIES,
            "a bias on the attention output is not supported": model.attention_out_bias,
            "layers with a window are not supported by the FSDP backend": bool(model.windowed_layers),
            f"rope scaling {kind!r} is not supported": kind not in (None, *ROPE_SCALINGS),
        }
        for reason, holds in reasons.items():
            if holds:
                raise ModelError(reason, where=where, fix="remove actor.backend, or use another model")

    @classmethod
    def refuse_options(cls, actor: Any) -> None:
        super().refuse_options(actor)
        lacking = {
            "fp8": (actor.fp8 != "none", "no FP8 products"),
            "precision": (actor.precision == "fp16", "no loss scale for fp16"),
            "recompute": (actor.recompute == "selective", "no recomputation of attention alone"),
        }
        fixes = {"precision": "actor.precision: bf16", "recompute": "actor.recompute: full"}
        for key, (is_set, lack) in lacking.items():
            if is_set:
                raise ConfigError(
                    f"actor.{key} = {getattr(actor, key)}: the FSDP backend has {lack}",
                    where=f"actor.{key}",
                    fix=fixes.get(key, f"remove actor.{key}, or actor.backend: fsdp"),
                )

    @property
    def num_shards(self) -> int:
        """Ranks that share each tensor-parallel part of the weights."""
        return self.shard or self.cp * self.dp

    @property
    def padded_vocab(self) -> int:
        """Rows of the padded vocabulary over all tensor-parallel ranks."""
        return -(-self.spec.vocab_size // self.tp) * self.tp

    @property
    def shape(self) -> str:
        sizes = {axis: getattr(self, axis) for axis in ("tp", "cp", "shard") if getattr(self, axis) > 1}
        return " ".join(["fsdp", *(f"{axis}{size}" for axis, size in sizes.items()), f"dp{self.dp}"])

    def sites(self, row: Row) -> tuple[Site, ...]:
        sharding = self._sharding(row)
        names = [_in_module(name, has_tower=self.spec.vision is not None) for name in row.hf]
        if row.per_expert:
            return (Site(_fused(names), sharding),)
        return tuple(Site(name, sharding, (block,)) for block, name in enumerate(names))

    def at(self, row: Row, name: str, *sites: Site) -> Row:
        alike = row.engine[0]._replace(sharding=sites[0].sharding)
        return replace(row, name=name, hf=tuple(site.tensor for site in sites), engine=(alike,))

    def _sharding(self, row: Row) -> Sharding:
        """How tensor parallelism shards each tensor of a row: as an engine shards the fused one, but q, k and
        v are tensors of their own, whose rows are split evenly, as are those of gate and up."""
        found = row.engine[0].sharding
        return "rows" if found in ("heads", "gate_up") else found

    def num_parts(self, row: Row, site: Site) -> int:
        return self.num_shards * (1 if site.sharding == "whole" else self.tp)

    def place(self, parameters: Iterable[Parameter]) -> Iterator[Holding]:
        for parameter in parameters:
            for site in self.sites(parameter.row):
                for tp_rank in range(self.tp):
                    yield from self._chunks(parameter, site, tp_rank)

    def _chunks(self, parameter: Parameter, site: Site, tp_rank: int) -> Iterator[Holding]:
        """The holdings of one tensor-parallel rank, one for each part of the rows, or of the experts."""
        size = 1 if site.sharding == "whole" else self.tp
        held = shard(site, parameter, Place(tp_rank % size, size, self.spec, self.padded_vocab))
        stacked = parameter.row.per_expert
        inner = prod(parameter.shape[1:-1])  # rows that belong to one index of the first axis
        length = len(parameter.experts) if stacked else held.num_rows // inner
        part = -(-length // self.num_shards)
        for number, first in enumerate(range(0, length, part)):
            here = range(first, min(first + part, length))
            ranks = range(tp_rank + self.tp * number, self.world_size, self.tp * self.num_shards)
            experts = parameter.experts[here.start : here.stop] if stacked else parameter.experts
            mine = held if stacked else _rows(held, range(here.start * inner, here.stop * inner))
            shape = parameter.shape and (len(here), *parameter.shape[1:])
            own = replace(parameter, shape=shape)
            yield Holding.of(own, site.tensor, mine, parameter.layers, ranks, experts)


def exchange_of(model: ModelSpec, parallel: Any) -> Literal["heads", "keys"]:
    """How context-parallel ranks compute attention together: as the config says, or the way that sends less.

    With heads each rank sends queries, keys, values and outputs once, with keys it sends keys and values to
    every other rank.

    Args:
        parallel: config.training.TrainParallel.
    """
    if parallel.cp_exchange:
        return parallel.cp_exchange
    divides = model.num_kv_heads % (parallel.tp * parallel.cp) == 0
    less = model.num_heads + model.num_kv_heads < parallel.cp * model.num_kv_heads
    return "heads" if divides and less else "keys"


def _rows(held: Held, local: range) -> Held:
    """Some of a tensor's rows."""
    return held._replace(num_rows=len(local), rows=_between(held.rows, local))


def _between(rows: Runs, local: range) -> Runs:
    """The map of some of a tensor's rows, which are counted from the first of them."""
    found = []
    for run in rows:
        first, end = max(run.local, local.start), min(run.local + run.length, local.stop)
        if first < end:
            found.append(Run(run.at + first - run.local, end - first, first - local.start))
    return tuple(found)


def _fused(names: Sequence[str]) -> str:
    """The tensor of a transformers module that holds a parameter of all experts of a layer.

    Args:
        names: of its tensors for one expert.
    """
    block, _, _ = names[0].partition(".#.")
    return f"{block}.{'gate_up_proj' if len(names) == 2 else 'down_proj'}"


def _in_module(name: str, *, has_tower: bool) -> str:
    """The name of a tensor of a checkpoint in the modules of transformers, which call Mixtral's block mlp,
    and have the text model beside the tower, inside `model`."""
    name = name.replace(".block_sparse_moe.", ".mlp.")
    if not has_tower or name.startswith(("model.visual.", "model.language_model.", "lm_head.")):
        return name
    return (
        f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)
    )


LAYOUT = FSDPLayout
