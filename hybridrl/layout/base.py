"""A layout: of every parameter, which ranks hold which part, on which layers and under which name."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

from hybridrl.layout.runs import Run, Runs, join
from hybridrl.layout.shard import Shard
from hybridrl.layout.sharding import Held
from hybridrl.models.spec import ModelSpec
from hybridrl.models.table import Parameter


class Holding(NamedTuple):
    """Ranks that all hold the same boxes of a parameter, alike on every layer and for every expert.

    The experts of a layer lie end to end in the canonical parameter. `rows` are those of one expert.
    """

    param: str
    """Canonical name; * is the layer."""

    tensor: str
    """Name on those ranks; * is the layer, counted over the whole model; # is the expert, counted over
    `experts`, where each has its own tensor."""

    shape: tuple[int, ...]
    rows: Runs
    cols: Runs
    layers: range
    """range(1) for a parameter that the model has once."""

    ranks: range
    experts: range = range(1)
    """Of the layer; range(1) for a parameter that is not an expert's."""

    expert_rows: int = 0
    """Rows of one expert in the parameter."""

    step: int = 0
    """Rows from one expert to the next in the tensor; 0: each has its own."""

    @classmethod
    def of(
        cls, parameter: Parameter, tensor: str, held: Held, layers: range, ranks: range, experts: range
    ) -> "Holding":
        """What a cut leaves on `ranks`."""
        stacked = parameter.row.per_expert and "#" not in tensor
        shape = (held.num_rows,) if parameter.cols is None else (held.num_rows, held.num_cols)
        return cls(
            param=parameter.name,
            tensor=tensor,
            shape=(len(experts), *shape) if stacked else shape,
            rows=held.rows,
            cols=held.cols,
            layers=layers,
            ranks=ranks,
            experts=experts,
            expert_rows=parameter.num_rows if parameter.row.per_expert else 0,
            step=held.num_rows if stacked else 0,
        )

    def on(self, layers: range, ranks: range, experts: range) -> "Holding":
        """The same of other layers, and of as many other experts, on other ranks."""
        param, tensor, shape, rows, cols, *_, expert_rows, step = self
        return Holding(param, tensor, shape, rows, cols, layers, ranks, experts, expert_rows, step)

    def shards(self, layer: int) -> Iterator[tuple[str, Shard]]:
        """(name, what it holds) of every tensor on a layer."""
        param = instance(self.param, layer)
        rows = [self._rows(i) for i in range(len(self.experts))]
        if self.step:
            merged = join(run for part in rows for run in part)
            yield instance(self.tensor, layer), Shard(param, self.shape, merged, self.cols)
            return
        for i, part in enumerate(rows):
            yield instance(self.tensor, layer, i), Shard(param, self.shape, part, self.cols)

    def _rows(self, index: int) -> Runs:
        """Row map of the index-th expert held here, in the whole parameter and in its tensor."""
        at, local = self.experts[index] * self.expert_rows, index * self.step
        return tuple(Run(run.at + at, run.length, run.local + local) for run in self.rows)


@dataclass(frozen=True)
class Layout(ABC):
    """Which part of a model each rank holds. Pure data: two layouts with equal fields are the same layout."""

    spec: ModelSpec

    scales: ClassVar[str] = "_scale_inv"
    """What follows the name of a block-FP8 weight in that of its scales."""

    @property
    @abstractmethod
    def world_size(self) -> int: ...

    @abstractmethod
    def _holdings(self) -> Iterator[Holding]: ...

    @cached_property
    def holdings(self) -> tuple[Holding, ...]:
        """All of the layout, in the order of the model table."""
        return tuple(self._holdings())

    def shards(self, rank: int) -> dict[str, Shard]:
        """Tensor name -> what `rank` holds under it; layer numbers count over the whole model."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} of a layout of {self.world_size} ranks")
        return {
            name: shard
            for held in self.holdings
            if rank in held.ranks
            for layer in held.layers
            for name, shard in held.shards(layer)
        }


def instance(pattern: str, layer: int, expert: int = 0) -> str:
    """The name of a parameter or tensor on one layer, of one expert."""
    return pattern.replace("*", str(layer)).replace("#", str(expert))


def rendezvous(a: range, b: range) -> range:
    """What two ranges share; both have step 1."""
    return range(max(a.start, b.start), min(a.stop, b.stop))
