"""How many parameters each rank of a pipeline stage holds: the layout's cuts, counted without its boxes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from hybridrl.layout.adapters import AdapterLayout, factors
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models import spec as models
from hybridrl.models.linears import linears
from hybridrl.models.spec import ModelSpec
from hybridrl.models.table import Kind, Parameter, Row, Stage


@dataclass(frozen=True, slots=True)
class Share:
    """Numbers of parameters that a rank holds. Experts have replicas of their own."""

    dense: float
    expert: float

    @property
    def all(self) -> float:
        return self.dense + self.expert


@dataclass(frozen=True, slots=True)
class _Amount:
    """Parameters of one kind that are cut alike, in one layer or once."""

    stage: Stage
    kind: Kind
    cut: bool
    per_expert: bool
    count: int
    copied: bool
    """The last stage has it too, where that is not the first."""


@cache
def on_stage(cut: MegatronLayout, stage: int, *, layers_only: bool = False) -> Share:
    """Of a rank of a pipeline stage.

    Args:
        layers_only: without embedding, last norm and output layer.
    """
    chunks = cut.chunks(stage)
    dense = expert = 0.0
    for amount in _amounts(cut):
        if layers_only and amount.stage != "layers":
            continue
        times = _times(amount, cut.spec, chunks, first=stage == 0, last=stage == cut.pp - 1)
        if amount.per_expert:
            expert += times * amount.count / (cut.ep * cut.etp)
        else:
            dense += times * amount.count / (cut.tp if amount.cut else 1)
    return Share(dense, expert)


@cache
def on_engine(cut: SGLangLayout) -> float:
    """Parameters of one rank of an engine."""
    model, found = cut.spec, 0.0
    for parameter in models.parameters(model):
        row = parameter.row
        whole = all(site.cut == "whole" for site in row.engine)
        copied = row.group in ("attention", "embed") and not row.per_expert
        size = 1 if whole else cut.tp // cut.dp_attention if copied else cut.tp
        found += parameter.num_elements * _repeats(model, row, size) / size
    return found


def _repeats(model: ModelSpec, row: Row, size: int) -> float:
    """Key-value heads are repeated where there are fewer than ranks."""
    if row.name not in ("layers.*.qkv", "layers.*.qkv_bias") or model.num_kv_heads >= size:
        return 1.0
    heads = model.num_heads + 2 * size
    return heads / (model.num_heads + 2 * model.num_kv_heads)


def _amounts(cut: MegatronLayout) -> tuple[_Amount, ...]:
    adapters = (cut.adapter_rank, cut.adapter_targets) if isinstance(cut, AdapterLayout) else None
    return _of_model(cut.spec, cut.transformer_engine, adapters)


@cache
def _of_model(
    model: ModelSpec, transformer_engine: bool, adapters: tuple[int, tuple[str, ...]] | None
) -> tuple[_Amount, ...]:
    """
    Args:
        adapters: their rank and what has one; None: the model itself.
    """
    if adapters is None:
        return tuple(_read_amounts(model, models.parameters(model), transformer_engine))
    rank, targets = adapters
    pairs = (factors(parameter, rank) for parameter in linears(model, targets))
    return tuple(_read_amounts(model, (factor for pair in pairs for factor in pair), transformer_engine))


def _read_amounts(
    model: ModelSpec, parameters: Iterable[Parameter], transformer_engine: bool
) -> Iterator[_Amount]:
    for parameter in parameters:
        row = parameter.row
        for site in transformer_engine and row.transformer_engine or row.megatron:
            part = parameter.keep(site.blocks)[1]
            yield _Amount(
                stage=row.stage,
                kind=row.kind,
                cut=site.cut != "whole",
                per_expert=row.per_expert,
                count=part.num_elements // len(parameter.layers),
                copied=row.tied_copy is not None and model.tied,
            )


def _times(amount: _Amount, model: ModelSpec, chunks: list[range], *, first: bool, last: bool) -> int:
    """How often a stage has it."""
    if amount.stage == "layers":
        mine = model.layers(amount.kind)
        return sum(max(0, min(c.stop, mine.stop) - max(c.start, mine.start)) for c in chunks)
    if amount.stage == "first":
        return int(first or (amount.copied and last))
    return int(last)
