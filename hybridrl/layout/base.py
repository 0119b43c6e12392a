"""A layout says which ranks hold which part of every parameter, on which layers and under which name."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

from hybridrl.errors import LayoutError
from hybridrl.layout.runs import Run, Runs, join
from hybridrl.layout.shard import Shard
from hybridrl.layout.sharding import Held
from hybridrl.models.spec import ModelSpec
from hybridrl.models.table import Parameter


class Holding(NamedTuple):
    """Ranks that hold the same boxes of a parameter, equal on all these layers and for all these experts.

    The experts of a layer lie end to end in the canonical parameter. `rows` are the rows of one expert.
    """

    param: str
    """Canonical name; * stands for the layer."""

    tensor: str
    """Tensor name on those ranks. * stands for the layer, counted over the whole model. # stands for the
    expert, counted in `experts`, if each expert has its own tensor."""

    shape: tuple[int, ...]
    rows: Runs
    cols: Runs
    layers: range
    """Layers that the ranks hold; range(1) for a parameter that the model has once."""

    ranks: range
    experts: range = range(1)
    """Experts of each layer that the ranks hold; range(1) for a parameter without experts."""

    expert_rows: int = 0
    """Rows of one expert in the canonical parameter."""

    step: int = 0
    """Rows from one expert to the next in the tensor; 0: each expert has its own tensor."""

    fp8: bool = False
    """Whether the tensor is quantised in blocks, see layout/blocks.py; its scales are another tensor."""

    @classmethod
    def of(
        cls, parameter: Parameter, tensor: str, held: Held, layers: range, ranks: range, experts: range
    ) -> "Holding":
        """The holding of `ranks`, given the shard of each."""
        stacked = parameter.row.per_expert and "#" not in tensor
        shape = (held.num_rows,) if parameter.cols is None else (held.num_rows, held.num_cols)
        return cls(
            param=parameter.name,
            tensor=tensor,
            shape=parameter.shape or ((len(experts), *shape) if stacked else shape),
            rows=held.rows,
            cols=held.cols,
            layers=layers,
            ranks=ranks,
            experts=experts,
            expert_rows=parameter.num_rows if parameter.row.per_expert else 0,
            step=held.num_rows if stacked else 0,
        )

    def on(self, layers: range, ranks: range, experts: range) -> "Holding":
        """The same holding for other layers, equally many other experts, and other ranks."""
        param, tensor, shape, rows, cols, *_, expert_rows, step, fp8 = self
        return Holding(param, tensor, shape, rows, cols, layers, ranks, experts, expert_rows, step, fp8)

    def shards(self, layer: int) -> Iterator[tuple[str, Shard]]:
        """(tensor name, shard) of every tensor of this holding on a layer."""
        param = instance(self.param, layer)
        rows = [self._rows(i) for i in range(len(self.experts))]
        if self.step:
            merged = join(run for part in rows for run in part)
            yield instance(self.tensor, layer), Shard(param, self.shape, merged, self.cols)
            return
        for i, part in enumerate(rows):
            yield instance(self.tensor, layer, i), Shard(param, self.shape, part, self.cols)

    def _rows(self, index: int) -> Runs:
        """Row map of the index-th expert held here, from the whole parameter to its tensor."""
        at, local = self.experts[index] * self.expert_rows, index * self.step
        return tuple(Run(run.at + at, run.length, run.local + local) for run in self.rows)


@dataclass(frozen=True)
class Layout(ABC):
    """Which part of a model each rank holds. It is pure data: layouts with equal fields are equal."""

    spec: ModelSpec

    scales: ClassVar[str] = "_scale_inv"
    """Suffix of a block-FP8 weight's name that makes the name of its scales."""

    @property
    @abstractmethod
    def world_size(self) -> int: ...

    @abstractmethod
    def _holdings(self) -> Iterator[Holding]: ...

    def in_fp8(self) -> "Layout":
        """This layout with block-FP8 weights.

        Raises:
            LayoutError: the system has no such weights, or the model's sizes do not divide into blocks.
        """
        raise LayoutError(
            f"{type(self).__name__} has no block-FP8 weights",
            fix="rollout.engine: sglang, or rollout.precision: bf16",
        )

    @cached_property
    def holdings(self) -> tuple[Holding, ...]:
        """All holdings, in the order of the model table."""
        return tuple(self._holdings())

    def shards(self, rank: int) -> dict[str, Shard]:
        """Tensor name -> shard of `rank`. Layer numbers count over the whole model."""
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
    """The name of a parameter or tensor for one layer and one expert."""
    return pattern.replace("*", str(layer)).replace("#", str(expert))


def common_range(a: range, b: range) -> range:
    """Intersection of two ranges of step 1."""
    return range(max(a.start, b.start), min(a.stop, b.stop))
