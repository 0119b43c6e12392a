"""A layout: of every parameter, which ranks hold which part, on which layers and under which name."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

from hybridrl.layout.cuts import Held
from hybridrl.layout.runs import Runs
from hybridrl.layout.shard import Shard
from hybridrl.models.spec import ModelSpec
from hybridrl.models.table import Parameter


@dataclass(frozen=True, slots=True)
class Holding:
    """Ranks that all hold the same boxes of a parameter, alike on every layer of `layers`."""

    param: str
    """Canonical name; * is the layer."""

    tensor: str
    """Name on those ranks; * is the layer, counted over the whole model."""

    shape: tuple[int, ...]
    rows: Runs
    cols: Runs
    layers: range
    """range(1) for a parameter that the model has once."""

    ranks: tuple[int, ...]

    @classmethod
    def of(
        cls, parameter: Parameter, tensor: str, held: Held, layers: range, ranks: tuple[int, ...]
    ) -> "Holding":
        """What a cut leaves on `ranks`."""
        shape = (held.num_rows,) if parameter.cols is None else (held.num_rows, held.num_cols)
        return cls(parameter.name, tensor, shape, held.rows, held.cols, layers, ranks)


@dataclass(frozen=True)
class Layout(ABC):
    """Which part of a model each rank holds. Pure data: two layouts with equal fields are the same layout."""

    spec: ModelSpec

    @property
    @abstractmethod
    def world_size(self) -> int: ...

    @abstractmethod
    def _holdings(self) -> list[Holding]: ...

    @cached_property
    def holdings(self) -> tuple[Holding, ...]:
        """All of the layout, in the order of the model table."""
        return tuple(self._holdings())

    def shards(self, rank: int) -> dict[str, Shard]:
        """Tensor name -> what `rank` holds under it; layer numbers count over the whole model."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} of a layout of {self.world_size} ranks")
        return {
            instance(held.tensor, layer): Shard(instance(held.param, layer), held.shape, held.rows, held.cols)
            for held in self.holdings
            if rank in held.ranks
            for layer in held.layers
        }


def instance(pattern: str, layer: int) -> str:
    """The name of a parameter or tensor on one layer."""
    return pattern.replace("*", str(layer))


def merge(holdings: list[Holding]) -> list[Holding]:
    """Holdings that differ in their ranks only, made one: replicas are what a planner chooses among."""
    ranks: dict[Holding, list[int]] = {}
    for held in holdings:
        ranks.setdefault(replace(held, ranks=()), []).extend(held.ranks)
    return [replace(alike, ranks=tuple(sorted(found))) for alike, found in ranks.items()]
