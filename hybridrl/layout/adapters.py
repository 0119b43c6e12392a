"""Low-rank adapters over Megatron's ranks: each is cut as the linear layer that it adds to.

An adapter of a weight [out, in] is A [r, in] and B [out, r]. Where the rows of the weight are cut, so are
those of B, in the same order, and every tensor-parallel rank has A; where its columns are cut, those of A
are, and every rank has B.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from hybridrl.errors import LayoutError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models.linears import LINEARS, linears, present
from hybridrl.models.table import Parameter, Row, Site

A, B = "lora_a", "lora_b"
"""End of the canonical name of a factor, after that of its linear layer."""


@dataclass(frozen=True)
class AdapterLayout(MegatronLayout):
    """The adapters of a model, and nothing else of it. That of X.weight is X.adapter.a and X.adapter.b."""

    adapter_rank: int = 16
    adapter_alpha: float = 32.0
    adapter_targets: tuple[str, ...] = tuple(LINEARS)

    def __post_init__(self) -> None:
        super().__post_init__()
        found = present(self.spec)
        if absent := [target for target in self.adapter_targets if target not in found]:
            raise LayoutError(
                f"a model of family {self.spec.family} has no linear layer {', '.join(absent)}",
                fix=f"give adapters to {', '.join(found)}" if found else "train the whole model",
            )

    @classmethod
    def on(
        cls, layout: MegatronLayout, *, rank: int, alpha: float, targets: tuple[str, ...]
    ) -> "AdapterLayout":
        """On the ranks of a layout.

        Raises:
            LayoutError: the model has no linear layer of a target.
        """
        cut = {field.name: getattr(layout, field.name) for field in fields(MegatronLayout)}
        return cls(**cut, adapter_rank=rank, adapter_alpha=alpha, adapter_targets=targets)

    @property
    def scale(self) -> float:
        """The weight is W + scale B A."""
        return self.adapter_alpha / self.adapter_rank

    @property
    def linears(self) -> list[Parameter]:
        """The weights that have an adapter."""
        return linears(self.spec, self.adapter_targets)

    def _parameters(self) -> Iterator[Parameter]:
        for parameter in self.linears:
            yield from factors(parameter, self.adapter_rank)


def factors(parameter: Parameter, rank: int) -> tuple[Parameter, Parameter]:
    """A and B of a weight. The row blocks of B are the weight's."""
    site = parameter.row.megatron[0]
    of_a, of_b = ("columns", "whole") if site.cut == "columns" else ("whole", site.cut)
    stem = site.tensor.removesuffix("weight")

    def line(end: str, at: Site) -> tuple[str, Row]:
        name = f"{parameter.name}.{end}"
        return name, replace(parameter.row, name=name, megatron=(at,), transformer_engine=())

    (a, a_row), (b, b_row) = line(A, Site(f"{stem}adapter.a", of_a)), line(B, Site(f"{stem}adapter.b", of_b))
    return (
        replace(parameter, name=a, row=a_row, blocks=(rank,)),
        replace(parameter, name=b, row=b_row, cols=rank),
    )
