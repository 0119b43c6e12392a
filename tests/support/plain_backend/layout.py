"""Every tensor of the model folder on one rank. Imports no torch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Holding
from hybridrl.layout.sharding import Place, shard
from hybridrl.layout.trainers import TrainerLayout
from hybridrl.models.table import Parameter, Row, Site


@dataclass(frozen=True)
class PlainLayout(TrainerLayout):
    """Every tensor of the model folder on one rank."""

    @classmethod
    def of(cls, spec: Any, *, on_gpu: bool, **sizes: Any) -> "PlainLayout":
        layout = cls(spec, **sizes)
        if layout.world_size > 1:
            raise LayoutError(f"{layout.shape}: the plain backend has one rank", fix="tp = 1")
        return layout

    @classmethod
    def refuse_unbuildable(cls, model: Any, *, where: str) -> None: ...

    def chunks(self, stage: int) -> list[range]:
        return [range(self.spec.num_layers)]

    def sites(self, row: Row) -> tuple[Site, ...]:
        return tuple(Site(name, "whole", (block,)) for block, name in enumerate(row.hf))

    def at(self, row: Row, name: str, site: Site) -> Row:
        return replace(row, name=name, hf=(site.tensor,))

    def num_parts(self, row: Row, site: Site) -> int:
        return 1

    def place(self, parameters: Iterable[Parameter]) -> Iterator[Holding]:
        for parameter in parameters:
            for site in self.sites(parameter.row):
                held = shard(site, parameter, Place(0, 1, self.spec, self.spec.vocab_size))
                yield Holding.of(parameter, site.tensor, held, parameter.layers, range(1), parameter.experts)
