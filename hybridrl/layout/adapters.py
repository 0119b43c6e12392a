"""Layout of low-rank adapters on a trainer's ranks: an adapter is sharded like its linear layer.

The adapter of a weight [out, in] is A [r, in] and B [out, r]. If the rows of the weight are sharded, the rows
of B are sharded alike and every tensor-parallel rank has all of A. If its columns are sharded, the columns of
A are sharded alike and every rank has all of B.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.trainers import TrainerLayout
from hybridrl.models.linears import LINEARS, linears, present
from hybridrl.models.table import Parameter, Row, Site

A, B = "lora_a", "lora_b"
"""Suffixes of the canonical names of the factors, after the name of the linear layer."""


@dataclass(frozen=True)
class AdapterLayout(Layout):
    """The adapters of a model without the model. The adapter of X.weight is X.adapter.a and X.adapter.b.

    Where a weight is several tensors, they share one A, the first one's, and each has its rows of B.
    """

    base: TrainerLayout
    """Layout of the model on the same ranks."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = tuple(LINEARS)

    def __post_init__(self) -> None:
        found = present(self.spec)
        if absent := [target for target in self.targets if target not in found]:
            raise LayoutError(
                f"a model of family {self.spec.family} has no linear layer {', '.join(absent)}",
                fix=f"give adapters to {', '.join(found)}" if found else "train the whole model",
            )

    @classmethod
    def on(cls, base: TrainerLayout, *, rank: int, alpha: float, targets: tuple[str, ...]) -> "AdapterLayout":
        """The adapters on the ranks of a layout.

        Raises:
            LayoutError: the model lacks the linear layer of a target.
        """
        return cls(base.spec, base, rank, alpha, targets)

    @property
    def world_size(self) -> int:
        return self.base.world_size

    @property
    def scale(self) -> float:
        """Factor of the adapter: the weight is W + scale B A."""
        return self.alpha / self.rank

    @property
    def linears(self) -> list[Parameter]:
        """The weights that have an adapter."""
        return linears(self.spec, self.targets)

    def factors(self, parameter: Parameter) -> tuple[Parameter, Parameter]:
        """Factors A and B of a weight. B has the row blocks of the weight."""
        sites = self.base.sites(parameter.row)
        sharding = sites[0].sharding
        of_a, of_b = ("columns", "whole") if sharding == "columns" else ("whole", sharding)
        stems = [site.tensor.removesuffix("weight") for site in sites]

        def line(end: str, *at: Site) -> tuple[str, Row]:
            name = f"{parameter.name}.{end}"
            return name, self.base.at(parameter.row, name, *at)

        a, a_row = line(A, Site(f"{stems[0]}adapter.a", of_a))
        b, b_row = line(B, *(Site(f"{stem}adapter.b", of_b) for stem in stems))
        return (
            replace(parameter, name=a, row=a_row, blocks=(self.rank,)),
            replace(parameter, name=b, row=b_row, cols=self.rank),
        )

    @property
    def parameters(self) -> Iterator[Parameter]:
        return (factor for parameter in self.linears for factor in self.factors(parameter))

    def _holdings(self) -> Iterator[Holding]:
        return self.base.place(self.parameters)
