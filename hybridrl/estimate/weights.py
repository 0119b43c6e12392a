"""How many parameters each rank of a pipeline stage holds: the layout's cuts, counted without its boxes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.layout.trainers import TrainerLayout
from hybridrl.models import spec as models
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
    pieces: int
    """That ranks of the stage share out."""

    per_expert: bool
    count: int
    copied: bool
    """The last stage has it too, where that is not the first."""


@cache
def on_stage(cut: TrainerLayout | AdapterLayout, stage: int, *, layers_only: bool = False) -> Share:
    """Of a rank of a pipeline stage.

    Args:
        layers_only: without embedding, last norm and output layer.
    """
    base = _base(cut)
    chunks, last = base.chunks(stage), stage == base.pp - 1
    dense = expert = 0.0
    for amount in _amounts(cut):
        if layers_only and amount.stage != "layers":
            continue
        count = _times(amount, cut.spec, chunks, first=stage == 0, last=last) * amount.count / amount.pieces
        if amount.per_expert:
            expert += count
        else:
            dense += count
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


@cache
def _amounts(cut: TrainerLayout | AdapterLayout) -> tuple[_Amount, ...]:
    held = cut.parameters if isinstance(cut, AdapterLayout) else models.parameters(cut.spec)
    return tuple(_read_amounts(_base(cut), held))


def _base(cut: TrainerLayout | AdapterLayout) -> TrainerLayout:
    return cut.base if isinstance(cut, AdapterLayout) else cut


def _read_amounts(cut: TrainerLayout, parameters: Iterable[Parameter]) -> Iterator[_Amount]:
    for parameter in parameters:
        row = parameter.row
        for site in cut.sites(row):
            part = parameter.keep(site.blocks)[1]
            yield _Amount(
                stage=row.stage,
                kind=row.kind,
                pieces=cut.pieces(row, site),
                per_expert=row.per_expert,
                count=part.num_elements // len(parameter.layers),
                copied=row.tied_copy is not None and cut.spec.tied,
            )


def _times(amount: _Amount, model: ModelSpec, chunks: list[range], *, first: bool, last: bool) -> int:
    """How often a stage has it."""
    if amount.stage == "layers":
        mine = model.layers(amount.kind)
        return sum(max(0, min(c.stop, mine.stop) - max(c.start, mine.start)) for c in chunks)
    if amount.stage == "first":
        return int(first or (amount.copied and last))
    return int(last)
