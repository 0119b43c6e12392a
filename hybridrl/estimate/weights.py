"""Counts the parameters that a rank holds, from the layout's sizes, without building its boxes."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.blocks import FP8_BYTES
from hybridrl.layout.trainers import TrainerLayout
from hybridrl.models import spec as models
from hybridrl.models.spec import ModelSpec
from hybridrl.models.table import Kind, Parameter, Stage


@dataclass(frozen=True, slots=True)
class Share:
    """Numbers of parameters that a rank holds. Experts are counted separately, as their replicas differ."""

    dense: float
    expert: float

    @property
    def all(self) -> float:
        return self.dense + self.expert


@dataclass(frozen=True, slots=True)
class _Amount:
    """Parameters with the same sharding, in one layer or once in the model."""

    stage: Stage
    kind: Kind
    num_parts: int
    """Number of ranks of the stage that they are split over."""

    per_expert: bool
    count: int
    copied: bool
    """Whether the last stage has a copy too, if it is not the first."""


@cache
def on_stage(sharding: TrainerLayout | AdapterLayout, stage: int, *, layers_only: bool = False) -> Share:
    """Parameters of a rank of a pipeline stage.

    Args:
        layers_only: leave out embedding, final norm and output layer.
    """
    base = _base(sharding)
    chunks, last = base.chunks(stage), stage == base.pp - 1
    dense = expert = 0.0
    for amount in _amounts(sharding):
        if layers_only and amount.stage != "layers":
            continue
        count = (
            _times(amount, sharding.spec, chunks, first=stage == 0, last=last)
            * amount.count
            / amount.num_parts
        )
        if amount.per_expert:
            expert += count
        else:
            dense += count
    return Share(dense, expert)


@cache
def on_engine(layout: Layout, element_bytes: int) -> float:
    """Bytes of the parameters of the largest engine rank, vocabulary padding and scales of FP8 included.

    Args:
        element_bytes: bytes of a parameter that is not quantised.
    """
    sizes = [0.0] * layout.world_size
    for held in layout.holdings:
        size = _size(held) * (FP8_BYTES if held.fp8 else element_bytes)
        for rank in held.ranks:
            sizes[rank] += size
    return max(sizes)


def _size(held: Holding) -> int:
    """Elements on each rank of a holding."""
    tensors = 1 if held.step else len(held.experts)
    return math.prod(held.shape) * tensors * len(held.layers)


@cache
def _amounts(sharding: TrainerLayout | AdapterLayout) -> tuple[_Amount, ...]:
    held = sharding.parameters if isinstance(sharding, AdapterLayout) else models.parameters(sharding.spec)
    return tuple(_read_amounts(_base(sharding), held))


def _base(sharding: TrainerLayout | AdapterLayout) -> TrainerLayout:
    return sharding.base if isinstance(sharding, AdapterLayout) else sharding


def _read_amounts(sharding: TrainerLayout, parameters: Iterable[Parameter]) -> Iterator[_Amount]:
    for parameter in parameters:
        row = parameter.row
        for site in sharding.sites(row):
            part = parameter.keep(site.blocks)[1]
            yield _Amount(
                stage=row.stage,
                kind=row.kind,
                num_parts=sharding.num_parts(row, site),
                per_expert=row.per_expert,
                count=part.num_elements // len(parameter.layers),
                copied=row.tied_copy is not None and sharding.spec.tied,
            )


def _times(amount: _Amount, model: ModelSpec, chunks: list[range], *, first: bool, last: bool) -> int:
    """How many times a stage has these parameters."""
    if amount.stage == "layers":
        mine = model.layers(amount.kind)
        return sum(max(0, min(c.stop, mine.stop) - max(c.start, mine.start)) for c in chunks)
    if amount.stage == "first":
        return int(first or (amount.copied and last))
    return int(last)
