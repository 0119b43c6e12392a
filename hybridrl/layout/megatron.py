"""Megatron-core shards for every kind of parallelism except FSDP.

Ranks count tp fastest, then cp, dp, pp. For experts, the ranks of a pipeline stage are counted differently:
etp fastest, then ep, then the replicas of an expert. Context-parallel ranks hold the same weights, so they
are replicas.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Self

from hybridrl.errors import ConfigError, LayoutError, ModelError
from hybridrl.layout.base import Holding, common_range
from hybridrl.layout.sharding import Place, divisors, refuse_unfit, refuse_unfit_experts, shard
from hybridrl.layout.trainers import TrainerLayout
from hybridrl.models.spec import ModelSpec
from hybridrl.models.table import Parameter, Row, Site

ROPE_SCALINGS = ("linear", "llama3", "yarn")
"""Kinds of rotary scaling that the layers support, as config.json names them."""


@dataclass(frozen=True)
class MegatronLayout(TrainerLayout):
    """The embedding is on the first pipeline stage, the output layer on the last.

    Our default of etp is 1; Megatron's is tp.
    """

    PACKAGES = ("megatron-core",)

    vocab_multiple: int = 128
    """The vocabulary is padded to a multiple of this times tp (Megatron's make_vocab_size_divisible_by)."""

    transformer_engine: bool = False
    """Whether the modules are Transformer Engine's, with grouped experts, instead of Megatron's own."""

    def __post_init__(self) -> None:
        if self.shard:
            raise LayoutError(
                f"shard = {self.shard}: Megatron does not share weights over ranks",
                fix="leave shard out, or set actor.backend: fsdp",
            )
        refuse_unfit(self.spec, self.tp)
        refuse_unfit_experts(self.spec, self.ep, self.etp)
        self._refuse_uneven_rows()
        self._refuse_uneven_layers()
        self._refuse_scattered_features()
        if self._stage_size % (self.ep * self.etp):
            raise LayoutError(
                f"ep = {self.ep} times etp = {self.etp} does not divide the {self._stage_size} ranks "
                f"of a pipeline stage (tp {self.tp} x cp {self.cp} x dp {self.dp})",
                fix="lower ep or raise dp",
            )

    def _refuse_uneven_rows(self) -> None:
        """
        Raises:
            LayoutError: tp does not divide the rows of a tensor that Megatron shards without regard to heads.
        """
        spec = self.spec
        if not spec.latent:
            sizes = {"fused q, k and v": (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim}
        elif self.transformer_engine:
            sizes = {}
        else:
            down = spec.kv_lora_rank + spec.rope_head_dim
            sizes = {"compressed q": spec.q_lora_rank, "compressed k and v": down}
        for what, rows in sizes.items():
            if rows % self.tp:
                raise LayoutError(f"tp = {self.tp} does not divide the {rows} rows of {what}", fix="lower tp")

    def _refuse_uneven_layers(self) -> None:
        chunks, num_layers = self.pp * self.vpp, self.spec.num_layers
        if not self.stage_layers and num_layers % chunks:
            named = f"pp = {self.pp}" + (f" times vpp = {self.vpp}" if self.vpp > 1 else "")
            raise LayoutError(
                f"{named} does not divide the {num_layers} layers",
                fix=f"use one of {', '.join(map(str, divisors(num_layers)))}, or set stage_layers",
            )
        if self.stage_layers and (len(self.stage_layers) != chunks or sum(self.stage_layers) != num_layers):
            raise LayoutError(
                f"stage_layers {list(self.stage_layers)} has {len(self.stage_layers)} chunks and "
                f"{sum(self.stage_layers)} layers; pp x vpp is {chunks}, the model has {num_layers} layers",
                fix=f"give {chunks} numbers that add up to {num_layers}",
            )

    def _refuse_scattered_features(self) -> None:
        deep = len(self.spec.vision.deep_layers) if self.spec.vision else 0
        first = self._chunks()[0]
        if len(first) < deep:
            raise LayoutError(
                f"the first {deep} layers add features of pictures, and the first pipeline stage, which has "
                f"the vision tower, has {len(first)}",
                fix="lower pp or vpp, or give the first of stage_layers more",
            )

    @classmethod
    def of(cls, spec: ModelSpec, *, on_gpu: bool, **sizes: Any) -> Self:
        # Padded rows of the output layer cost time on a CPU, which gains nothing from round sizes.
        return cls(spec, **sizes, vocab_multiple=128 if on_gpu else 1, transformer_engine=on_gpu)

    @classmethod
    def refuse_keys(cls, model: ModelSpec, parallel: Any) -> None:
        if parallel.cp_exchange:
            raise LayoutError(
                f"cp_exchange = {parallel.cp_exchange}: Megatron always gathers keys and values",
                fix="leave cp_exchange out, or set actor.backend: fsdp",
            )
        if model.num_experts and parallel.sp is False and parallel.tp > 1:
            raise LayoutError(
                f"sp = false with tp = {parallel.tp}: Megatron trains experts with sequence parallelism only",
                fix="leave sp out, or set tp: 1",
            )

    @classmethod
    def refuse_unbuildable(cls, model: ModelSpec, *, where: str) -> None:
        if not model.has_table:
            raise ModelError(
                f"there is no model table for {model.family}, which Megatron's layers are built by",
                where=where,
                fix="train it with actor.backend=fsdp, which takes transformers' layers; its engine then "
                "gets weights through its own loader (rollout.weight_path=engine_api). Or write a table: "
                "docs/extend_model.md",
            )
        if model.attention_out_bias:
            raise ModelError(
                "a bias on the attention output is not supported", where=where, fix="use a model without"
            )
        kind = (model.rope_scaling or {}).get("rope_type")
        windows = " on a model with windows" if model.windowed_layers else ""
        if kind not in (None, *ROPE_SCALINGS) or (kind == "yarn" and windows):
            raise ModelError(
                f"rope scaling {kind!r}{windows} is not supported",
                where=where,
                fix=f"use a model with {', '.join(ROPE_SCALINGS)} or plain rotary embedding",
            )

    @classmethod
    def refuse_options(cls, actor: Any) -> None:
        if actor.gather != "each_pass":
            raise ConfigError(
                f"actor.gather = {actor.gather}: Megatron's ranks have their weights whole, and gather none",
                where="actor.gather",
                fix="remove actor.gather, or set actor.backend: fsdp",
            )
        if actor.keep_on_host != "none":
            raise ConfigError(
                f"actor.keep_on_host = {actor.keep_on_host}: Megatron's ranks train from GPU memory only",
                where="actor.keep_on_host",
                fix="use actor.offload, which makes room while engines generate, or actor.backend: fsdp",
            )

    @property
    def _stage_size(self) -> int:
        return self.tp * self.cp * self.dp

    @property
    def padded_vocab(self) -> int:
        """Rows of the padded vocabulary over all tp ranks."""
        multiple = self.vocab_multiple * self.tp
        return -(-self.spec.vocab_size // multiple) * multiple

    def rank(self, tp: int, dp: int, pp: int, cp: int = 0) -> int:
        return tp + self.tp * (cp + self.cp * (dp + self.dp * pp))

    def chunks(self, stage: int) -> list[range]:
        return self._chunks()[stage :: self.pp]

    def _chunks(self) -> list[range]:
        count = self.pp * self.vpp
        sizes = self.stage_layers or (self.spec.num_layers // count,) * count
        edges = list(accumulate(sizes, initial=0))
        return [range(a, b) for a, b in pairwise(edges)]

    def place(self, parameters: Iterable[Parameter]) -> Iterator[Holding]:
        for parameter in parameters:
            row, last = parameter.row, self.pp - 1
            if parameter.per_layer:
                stages = [
                    (i % self.pp, common_range(parameter.layers, part))
                    for i, part in enumerate(self._chunks())
                ]
            else:
                stages = [(0 if row.stage == "first" else last, range(1))]
            for site in self.sites(row):
                yield from self._shard(parameter, site, stages)
            if row.tied_copy and self.spec.tied and self.pp > 1:
                yield from self._shard(parameter, row.tied_copy, [(last, range(1))])

    def sites(self, row: Row) -> tuple[Site, ...]:
        return self.transformer_engine and row.transformer_engine or row.megatron

    def at(self, row: Row, name: str, *sites: Site) -> Row:
        return replace(row, name=name, megatron=sites, transformer_engine=())

    def num_parts(self, row: Row, site: Site) -> int:
        return self.ep * self.etp if row.per_expert else 1 if site.sharding == "whole" else self.tp

    def _shard(self, parameter: Parameter, site: Site, stages: list[tuple[int, range]]) -> Iterator[Holding]:
        """Holdings of a parameter in one tensor: the shards are computed once, then placed on every stage."""
        size = self._stage_size
        per_expert = parameter.row.per_expert
        tp = self.etp if per_expert else self.tp
        ep = self.ep if per_expert else 1
        experts = len(parameter.experts) // ep
        if site.sharding == "whole":
            tp = 1
        for at in range(tp):
            held = shard(site, parameter, Place(at, tp, self.spec, self.padded_vocab))
            one = Holding.of(parameter, site.tensor, held, range(0), range(0), parameter.experts[:experts])
            for e in range(ep):
                mine = parameter.experts[e * experts : (e + 1) * experts]
                first, every = at + tp * e, tp * ep
                for pp, layers in stages:
                    if layers:
                        yield one.on(layers, range(pp * size + first, (pp + 1) * size, every), mine)


LAYOUT = MegatronLayout
