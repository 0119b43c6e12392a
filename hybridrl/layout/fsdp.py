"""FSDP2 shards of a Hugging Face model: every rank has a flat range of rows of each checkpoint tensor."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from hybridrl.errors import ConfigError, LayoutError, ModelError
from hybridrl.layout.base import Holding
from hybridrl.layout.runs import Run
from hybridrl.layout.sharding import Place, shard
from hybridrl.layout.trainers import CheckpointTensors
from hybridrl.models.spec import ModelSpec
from hybridrl.models.table import Parameter, Row, Site

FAMILIES = ("llama", "qwen2", "qwen3")
"""Model families whose transformers modules are trained: one tensor of a module is one of the checkpoint."""

ROPE_SCALINGS = ("linear", "llama3", "yarn")
"""Kinds of rotary scaling whose angles depend on the position alone, as packed sequences need it."""


@dataclass(frozen=True)
class FSDPLayout(CheckpointTensors):
    """All `dp` ranks share the rows of every tensor as torch.chunk does: equal parts, but the last is
    shorter, or several are empty.

    A rank without rows does not have the tensor. A tied model has no lm_head.weight.
    """

    PACKAGES = ("transformers",)
    shards_weights = True

    def __post_init__(self) -> None:
        sizes = {axis: getattr(self, axis) for axis in ("tp", "cp", "pp", "ep", "etp", "vpp")}
        if found := [axis for axis, size in sizes.items() if size > 1]:
            raise LayoutError(
                f"{', '.join(f'{a} = {sizes[a]}' for a in found)}: the FSDP backend shards over dp alone",
                fix=f"dp = {self.world_size}, and leave {', '.join(found)} out",
            )
        if self.stage_layers:
            raise LayoutError(
                "stage_layers: the FSDP backend has no pipeline stages", fix="leave stage_layers out"
            )

    @classmethod
    def of(cls, spec: ModelSpec, *, on_gpu: bool, **sizes: Any) -> Self:
        return cls(spec, **sizes)

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
        lacking = {
            "lora": (actor.lora is not None, "no adapters"),
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
    def shape(self) -> str:
        return f"fsdp dp{self.dp}"

    def num_parts(self, row: Row, site: Site) -> int:
        return self.dp

    def place(self, parameters: Iterable[Parameter]) -> Iterator[Holding]:
        for parameter in parameters:
            for site in self.sites(parameter.row):
                yield from self._chunk(parameter, site)

    def _chunk(self, parameter: Parameter, site: Site) -> Iterator[Holding]:
        whole = shard(site, parameter, Place(0, 1, self.spec, self.spec.vocab_size))
        (at, num_rows, _), part = whole.rows[0], -(-whole.num_rows // self.dp)
        for number, first in enumerate(range(0, num_rows, part)):
            rows = min(part, num_rows - first)
            held = whole._replace(num_rows=rows, rows=(Run(at + first, rows, 0),))
            rank = range(number, number + 1)
            yield Holding.of(parameter, site.tensor, held, parameter.layers, rank, parameter.experts)


LAYOUT = FSDPLayout
